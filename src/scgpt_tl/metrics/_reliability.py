"""Confidence beside accuracy, by bins of confidence (Guo et al. 2017)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Reliability(NamedTuple):
    """Bins of equal width over 0 to 1, each closed on its right (the first on both sides)."""

    edges: np.ndarray
    """(n_bins + 1,)."""
    n: np.ndarray
    """(n_bins,) int64 cells."""
    confidence: np.ndarray
    """(n_bins,) sum over the cells of a bin."""
    right: np.ndarray
    """(n_bins,) how many of them are right."""

    @property
    def ece(self) -> float:
        """Sum over bins b of `|b| / n * |accuracy(b) - confidence(b)|`: equation (3)."""
        # the sums over a bin are |b| times its means
        return float(np.abs(self.right - self.confidence).sum() / self.n.sum())


def reliability(confidence: np.ndarray, right: np.ndarray, n_bins: int) -> Reliability:
    """Count cells by their confidence.

    Parameters
    ----------
    confidence
        `(n,)` within 0 to 1.
    right
        `(n,)` bool.
    n_bins
        How many bins.

    Raises
    ------
    ValueError
        Fewer than one bin.
    """
    if n_bins < 1:
        msg = f"n_bins is {n_bins}; at least one bin is needed"
        raise ValueError(msg)
    edges = np.linspace(0, 1, n_bins + 1)
    where = np.searchsorted(edges[1:-1], confidence, side="left")
    n, *sums = (np.bincount(where, weights, minlength=n_bins) for weights in (None, confidence, right))
    return Reliability(edges, n, *sums)

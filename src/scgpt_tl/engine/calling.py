"""From class scores to probabilities that can be believed, and to the call "unknown". Arrays alone.

p = softmax(scores / T), with T from the likelihood of held-out cells (Guo et al. 2017); called is the class of the
largest p, or none where that p is below a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

#: Share of held-out cells whose largest probability lies below the threshold.
DOUBTED = 0.01
#: Between these the temperature is looked for.
BOUNDS = (0.05, 20.0)
#: Held-out cells below which the temperature makes no network surer than it is, and no threshold is set.
ENOUGH = 50


@dataclass(frozen=True)
class Calling:
    """How class scores become probabilities and calls.

    Raises
    ------
    ValueError
        A temperature that is not positive, or a threshold outside 0 to 1.
    """

    temperature: float = 1.0
    """What scores are divided by."""
    threshold: float = 0.0
    """Largest probability below which a cell is unknown."""

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and 0 <= self.threshold <= 1):
            msg = (
                f"temperature={self.temperature} and threshold={self.threshold}: a positive number and a probability "
                "are needed"
            )
            raise ValueError(msg)

    @classmethod
    def fit(cls, scores: np.ndarray, codes: np.ndarray) -> Calling:
        """Temperature and threshold from cells of known class that the classifier did not learn from.

        The temperature minimises the negative log-likelihood, within `BOUNDS`. It stays at 1 or above with fewer than
        `ENOUGH` cells: a few cells that are all right would make any network certain. The threshold is the 1 % quantile
        of the largest probability, a value that one of the cells has: with fewer than 100 cells none of them is below.
        With fewer than `ENOUGH` it is 0: of 10 cells even the least sure one is no rare case.

        Parameters
        ----------
        scores
            (n, C) class scores; any constant may be added to a row.
        codes
            (n,) int64 true classes. Without a cell, scores are taken as they are and no cell is unknown.

        Raises
        ------
        ValueError
            Other shapes, codes that are no column, or scores that are no numbers.
        """
        scores, codes = np.asarray(scores, np.float64), np.asarray(codes)
        _check(scores, codes)
        if not len(codes):
            return cls()
        rows = np.arange(len(codes))

        def loss(log_temperature: float) -> float:
            return -float(log_softmax(scores / math.exp(log_temperature), axis=1)[rows, codes].mean())

        low, high = (math.log(bound) for bound in BOUNDS)
        bounds = (low if len(codes) >= ENOUGH else 0.0, high)
        found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
        warm = cls(math.exp(float(found.x)))
        if len(codes) < ENOUGH:
            return warm
        largest = warm.probabilities(scores).max(axis=1)
        return cls(warm.temperature, float(np.quantile(largest, DOUBTED, method="lower")))

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(n, C) class scores -> (n, C) float32, rows that sum to one."""
        return softmax(np.asarray(scores, np.float64) / self.temperature, axis=1).astype(np.float32)

    def codes(self, probabilities: np.ndarray) -> np.ndarray:
        """(n, C) probabilities -> (n,) int64 class of each cell, -1: unknown."""
        found = probabilities.argmax(axis=1).astype(np.int64)
        found[probabilities.max(axis=1) < self.threshold] = -1
        return found


def _check(scores: np.ndarray, codes: np.ndarray) -> None:
    if scores.ndim != 2 or codes.shape != scores.shape[:1]:
        msg = f"scores (n, C) and codes (n,) are needed, found {scores.shape} and {codes.shape}"
        raise ValueError(msg)
    if len(codes) and not 0 <= codes.min() <= codes.max() < scores.shape[1]:
        msg = f"codes run from {codes.min()} to {codes.max()}, and there are {scores.shape[1]} classes"
        raise ValueError(msg)
    if not np.isfinite(scores).all():
        msg = f"{int((~np.isfinite(scores)).any(axis=1).sum())} of {len(scores)} cells have scores that are no numbers"
        raise ValueError(msg)

"""Today's scores of batch mixing beside the preprint's: BRAS, iLISI, cLISI (through scib-metrics) and kBET.

Arrays in, numbers out. Neighbours are exact, by brute force where trees do not help.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2
from sklearn.neighbors import NearestNeighbors

from scgpt_tl._compat import need
from scgpt_tl.metrics import _checks

#: Neighbours of a cell for LISI, itself included: three times the perplexity of 30 that its authors took.
LISI_NEIGHBORS = 90


@dataclass(frozen=True)
class MixingScores:
    """What `mixing_scores` found. All are higher where better, between 0 and 1."""

    bras: float
    """Batch removal adapted silhouette; NaN where no cell type has two batches."""
    ilisi: float
    clisi: float
    """NaN with one cell type only."""
    kbet: float
    """NaN where no cell type can be tested."""
    n_cells: int
    n_left_out: int

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, scores under the names that tables show."""
        return {
            "BRAS": self.bras,
            "iLISI": self.ilisi,
            "cLISI": self.clisi,
            "kBET": self.kbet,
            "n_cells": self.n_cells,
            "n_left_out": self.n_left_out,
        }


def mixing_scores(embedding: Any, labels: Any, batches: Any) -> MixingScores:
    """BRAS, iLISI, cLISI and kBET of an embedding (extra `scib`).

    - BRAS (Rautenstrauch & Ohler 2025): mean over cell types of the mean over their cells of `1 - |s|`, where the
      silhouette s of the batches takes the mean distance to all other batches for the nearest one's, and cosine
      distances.
    - iLISI, cLISI (Korsunsky et al. 2019): median over cells of the inverse Simpson index of the batches (cell types)
      among 90 weighted neighbours, scaled to 0 ... 1 so that mixed batches (pure types) are 1 (Luecken et al. 2022).
    - kBET: see `kbet`.

    Parameters
    ----------
    embedding
        `(n, D)`, finite.
    labels
        `(n,)` cell types.
    batches
        `(n,)`. Cells without a label or a batch are left out and counted.

    Raises
    ------
    ImportError
        Without scib-metrics; the message is the line that installs it.
    ValueError
        On shapes that do not agree, values that are not finite, or fewer than two batches.
    """
    points, types, codes, n_left_out = _checks.both(embedding, labels, batches)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # jax warns of the device it does not find, and of its own future
        scib = need("scib_metrics", extra="scib")
        near = _near(scib, points)
        testable = any(2 <= len(np.unique(codes[types == t])) < (types == t).sum() for t in np.unique(types))
        bras = float(scib.bras(points, types, codes)) if testable else float("nan")
        ilisi = float(scib.ilisi_knn(near, codes))
        clisi = float(scib.clisi_knn(near, types)) if types.min() != types.max() else float("nan")
    return MixingScores(bras, ilisi, clisi, _kbet(points, types, codes), len(points), n_left_out)


def kbet(embedding: Any, labels: Any, batches: Any, *, alpha: float = 0.05) -> float:
    """Mean over cell types of the share of cells whose neighbourhood a test accepts (Büttner et al. 2019).

    A cell's batches among its k nearest cells of its own type, itself included, are held against those of the type:
    chi squared is the sum over batches of (observed - expected)^2 / expected, one degree of freedom less than batches.
    k is a quarter of the mean batch size of the type, at least 10 and at most 70, as in scib, which counts neighbours
    along diffusion maps where we take the embedding's own distances. Types of one batch or of fewer than 2 k cells, of
    which a neighbourhood is half or more, are left out; NaN where that leaves none.

    Parameters
    ----------
    embedding
        `(n, D)`, finite.
    labels, batches
        `(n,)`; cells without either are left out.
    alpha
        Level of the test: neighbourhoods drawn at random are accepted at a rate of 1 - alpha.
    """
    points, types, codes, _ = _checks.both(embedding, labels, batches)
    return _kbet(points, types, codes, alpha=alpha)


def _kbet(points: np.ndarray, types: np.ndarray, codes: np.ndarray, *, alpha: float = 0.05) -> float:
    accepted = []
    for one in np.unique(types):
        rows = np.flatnonzero(types == one)
        sizes = np.unique(codes[rows], return_counts=True)[1]
        k = min(70, max(10, int(sizes.mean() // 4)))
        if len(rows) < 2 * k or len(sizes) < 2:
            continue
        found = NearestNeighbors(n_neighbors=k).fit(points[rows]).kneighbors(points[rows], return_distance=False)
        accepted.append((kbet_pvalues(codes[rows], found) >= alpha).mean())
    return float(np.mean(accepted)) if accepted else float("nan")


def kbet_pvalues(codes: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """p-value `(n,)` of each cell's neighbourhood.

    Parameters
    ----------
    codes
        `(n,)` batch of each cell.
    neighbours
        `(n, k)` rows of its neighbours.
    """
    _, batch = np.unique(codes, return_inverse=True)
    sizes = np.bincount(batch)
    expected = sizes / len(batch) * neighbours.shape[1]
    observed = np.stack([(batch[neighbours] == b).sum(axis=1) for b in range(len(sizes))], axis=1)
    return chi2.sf(((observed - expected) ** 2 / expected).sum(axis=1), len(sizes) - 1)


def _near(scib: Any, points: np.ndarray) -> Any:
    """Exact nearest neighbours, each cell its own first, as scib-metrics takes them."""
    k = min(LISI_NEIGHBORS, len(points))
    distances, rows = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(points)
    return scib.nearest_neighbors.NeighborsResults(indices=rows, distances=distances)

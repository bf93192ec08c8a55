"""Groups of cells that lie together across batches: what `kin` of `engine.recipes` learns from. No label is used.

embedding less its mean -> nearest cells within a batch, mutual nearest cells of every two batches
    -> one graph -> Leiden communities
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy import sparse

from scgpt_tl.engine.neighbors import nearest
from scgpt_tl.metrics._clustering import leiden

_WITHIN, _ACROSS = 5, 10  # nearest cells
_ACROSS_WEIGHT = 2.0  # of a mutual pair, in those of two nearest cells of one batch
_RESOLUTION = 5.0  # communities finer than cell types


def kin_groups(embedding: np.ndarray, batches: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Group of each cell, (n,) int64.

    Mutual nearest neighbours (Haghverdi et al. 2018) join cells of two batches where each is among the other's ten
    nearest of that batch; Leiden's communities on these and on neighbours within a batch are the groups. Batches keep
    their means: they need not hold the same types in the same shares. Cells of a type that one batch alone has are
    seldom anyone's mutual neighbours, and their group holds that batch alone.

    Parameters
    ----------
    embedding
        (n, D), finite. All cells share most of it; its mean is taken out first.
    batches
        (n,) int64.
    seed
        Of Leiden.
    """
    n = len(embedding)
    rows = {batch: np.flatnonzero(batches == batch) for batch in np.unique(batches).tolist()}
    unit = _unit(embedding)
    points = {batch: unit[mine] for batch, mine in rows.items()}
    graph = sparse.csr_array((n, n))
    for batch, mine in rows.items():
        within = _edges(points[batch], points[batch], mine, mine, n, _WITHIN)
        graph = graph + within + within.T
    for one, other in combinations(rows, 2):
        there = _edges(points[one], points[other], rows[one], rows[other], n, _ACROSS)
        back = _edges(points[other], points[one], rows[other], rows[one], n, _ACROSS)
        mutual = there * back.T * _ACROSS_WEIGHT
        graph = graph + mutual + mutual.T
    return leiden(graph, resolutions=(_RESOLUTION,), rng=seed)[0].astype(np.int64)


def _unit(points: np.ndarray) -> np.ndarray:
    """Less their mean, of length 1; a point at the mean points nowhere in particular."""
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    centred[lengths[:, 0] < 1e-12] = 1.0
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


def _edges(
    queries: np.ndarray, reference: np.ndarray, ours: np.ndarray, theirs: np.ndarray, n: int, k: int
) -> sparse.csr_array:
    """(n, n) ones from each query to its nearest cells, itself left out."""
    same = queries is reference
    k = min(k, len(reference) - same)
    if k < 1:
        return sparse.csr_array((n, n))
    _, found = nearest(queries, reference, k, own=np.arange(len(queries)) if same else None)
    at = np.repeat(ours, k), theirs[found.ravel()]
    return sparse.csr_array((np.ones(len(at[0])), at), shape=(n, n))

"""Gene programs: the kNN graph of genes, its Leiden groups, and which resolution to take. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from scgpt_tl.metrics._clustering import leiden, neighbour_graph

_PAIRS = 262_144  # whose cosines are made at once
_PER_RESOLUTION = 120  # genes


def gene_graph(features: np.ndarray, n_neighbors: int = 15) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Graph of the genes whose features point the same way.

    Parameters
    ----------
    features
        (M, D), finite. Their lengths do not matter; the cosine of centred expression is Pearson's correlation.
    n_neighbors
        Of each gene, itself included (scanpy's convention). Neighbours are exact, however many genes there are.

    Returns
    -------
    cosines : float32 (M, M)
        Of each pair that is joined; symmetric, zero diagonal.
    connectivities : float32 (M, M)
        Scanpy's weights of the same pairs, for Leiden.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    points = np.asarray(features / np.where(lengths > 0, lengths, 1), np.float32)
    # between vectors of length 1 Euclidean distance ranks as cosine does
    weights = sparse.csr_matrix(neighbour_graph(points, n_neighbors=n_neighbors, exact=True), dtype=np.float32)
    weights.setdiag(0)
    weights.eliminate_zeros()
    weights.sort_indices()
    rows = np.repeat(np.arange(len(points)), np.diff(weights.indptr))
    cosines = np.empty(weights.nnz, np.float32)
    for start in range(0, weights.nnz, _PAIRS):
        some = slice(start, start + _PAIRS)
        cosines[some] = np.einsum("ij,ij->i", points[rows[some]], points[weights.indices[some]])
    return sparse.csr_matrix((cosines, weights.indices, weights.indptr), weights.shape), weights


def programs(
    connectivities: sparse.csr_matrix,
    resolutions: Sequence[float],
    *,
    min_genes: int = 5,
    flavor: str = "igraph",
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Leiden groups of a graph that are large enough, at each resolution.

    Returns
    -------
    found : int32 (M, n_resolutions)
        Program of each gene, 0 the largest (of equals the one of the first gene); -1: none.
    modularities : float64 (n_resolutions,)
        Of all groups, small ones too, at resolution 1.
    """
    communities = leiden(connectivities, resolutions=resolutions, rng=seed, flavor=flavor)
    found = np.column_stack([_by_size(row, min_genes) for row in communities]).astype(np.int32)
    return found, np.array([_modularity(connectivities, row) for row in communities])


def usual_resolution(n_genes: int) -> float:
    """At which programs have about ten genes: groups of one size part at a resolution that grows with the graph."""
    return float(f"{n_genes / _PER_RESOLUTION:.3g}")


def best_resolution(found: np.ndarray, resolutions: Sequence[float]) -> int:
    """Column of the resolution with the most programs, of equals the lowest: the finest that is not yet crumbs."""
    counts = found.max(axis=0, initial=-1)
    return min(range(len(resolutions)), key=lambda i: (-counts[i], resolutions[i]))


def coarser(
    connectivities: sparse.csr_matrix, resolution: float, *, min_genes: int, flavor: str, seed: int
) -> float | None:
    """A resolution at which there are programs, found by halving; None: there is none down to a thousandth."""
    while resolution > 1e-3:
        resolution /= 2
        found, _ = programs(connectivities, [resolution], min_genes=min_genes, flavor=flavor, seed=seed)
        if (found >= 0).any():
            return float(f"{resolution:.2g}")
    return None


def _by_size(communities: np.ndarray, min_genes: int) -> np.ndarray:
    """Communities numbered by falling size, -1 where they are too small."""
    _, first, which, sizes = np.unique(communities, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return np.where(sizes[which] >= min_genes, number[which], -1)


def _modularity(graph: sparse.csr_matrix, communities: np.ndarray) -> float:
    """Newman's: weight within communities, less what their degrees alone would give."""
    degrees = np.asarray(graph.sum(axis=1), np.float64).ravel()
    total = degrees.sum()
    if total == 0:
        return 0.0
    rows = np.repeat(communities, np.diff(graph.indptr))
    within = graph.data[rows == communities[graph.indices]].sum(dtype=np.float64) / total
    shares = np.bincount(communities, weights=degrees) / total
    return float(within - (shares**2).sum())

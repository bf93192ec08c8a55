"""How well batches are mixed: ASW_batch, graph connectivity and their mean AvgBATCH (preprint, S.5.3).

Arrays in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import silhouette_samples, silhouette_score

from scgpt_tl.metrics import _checks
from scgpt_tl.metrics._clustering import neighbour_graph


@dataclass(frozen=True)
class BatchScores:
    """What `batch_scores` found. All scores are higher where better, between 0 and 1."""

    asw_batch: float
    """`1 - |ASW_B|` over all cells, as S.5.3 writes it."""
    graph_connectivity: float
    asw_batch_per_type: float
    """The same within each cell type, as scib has it; not part of AvgBATCH here. NaN where no type has two batches."""
    n_cells: int
    """Cells with a label and a batch: those that were scored."""
    n_left_out: int
    """Cells left out for want of a label or a batch."""

    @property
    def avg_batch(self) -> float:
        """Mean of ASW_batch and graph connectivity."""
        return avg_batch(self.asw_batch, self.graph_connectivity)

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, scores under the names that tables show."""
        return {
            "ASW_batch": self.asw_batch,
            "GraphConn": self.graph_connectivity,
            "AvgBATCH": self.avg_batch,
            "ASW_batch (per type)": self.asw_batch_per_type,
            "n_cells": self.n_cells,
            "n_left_out": self.n_left_out,
        }


def asw_batch(embedding: Any, batches: Any) -> float:
    """`1 - |ASW_B|`: one less the average silhouette width of the batches over all cells (S.5.3).

    1 where batches lie in each other, 0 where they lie far apart. Cell types that not every batch holds lower it: see
    `asw_batch_per_type`.

    Parameters
    ----------
    embedding
        `(n, D)`, Euclidean distances.
    batches
        `(n,)`; cells without one are left out.

    Raises
    ------
    ValueError
        With fewer than two batches, or as many batches as cells.
    """
    points, codes, _ = _checks.labelled(embedding, batches, what="batches")
    return float(1 - abs(silhouette_score(points, codes)))


def asw_batch_per_type(embedding: Any, labels: Any, batches: Any) -> float:
    """Mean over cell types of the mean over their cells of `1 - |s|`, s of the batches (Luecken et al. 2022).

    This is how scib, which the published package calls, takes the score that S.5.3 writes as `1 - |ASW_B|`:
    silhouettes within each type, and the absolute value of each cell's before the mean. Types of one batch, or of as
    many batches as cells, are left out; NaN where that leaves none.

    Parameters
    ----------
    embedding
        `(n, D)`, Euclidean distances.
    labels, batches
        `(n,)`; cells without either are left out.
    """
    points, types, codes, _ = _checks.both(embedding, labels, batches)
    return _per_type(points, types, codes)


def graph_connectivity(graph: Any, labels: Any) -> float:
    """Mean over cell types of the share of their cells in the largest connected component of their subgraph (S.5.3).

    `GraphConn = 1 / |C| * sum over c of |LCC(G_c)| / N_c`, where G_c holds the cells of type c and the edges
    between them of the kNN graph of all cells, as Luecken et al. 2022 have it.

    Parameters
    ----------
    graph
        `(n, n)` sparse; two cells are joined where either entry is not zero.
    labels
        `(n,)`; cells without one are left out, and their edges with them.

    Raises
    ------
    ValueError
        On shapes that do not agree, or no label at all.
    """
    edges = csr_array(graph)
    codes, found = _checks.codes(labels)
    if edges.shape != (len(codes), len(codes)) or not len(found):
        msg = (
            f"a graph of {edges.shape} cells needs as many labels, found {len(codes)} with {len(found)} distinct names"
        )
        raise ValueError(msg)
    shares = np.empty(len(found))
    for code in range(len(found)):
        rows = np.flatnonzero(codes == code)
        _, parts = connected_components(edges[rows][:, rows], directed=False)
        shares[code] = np.bincount(parts).max() / len(rows)
    return float(shares.mean())


def avg_batch(asw_batch: float, graph_connectivity: float) -> float:
    """AvgBATCH of S.5.3, the mean of the two."""
    return (asw_batch + graph_connectivity) / 2


def overall(avg_bio: float, avg_batch: float) -> float:
    """Overall of S.5.3: 0.6 AvgBIO + 0.4 AvgBATCH (printed there with "AvgBATCH" on its left by mistake)."""
    return 0.6 * avg_bio + 0.4 * avg_batch


def batch_scores(embedding: Any, labels: Any, batches: Any, *, n_neighbors: int = 15, graph: Any = None) -> BatchScores:
    """ASW_batch and graph connectivity of an embedding, as in S.5.3.

    Parameters
    ----------
    embedding
        `(n, D)`, finite.
    labels
        `(n,)` cell types.
    batches
        `(n,)`. Cells without a label or a batch (NaN, None, empty) are left out before the graph is built, and counted.
    n_neighbors
        Neighbours in the graph.
    graph
        `(n, n)` neighbour graph of all cells, where it has been made; then no cell may lack a label or a batch.

    Raises
    ------
    ValueError
        On shapes that do not agree, values that are not finite, or fewer than two batches.
    """
    points, types, codes, n_left_out = _checks.both(embedding, labels, batches)
    if graph is None:
        graph = neighbour_graph(points, n_neighbors=n_neighbors)
    elif n_left_out:
        msg = f"{n_left_out} cells have no label or no batch: leave them out before the graph is made"
        raise ValueError(msg)
    return BatchScores(
        asw_batch=float(1 - abs(silhouette_score(points, codes))),
        graph_connectivity=graph_connectivity(graph, types),
        asw_batch_per_type=_per_type(points, types, codes),
        n_cells=len(points),
        n_left_out=n_left_out,
    )


def _per_type(points: np.ndarray, types: np.ndarray, codes: np.ndarray) -> float:
    means = []
    for one in np.unique(types):
        rows = types == one
        n_batches = len(np.unique(codes[rows]))
        if 2 <= n_batches < rows.sum():
            means.append(1 - np.abs(silhouette_samples(points[rows], codes[rows])).mean())
    return float(np.mean(means)) if means else float("nan")

"""How well an embedding keeps cell types apart: NMI, ARI, ASW and their mean AvgBIO (preprint, S.5.3).

Arrays in, numbers out. Clusters are Leiden's on scanpy's neighbour graph; the preprint's text says Louvain, whose
successor Leiden is.
"""

from __future__ import annotations

import random  # noqa: TID251 - igraph takes no other kind of generator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import igraph
import numpy as np
import pandas as pd
from scipy.sparse import csr_array, triu
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from scgpt_tl._compat import need
from scgpt_tl.metrics import _checks

#: 0.1, 0.2 ... 2.0, as in S.5.3.
RESOLUTIONS: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(1, 21))


@dataclass(frozen=True)
class ClusterScores:
    """What `cluster_scores` found. All four scores are higher where better, at most 1."""

    nmi: float
    ari: float
    asw: float
    resolution: float
    """Leiden resolution with the best NMI; the median one over several seeds."""
    n_clusters: int
    n_cells: int
    """Cells with a label: those that were scored."""
    n_unlabelled: int
    """Cells left out for want of a label."""

    @property
    def avg_bio(self) -> float:
        """Mean of NMI, ARI and ASW."""
        return avg_bio(self.nmi, self.ari, self.asw)

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, scores under the names that tables show."""
        return {
            "NMI": self.nmi,
            "ARI": self.ari,
            "ASW": self.asw,
            "AvgBIO": self.avg_bio,
            "resolution": self.resolution,
            "n_clusters": self.n_clusters,
            "n_cells": self.n_cells,
            "n_unlabelled": self.n_unlabelled,
        }


def nmi(labels: Any, clusters: Any) -> float:
    """Normalised mutual information of two labellings `(n,)`, normalised by the mean of their entropies.

    0 where the clusters tell nothing of the labels, 1 where they are the same partition. Cells without label are left
    out.

    Raises
    ------
    ValueError
        Where no cell has a label, a labelled cell has no cluster, or the lengths do not agree.
    """
    codes, found = _paired(labels, clusters)
    return float(normalized_mutual_info_score(codes, found))


def ari(labels: Any, clusters: Any) -> float:
    """Adjusted Rand index of two labellings `(n,)`: 1 for the same partition, 0 on average for a random one.

    Cells without label are left out.

    Raises
    ------
    ValueError
        Where no cell has a label, a labelled cell has no cluster, or the lengths do not agree.
    """
    codes, found = _paired(labels, clusters)
    return float(adjusted_rand_score(codes, found))


def asw_label(embedding: Any, labels: Any) -> float:
    """Average silhouette width of the labels, (ASW + 1) / 2, so that it runs from 0 to 1 (S.5.3).

    Parameters
    ----------
    embedding
        `(n, D)`, Euclidean distances.
    labels
        `(n,)`; cells without label are left out.

    Raises
    ------
    ValueError
        With fewer than two labels, or as many labels as cells.
    """
    points, codes, _ = _checks.labelled(embedding, labels)
    return float((silhouette_score(points, codes) + 1) / 2)


def avg_bio(nmi: float, ari: float, asw: float) -> float:
    """AvgBIO of S.5.3, the mean of the three."""
    return (nmi + ari + asw) / 3


def neighbour_graph(embedding: Any, *, n_neighbors: int = 15, exact: bool = False) -> csr_array:
    """Scanpy's fuzzy kNN graph of an embedding.

    Parameters
    ----------
    embedding
        `(n, D)`, finite.
    n_neighbors
        Neighbours of a cell, itself included (scanpy's convention); fewer where there are fewer cells.
    exact
        Look at all pairs, where scanpy would take an approximation from 8,192 points on.

    Returns
    -------
    Symmetric weights in (0, 1], `(n, n)`.

    Raises
    ------
    ValueError
        On another shape, values that are not finite, or fewer than 2 neighbours.
    """
    import anndata as ad
    import scanpy as sc

    points = _checks.points(embedding)
    check_neighbors(n_neighbors)
    holder = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(points)).astype(str)))
    holder.obsm["emb"] = points
    k = min(n_neighbors, len(points) - 1)
    transformer = "sklearn" if exact else None
    sc.pp.neighbors(holder, n_neighbors=k, use_rep="emb", random_state=0, transformer=transformer)
    return csr_array(holder.obsp["connectivities"])


def leiden(
    graph: Any, *, resolutions: Sequence[float] = RESOLUTIONS, rng: int = 0, flavor: str = "igraph"
) -> np.ndarray:
    """Leiden communities by modularity, as scanpy's flavors find them.

    Parameters
    ----------
    graph
        Symmetric sparse weights, `(n, n)`.
    resolutions
        One clustering each.
    rng
        Seed, taken afresh for each resolution, so a clustering does not depend on which others were asked for. igraph's
        generator is global: do not call this from several threads at once. It cannot be read, only set: afterwards it
        is Python's `random`, igraph's default, whatever the caller had set before.
    flavor
        "igraph": two iterations. "leidenalg": until nothing changes, by the package of that name.

    Returns
    -------
    `(len(resolutions), n)` int32 community numbers.

    Raises
    ------
    ImportError
        leidenalg is asked for and not installed.
    """
    upper = triu(graph).tocoo()  # scanpy gives every edge twice; modularity is the same either way
    edges = np.column_stack([upper.row, upper.col])
    drawn = igraph.Graph(n=graph.shape[0], edges=edges, edge_attrs={"weight": upper.data})
    found = np.empty((len(resolutions), graph.shape[0]), dtype=np.int32)
    if flavor == "leidenalg":
        other = need("leidenalg")
        how = {"weights": upper.data.astype(float).tolist(), "n_iterations": -1, "seed": rng % 2**31}
        for row, resolution in enumerate(resolutions):
            kind = other.RBConfigurationVertexPartition
            found[row] = other.find_partition(drawn, kind, resolution_parameter=resolution, **how).membership
        return found
    try:
        for row, resolution in enumerate(resolutions):
            igraph.set_random_number_generator(random.Random(rng))  # noqa: S311 - no secret
            found[row] = drawn.community_leiden(
                objective_function="modularity", weights="weight", resolution=resolution, n_iterations=2
            ).membership
    finally:
        igraph.set_random_number_generator(random)
    return found


def cluster_scores(
    embedding: Any,
    labels: Any,
    *,
    resolutions: Sequence[float] = RESOLUTIONS,
    n_neighbors: int = 15,
    seeds: Sequence[int] = (0,),
    graph: Any = None,
) -> ClusterScores:
    """NMI, ARI and ASW of an embedding against known labels, as in S.5.3.

    Clusters are found at every resolution and those with the best NMI are kept; ARI is taken on the same clusters. The
    choice is made with the labels in hand, so the scores say how much of the labelling an embedding holds, not what an
    unaided clustering would find.

    Parameters
    ----------
    embedding
        `(n, D)`, finite.
    labels
        `(n,)`. Cells whose label is missing (NaN, None, empty) are left out before the graph is built, and counted.
    resolutions
        Leiden resolutions to try.
    n_neighbors
        Neighbours in the graph.
    seeds
        Leiden seeds; medians over them are given.
    graph
        `(n, n)` neighbour graph of all cells, where it has been made; then no cell may lack a label.

    Raises
    ------
    ValueError
        On shapes that do not agree, values that are not finite, fewer than two labels, fewer than 2 neighbours, or no
        resolution or seed.
    """
    resolutions, seeds = several("resolutions", resolutions), several("seeds", seeds)
    points, codes, n_unlabelled = _checks.labelled(embedding, labels)
    if graph is None:
        graph = neighbour_graph(points, n_neighbors=n_neighbors)
    elif n_unlabelled:
        msg = f"{n_unlabelled} cells have no label: leave them out before the graph is made"
        raise ValueError(msg)
    best = [_best(graph, codes, resolutions, seed) for seed in seeds]
    return ClusterScores(
        nmi=median(one[0] for one in best),
        ari=median(one[1] for one in best),
        asw=float((silhouette_score(points, codes) + 1) / 2),
        resolution=median(one[2] for one in best),
        n_clusters=int(median(one[3] for one in best)),
        n_cells=len(points),
        n_unlabelled=n_unlabelled,
    )


def _best(
    graph: csr_array, codes: np.ndarray, resolutions: Sequence[float], seed: int
) -> tuple[float, float, float, int]:
    """NMI, ARI, resolution and cluster count of the clustering with the highest NMI (the coarsest of equals)."""
    found = leiden(graph, resolutions=resolutions, rng=seed)
    scores = [normalized_mutual_info_score(codes, row) for row in found]
    top = int(np.argmax(scores))
    rand = float(adjusted_rand_score(codes, found[top]))
    return float(scores[top]), rand, float(resolutions[top]), int(found[top].max()) + 1


def _paired(labels: Any, clusters: Any) -> tuple[np.ndarray, np.ndarray]:
    codes, _ = _checks.codes(labels)
    found, _ = _checks.codes(clusters)
    if len(codes) != len(found):
        msg = f"{len(codes)} labels but {len(found)} cluster numbers"
        raise ValueError(msg)
    _checks.refuse_unlabelled(codes)
    kept = codes >= 0
    if missing := int((found[kept] < 0).sum()):
        msg = f"{missing} of {kept.sum()} labelled cells have no cluster: leave them out, or cluster them too"
        raise ValueError(msg)
    return codes[kept], found[kept]


def several(name: str, values: Any) -> list[Any]:
    """The values of an argument, of which there must be one; a number is a list of one."""
    found = [values] if np.ndim(values) == 0 and not hasattr(values, "__iter__") else list(values)
    if not found:
        msg = f"{name} is empty: give at least one"
        raise ValueError(msg)
    return found


def check_neighbors(n_neighbors: Any) -> None:
    """Refuse what is no size of a neighbourhood."""
    if not isinstance(n_neighbors, int | np.integer) or n_neighbors < 2:
        msg = f"n_neighbors={n_neighbors!r}: a whole number of at least 2 is needed, the cell itself included"
        raise ValueError(msg)

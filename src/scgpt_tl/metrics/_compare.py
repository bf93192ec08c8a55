"""Several embeddings of the same cells side by side, and beside the simple methods, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tl._compat import need
from scgpt_tl._slots import MAKERS
from scgpt_tl.metrics import _checks
from scgpt_tl.metrics._batches import batch_scores, overall
from scgpt_tl.metrics._clustering import RESOLUTIONS, check_neighbors, cluster_scores, neighbour_graph, several
from scgpt_tl.metrics._mixing import mixing_scores
from scgpt_tl.metrics._verdict import verdict
from scgpt_tl.metrics.baselines import EMBEDDINGS, NEEDS

if TYPE_CHECKING:
    from anndata import AnnData

_COUNTS = ("n_clusters", "n_cells", "n_unlabelled")


def compare(
    adata: AnnData,
    *,
    embeddings: Mapping[str, str] | Sequence[str],
    labels_key: str,
    batch_key: str | None = None,
    baselines: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    layer: str | None = None,
    extended: bool = False,
    resolutions: Sequence[float] = RESOLUTIONS,
    n_neighbors: int = 15,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> pd.DataFrame:
    """Score embeddings against labels, and against batches where there are some, as in the preprint's S.5.3.

    Parameters
    ----------
    adata
        Holds the embeddings in `.obsm` and the labels in `.obs`; nothing is written to it.
    embeddings
        Name to show -> key of `.obsm`, or keys alone. The first one is judged against the others.
    labels_key
        Column of `.obs` with the true labels; cells without one are left out and counted.
    batch_key
        Column of `.obs` with the batches; cells without one are left out and counted too. With it the mixing of
        batches is scored, and Overall is what is judged.
    baselines
        Embeddings to make on the spot and to score with the others: "hvg_pca", and with `batch_key` "harmony" and
        "scvi". A mapping gives each one's options, {"scvi": {"epochs": 50}}; see `metrics.harmony` and its neighbours.
    layer
        Layer with the values that baselines are made of, counts for scVI; None: `.X`.
    extended
        Whether today's scores of batch mixing are added: BRAS, iLISI, cLISI (extra `scib`), kBET and ASW_batch within
        cell types.
    resolutions
        Leiden resolutions to try; the best NMI counts.
    n_neighbors
        Neighbours in the graph.
    seeds
        Leiden seeds; medians over them are given.

    Returns
    -------
    One row per embedding (index `embedding`) with the columns NMI, ARI, ASW, AvgBIO (their mean); with `batch_key`
    ASW_batch, GraphConn, AvgBATCH (their mean) and Overall (0.6 AvgBIO + 0.4 AvgBATCH); with `extended` the scores
    named there; resolution, n_clusters, n_cells and n_unlabelled. `.attrs["verdict"]` is one plain sentence.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ImportError
        Where a baseline or score needs a package that is absent; the message is the line that installs it.
    ValueError
        Where no embedding, resolution or seed is asked for, a baseline is unknown or needs batches, an embedding holds
        no numbers, or the labels cannot be scored.
    """
    embeddings = by_name(embeddings)
    wanted = _asked(embeddings, baselines, batch_key, extended=extended)
    resolutions, seeds = several("resolutions", resolutions), several("seeds", seeds)
    check_neighbors(n_neighbors)
    column(adata, labels_key)
    column(adata, batch_key, "batch_key")
    for key in embeddings.values():
        if key not in adata.obsm:
            maker = f"; {MAKERS[key]} makes it" if key in MAKERS else ""
            msg = f"adata.obsm has no {key!r}{maker}; there are {list(adata.obsm.keys())}"
            raise KeyError(msg)
    labels = _checks.types(adata.obs[labels_key])
    batches = None if batch_key is None else _checks.names(adata.obs[batch_key])
    kept = pd.notna(labels) if batches is None else pd.notna(labels) & pd.notna(batches)
    found = {name: _checks.numbers(adata.obsm[key]) for name, key in embeddings.items()}
    for points in found.values():  # before any long work
        if batches is None:
            _checks.labelled(np.where(kept[:, None], points, 0), labels)
        else:
            _checks.both(np.where(kept[:, None], points, 0), labels, batches)
    found |= _made(adata, wanted, layer, batches)
    rows = {}
    for name, points in found.items():
        rows[name] = _row(points[kept], labels[kept], None if batches is None else batches[kept], extended=extended,
                          resolutions=resolutions, n_neighbors=n_neighbors, seeds=seeds)  # fmt: skip
        rows[name]["n_unlabelled"] = int((~kept).sum())
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("embedding")
    table = table.astype(dict.fromkeys(_COUNTS, int))
    table.attrs["verdict"] = verdict(table, by="AvgBIO" if batches is None else "Overall")
    return table


def column(adata: AnnData, key: str | None, argument: str = "labels_key") -> None:
    """Refuse a column that `.obs` has not; None is no column."""
    if key is not None and key not in adata.obs:
        msg = f"adata.obs has no column {key!r}; {argument} may be one of {list(adata.obs.columns)}"
        raise KeyError(msg)


def by_name(keys: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Name to show -> key; a key that is given alone, or in a list, is its own name."""
    if isinstance(keys, Mapping):
        return dict(keys)
    return {key: key for key in ([keys] if isinstance(keys, str) else keys)}


def chosen(
    baselines: Sequence[str] | Mapping[str, Mapping[str, Any]], known: Mapping[str, tuple[str, Any]], taken: Any
) -> dict[str, dict[str, Any]]:
    """Options of each baseline asked for; names that are unknown, or shown already, are refused."""
    if isinstance(baselines, str):
        msg = f"baselines={baselines!r} is one name: give a sequence, ({baselines!r},)"
        raise ValueError(msg)
    options = {name: dict(baselines[name]) if isinstance(baselines, Mapping) else {} for name in baselines}
    for name in options:
        if name not in known:
            msg = f"no baseline {name!r}; there are {', '.join(map(repr, known))}"
            raise ValueError(msg)
        if known[name][0] in taken:
            msg = f"{known[name][0]!r} is asked for twice: as a result in a slot and as the baseline {name!r}"
            raise ValueError(msg)
    return options


def _asked(
    embeddings: Mapping[str, str], baselines: Any, batch_key: str | None, *, extended: bool
) -> dict[str, dict[str, Any]]:
    """Options of the baselines, after all that can be said without looking at the data."""
    if not embeddings:
        msg = "embeddings is empty: give {name: key of adata.obsm}, the one to be judged first"
        raise ValueError(msg)
    options = chosen(baselines, EMBEDDINGS, embeddings)
    unmixed = [name for name in options if name in NEEDS] + ["extended=True"] * extended
    if batch_key is None and unmixed:
        msg = f"{unmixed[0]} is about batches: name their column with batch_key="
        raise ValueError(msg)
    for name in options:
        if name in NEEDS:
            need(NEEDS[name][0], extra=NEEDS[name][1])
    if extended:
        need("scib_metrics", extra="scib")
    return options


def _made(
    adata: AnnData, wanted: Mapping[str, Mapping[str, Any]], layer: str | None, batches: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The baselines' embeddings of the cells that have a batch, other rows NaN."""
    if not wanted:
        return {}
    rows = np.arange(adata.n_obs) if batches is None else np.flatnonzero(pd.notna(batches))
    X = expression(adata, layer)[rows]
    made = {}
    for name, options in wanted.items():
        title, make = EMBEDDINGS[name]
        embedding = make(X, batches[rows], **options) if name in NEEDS and batches is not None else make(X, **options)
        made[title] = np.full((adata.n_obs, embedding.shape[1]), np.nan, dtype=np.float32)
        made[title][rows] = embedding
    return made


def expression(adata: AnnData, layer: str | None) -> Any:
    """`.X` or a layer in memory, `(n, genes)` CSR; a view, a backed file and dask are read too."""
    from scgpt_tl.pp._blocks import open_layer

    return open_layer(adata, layer).take(range(adata.n_obs))


def _row(
    points: np.ndarray,
    labels: np.ndarray,
    batches: np.ndarray | None,
    *,
    extended: bool,
    n_neighbors: int,
    **leiden: Any,
) -> dict[str, float | int]:
    """Scores of one embedding, in the table's order."""
    graph = neighbour_graph(points, n_neighbors=n_neighbors)
    bio = cluster_scores(points, labels, graph=graph, **leiden)
    scores = bio.to_dict()
    row = {name: scores.pop(name) for name in ("NMI", "ARI", "ASW", "AvgBIO")}
    if batches is not None:
        mixed = batch_scores(points, labels, batches, graph=graph)
        row |= {"ASW_batch": mixed.asw_batch, "GraphConn": mixed.graph_connectivity, "AvgBATCH": mixed.avg_batch}
        row["Overall"] = overall(bio.avg_bio, mixed.avg_batch)
        if extended:
            row["ASW_batch (per type)"] = mixed.asw_batch_per_type
            today = mixing_scores(points, labels, batches)
            row |= {"BRAS": today.bras, "iLISI": today.ilisi, "cLISI": today.clisi, "kBET": today.kbet}
    return row | scores

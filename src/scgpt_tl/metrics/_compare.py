"""Several embeddings of the same cells side by side: the one function of this room that takes an AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from scgpt_tl._slots import SLOTS
from scgpt_tl.metrics._clustering import RESOLUTIONS, cluster_scores

if TYPE_CHECKING:
    from anndata import AnnData

#: Differences of AvgBIO below this are called level: see docs/evaluation.md for how much seeds and cells move it.
LEVEL = 0.01

_MAKERS = {
    SLOTS.embedding: "scgpt_tl.tl.scgpt_embed(adata)",
    "X_pca": "scanpy.pp.pca(adata)",
}


def compare(
    adata: AnnData,
    *,
    embeddings: Mapping[str, str],
    labels_key: str,
    resolutions: Sequence[float] = RESOLUTIONS,
    n_neighbors: int = 15,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
) -> pd.DataFrame:
    """Score embeddings against labels, as in the preprint's S.5.3.

    Parameters
    ----------
    adata
        Holds the embeddings in `.obsm` and the labels in `.obs`; nothing is written to it.
    embeddings
        Name to show -> key of `.obsm`. The first one is judged against the others.
    labels_key
        Column of `.obs` with the true labels; cells without one are left out and counted.
    resolutions
        Leiden resolutions to try; the best NMI counts.
    n_neighbors
        Neighbours in the graph.
    seeds
        Leiden seeds; medians over them are given.

    Returns
    -------
    One row per embedding (index `embedding`) with the columns NMI, ARI, ASW, AvgBIO (their mean), resolution,
    n_clusters, n_cells and n_unlabelled. `.attrs["verdict"]` is one plain sentence.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ValueError
        Where no embedding is asked for, or the labels cannot be scored.
    """
    if not embeddings:
        msg = "embeddings is empty: give {name: key of adata.obsm}, the one to be judged first"
        raise ValueError(msg)
    if labels_key not in adata.obs:
        msg = f"adata.obs has no column {labels_key!r}; labels_key may be one of {list(adata.obs.columns)}"
        raise KeyError(msg)
    for key in embeddings.values():
        if key not in adata.obsm:
            maker = f"; {_MAKERS[key]} makes it" if key in _MAKERS else ""
            msg = f"adata.obsm has no {key!r}{maker}; there are {list(adata.obsm.keys())}"
            raise KeyError(msg)
    labels = adata.obs[labels_key]
    rows = {
        name: cluster_scores(
            adata.obsm[key], labels, resolutions=resolutions, n_neighbors=n_neighbors, seeds=seeds
        ).to_dict()
        for name, key in embeddings.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("embedding")
    table = table.astype({"n_clusters": int, "n_cells": int, "n_unlabelled": int})
    table.attrs["verdict"] = verdict(table)
    return table


def verdict(table: pd.DataFrame) -> str:
    """One sentence: where the first row's AvgBIO stands beside each other row's."""
    subject, *others = table.index
    own = float(table.loc[subject, "AvgBIO"])
    parts = []
    for other in others:
        theirs = float(table.loc[other, "AvgBIO"])
        gap = own - theirs
        stand = "level with" if abs(gap) < LEVEL else "above" if gap > 0 else "below"
        parts.append(f"{stand} {other} ({theirs:.2f})")
    head = f"{subject}: AvgBIO {own:.2f} on {int(table.loc[subject, 'n_cells']):,} labelled cells"
    return head + (", " + " and ".join(parts) if parts else "") + "."

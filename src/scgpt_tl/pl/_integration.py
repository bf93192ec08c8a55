"""Batches and types before and after integration, side by side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from scgpt_tl._slots import MAKERS, SLOTS
from scgpt_tl.get._labels import names_of
from scgpt_tl.pl._embedding import embedding
from scgpt_tl.pl._style import listed, plain

if TYPE_CHECKING:
    from anndata import AnnData

_LEAST = 10  # cells that a neighbour graph is worth drawing of


def integration(
    adata: AnnData,
    *,
    batch_key: str,
    labels_key: str | None = None,
    keys: str | Sequence[str] = (SLOTS.embedding, SLOTS.integrated),
    titles: str | Sequence[str] | None = None,
    max_cells: int = 20_000,
    rng: int = 0,
    ax: Any = None,
) -> np.ndarray:
    """Draw embeddings one below the other, cells coloured by batch on the left and by type on the right.

    After a good integration batches lie mixed and types stay apart. A UMAP may mislead on either, which is why
    `scgpt_tl.metrics.compare` scores the embeddings themselves.

    Parameters
    ----------
    adata
        Holds the embeddings in `.obsm` and the columns in `.obs`; nothing is written to it.
    batch_key
        Column of `.obs` with the batches.
    labels_key
        Column of `.obs` with the types. None: batches alone.
    keys
        Keys of `.obsm`, as a rule before and after. One of two columns is drawn as it stands; of any other a UMAP is
        computed, by scanpy from 15 neighbours.
    titles
        Name of each embedding to show; its key where none are given.
    max_cells
        Of more cells, so many are drawn at random, the same ones in each panel.
    rng
        Seed of that choice and of the UMAPs.
    ax
        Axes to draw into, a row for each embedding and a column for each colouring; a new figure where none are given.

    Returns
    -------
    Array of Axes, `(embeddings, colourings)`.

    Raises
    ------
    KeyError
        Where an embedding or a column is missing; the message names what makes it.
    ValueError
        Where there are fewer than 10 cells, values that are not finite, numbers with fractions in place of names, or
        Axes and titles of another number.
    """
    columns = list(dict.fromkeys(key for key in (batch_key, labels_key) if key is not None))
    keys = listed(keys)
    names = [plain(key) for key in keys] if titles is None else listed(titles)
    _check(adata, columns, keys, names)
    panels = _panels(ax, len(keys), len(columns))
    shown = _shown(adata, columns, keys, max_cells, rng)
    for row, (key, name) in enumerate(zip(keys, names, strict=True)):
        embedding(
            shown, color=columns, basis=key, title=[f"{name}, by {plain(column)}" for column in columns], ax=panels[row]
        )
        for panel in panels[row]:
            drawn = adata.obsm[key].shape[1] == 2
            panel.set(xlabel="" if drawn else "UMAP 1", ylabel="" if drawn else "UMAP 2")
            if row < len(keys) - 1 and panel.get_legend() is not None:
                panel.get_legend().remove()  # one legend below each column serves all its panels
    return panels


def _check(adata: AnnData, columns: list[str], keys: list[str], names: list[str]) -> None:
    if not keys or len(keys) != len(names):
        msg = f"{len(keys)} key(s) and {len(names)} title(s): each embedding needs one"
        raise ValueError(msg)
    for column in columns:
        if column not in adata.obs:
            msg = f"adata.obs has no column {column!r}; there are {list(adata.obs.columns)}"
            raise KeyError(msg)
    for key in keys:
        if key not in adata.obsm:
            maker = f"; {MAKERS[key]} makes it" if key in MAKERS else ""
            msg = f"adata.obsm has no {key!r}{maker}; there are {list(adata.obsm.keys())}"
            raise KeyError(msg)
        if not np.isfinite(np.asarray(adata.obsm[key])).all():
            msg = f"adata.obsm[{key!r}] has NaN or infinite values; leave out the cells that have them"
            raise ValueError(msg)
    if adata.n_obs < _LEAST:
        msg = f"{adata.n_obs} cells; at least {_LEAST} are needed to draw how they mix"
        raise ValueError(msg)


def _panels(ax: Any, n_rows: int, n_columns: int) -> np.ndarray:
    if ax is None:
        size = (4.8 * n_columns, 4.2 * n_rows + 0.8)
        return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")[1]
    given = np.asarray(ax, dtype=object)
    if given.size != n_rows * n_columns:
        msg = f"{given.size} Axes for {n_rows} embedding(s) in {n_columns} colouring(s); give one for each, or none"
        raise ValueError(msg)
    return given.reshape(n_rows, n_columns)


def _shown(adata: AnnData, columns: list[str], keys: Sequence[str], max_cells: int, rng: int) -> AnnData:
    """An object of our own with the cells to be drawn: their columns as names, and two dimensions of each embedding."""
    import anndata as ad
    import pandas as pd

    rows = np.arange(adata.n_obs)
    if len(rows) > max_cells:
        rows = np.sort(np.random.default_rng(rng).choice(len(rows), max_cells, replace=False))
    obs = pd.DataFrame({column: names_of(adata, column) for column in columns}).iloc[rows]
    shown = ad.AnnData(obs=obs.set_axis(pd.RangeIndex(len(rows)).astype(str)))
    for key in keys:
        points = np.asarray(adata.obsm[key])[rows]
        shown.obsm[key] = points if points.shape[1] == 2 else _umap(points, rng)
    return shown


def _umap(points: np.ndarray, rng: int) -> np.ndarray:
    import anndata as ad
    import pandas as pd
    import scanpy as sc

    holder = ad.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(points)).astype(str)), obsm={"emb": points})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # umap tells that a seed makes it run in one thread
        sc.pp.neighbors(holder, n_neighbors=min(15, len(points) - 1), use_rep="emb", random_state=rng)
        sc.tl.umap(holder, random_state=rng)
    return holder.obsm["X_umap"]

"""Which programs are active in which groups of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS
from scgpt_tl.get import programs_df
from scgpt_tl.get._network import known, network
from scgpt_tl.pl._style import SHARES, listed, one_axes, plain, widest, wrapped

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_CELL = (0.46, 0.24)  # inches


def programs(
    adata: AnnData,
    *,
    programs: str | Sequence[str] | None = None,
    key: str = SLOTS.network,
    n_top: int = 40,
    n_genes: int = 4,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how active gene programs (rows) are in groups of cells (columns).

    Each row is coloured from its lowest to its highest group; what these are stands on the right, so that a program
    that hardly differs is not taken for one that does. Rows stand by the group in which they are most active.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn` with `method="embedding"` and `groupby`; nothing is written to it.
    programs
        Which ones. None: the largest.
    key
        The result's name: the `key_added` of the call.
    n_top
        Programs to draw where none are named.
    n_genes
        Genes that a row is labelled with, those that hold its program together.
    title
        Instead of one that tells how many programs are drawn.
    ax
        Axes to draw into; a new figure, large enough for the names, where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where a slot or a program is missing; the message names what makes it.
    ValueError
        Where the network is not one of embeddings, or has no program.
    """
    genes, activity = programs_df(adata, key=key), _activity(adata, key)
    asked = (
        list(activity)[:n_top]
        if programs is None
        else known(map(str, listed(programs)), list(activity), key, "program")
    )
    if not asked:
        msg = f"{key!r} has no program to draw: take a lower resolution= or min_genes= in scgpt_tl.tl.scgpt_grn"
        raise ValueError(msg)
    shown = activity[asked].T
    shown = shown.iloc[np.lexsort([-shown.max(axis=1), shown.to_numpy().argmax(axis=1)])]
    low, high = shown.min(axis=1), shown.max(axis=1)
    span = (high - low).where(high > low, 1.0)
    rows, columns = [plain(_label(genes, name, n_genes)) for name in shown.index], wrapped(shown.columns, 22)
    size = (_CELL[0] * len(columns) + 0.078 * widest(rows) + 2.6, _CELL[1] * len(rows) + 0.08 * widest(columns) + 0.9)
    ax = one_axes(ax, size)
    drawn = ax.pcolormesh(shown.sub(low, axis=0).div(span, axis=0), cmap=SHARES, vmin=0, vmax=1, ec="white", lw=0.5)
    _axes(
        ax, rows, columns, [f"{a + 0.0:.2f} to {b + 0.0:.2f}" for a, b in zip(low.round(2), high.round(2), strict=True)]
    )
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02 + 0.95 / size[0], shrink=min(1, 2.4 / size[1]), aspect=12)
    bar.set_ticks([0, 1], labels=["lowest\ngroup", "highest\ngroup"], fontsize=8)
    bar.outline.set_visible(False)
    said = f"{len(asked)} of {activity.shape[1]} programs, mean activity" if title is None else title
    ax.set_title(said, fontsize=10)
    return ax


def _activity(adata: AnnData, key: str) -> pd.DataFrame:
    """Groups by programs, the mean over cells."""
    run = network(adata, key)
    if "activity" not in run:
        msg = f"{key!r} has no activity of groups: {MAKERS[SLOTS.network].removesuffix(')')}, groupby=...) computes it"
        raise KeyError(msg)
    found = pd.DataFrame(run["activity"])
    return found.set_axis(found.columns.astype(str), axis=1).set_axis(found.index.astype(str), axis=0)


def _label(genes: pd.DataFrame, name: str, n_genes: int) -> str:
    inside = genes["gene"][genes["program"].astype(str) == name]
    text = ", ".join(inside.iloc[:n_genes])
    return f"{name}: {text}" + (f" +{len(inside) - n_genes}" if len(inside) > n_genes else "")


def _axes(ax: Axes, rows: list[str], columns: list[str], ranges: list[str]) -> None:
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=8)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90 if widest(columns) > 5 else 0, fontsize=9)
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for row, text in enumerate(ranges):
        ax.text(1.01, row + 0.5, text, transform=ax.get_yaxis_transform(), va="center", fontsize=7, color="#444444")

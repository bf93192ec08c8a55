"""Pathways of gene programs, as dots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from scgpt_tl._slots import SLOTS
from scgpt_tl.get import enrichment_df
from scgpt_tl.get._network import known
from scgpt_tl.pl._style import listed, one_axes, widest, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

#: From pale, not white, that the least sure dot is seen as well.
_SURE = LinearSegmentedColormap.from_list("scgpt_sure", ["#C6E0F2", "#3A94CC", "#0B5A94", "#062A4A"])
_AREA = (18, 190)  # square points of the smallest and the largest overlap
_MOST = 80  # pathways that a page shows


def enrichment(
    adata: AnnData,
    *,
    key: str = SLOTS.enrichment,
    programs: str | Sequence[str] | None = None,
    cutoff: float = 0.05,
    n_top: int = 3,
    n_programs: int = 12,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw pathways (rows) that gene programs (columns) are enriched in: a dot for each pair that passes the cutoff.

    The larger a dot, the more genes both have; the darker, the smaller the adjusted p.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_enrich`; nothing is written to it.
    key
        The result's name: the `key_added` of the call.
    programs
        Which ones, or which lists of genes. None: those with the smallest adjusted p.
    cutoff
        Adjusted p at most; 0.05 is the preprint's (section 4.7).
    n_top
        Pathways of each program that get a row.
    n_programs
        Programs to draw where none are named.
    title
        Instead of one that tells what is drawn.
    ax
        Axes to draw into; a new figure, large enough for the names, where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where the result or a program is missing; the message names what makes it.
    ValueError
        Where no pathway passes the cutoff, or more than 80 would be drawn.
    """
    table = enrichment_df(adata, key=key, cutoff=cutoff)
    programs = None if programs is None else listed(programs)
    asked = _asked(enrichment_df(adata, key=key), table, programs, key, cutoff, n_programs)
    every = table["program"].nunique()
    table = table[table["program"].isin(asked)]
    rows = table.groupby("program", observed=True, sort=False).head(n_top)["pathway"].drop_duplicates().tolist()
    if len(rows) > _MOST:
        msg = f"{len(rows)} pathways are more than a page shows ({_MOST}): lower n_top=, or name programs="
        raise ValueError(msg)
    table = table[table["pathway"].isin(rows)]
    names, columns = wrapped(rows, 46), wrapped(asked, 16)
    lines = sum(1 + name.count("\n") for name in names)
    high = max(0.17 * lines + 0.08 * len(names) + 0.075 * widest(columns) + 0.7, 3.2)
    ax = one_axes(ax, (max(0.42 * len(columns) + 0.078 * widest(names) + 2.0, 5.0), high))
    _dots(ax, table, rows, asked, shrink=min(0.5, 1.6 / high))
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_xticks(range(len(columns)), columns, rotation=90 if widest(columns) > 3 else 0, fontsize=9)
    ax.set(xlim=(-0.7, len(columns) - 0.3), ylim=(len(names) - 0.4, -0.6), xlabel="program")
    said = f"{len(asked)} of {every} programs with a pathway, {n_top} surest of each" if title is None else title
    ax.set_title(said, fontsize=10)
    return ax


def _asked(
    tested: pd.DataFrame,
    passing: pd.DataFrame,
    programs: Sequence[str] | None,
    key: str,
    cutoff: float,
    n_programs: int,
) -> list[str]:
    """Programs to draw, in their own order."""
    there = passing["program"]
    if programs is not None:
        wanted = known(map(str, programs), tested["program"].cat.categories, key, "program")
        there = there[there.isin(wanted)]
    if not len(there):
        least = tested["adjusted"].min() if len(tested) else np.nan
        msg = f"{key!r} has no pathway at an adjusted p of {cutoff:g} (its smallest is {least:.2g}): raise cutoff=, or "
        msg += "test larger programs (a lower resolution= in scgpt_tl.tl.scgpt_grn) or other gene_sets="
        raise ValueError(msg)
    surest = passing.loc[there.index].groupby("program", observed=True)["adjusted"].min().sort_values(kind="stable")
    kept = set(surest.index if programs is not None else surest.index[:n_programs])
    return [name for name in tested["program"].cat.categories if name in kept]


def _dots(ax: Axes, table: pd.DataFrame, rows: list[str], columns: list[str], *, shrink: float) -> None:
    sure = -np.log10(table["adjusted"].clip(lower=1e-300).to_numpy())
    n = table["overlap"].to_numpy(dtype=float)
    x = [columns.index(name) for name in table["program"]]
    y = [rows.index(name) for name in table["pathway"]]
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    # logarithmic where one program's p would leave all others pale
    wide = sure.min() > 0 and sure.max() / sure.min() > 8
    norm = LogNorm() if wide else Normalize(None if np.ptp(sure) > 0 else 0)
    drawn = ax.scatter(x, y, s=_area(n, n), c=sure, cmap=_SURE, norm=norm, edgecolors="#333333", linewidths=0.4)
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.03, shrink=shrink, aspect=10, anchor=(0, 0.0))
    if wide:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label("-log10 adjusted p", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    sizes = sorted({n.min(), np.round(np.median(n)), n.max()})
    ax.legend(
        handles=[_handle(size, n) for size in sizes], title="genes in both", loc="upper left",
        bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=8, title_fontsize=8, labelspacing=0.9,
    )  # fmt: skip
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _area(n: Any, among: np.ndarray) -> Any:
    span = np.ptp(among)
    return _AREA[0] + (_AREA[1] - _AREA[0]) * (n - among.min()) / (span or 1)


def _handle(n: float, among: np.ndarray) -> Line2D:
    side = float(np.sqrt(_area(n, among)))
    return Line2D([], [], linestyle="", marker="o", color="#B4B4B4", markersize=side, label=f"{n:.0f}")

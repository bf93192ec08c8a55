"""Which cell types are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle

from scgpt_tl._slots import SLOTS, UNKNOWN
from scgpt_tl.get import confusion_df
from scgpt_tl.pl._style import FRAME, SHARES, ink, one_axes, plain, widest, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_APART = 0.3  # columns between the types and unknown
_CELL = 0.52  # inches of a cell, for two lines of figures
_SMALL = 16  # with more types than this a cell holds its share alone


def confusion(
    adata: AnnData, *, truth_key: str, pred_key: str = SLOTS.label, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a confusion matrix: for each true type (row), the percentage of its cells that was called each type.

    Below each percentage stands the number of cells. Cells where truth and call bear the same name are framed; unknown
    stands apart on the right.

    Parameters
    ----------
    adata, truth_key, pred_key
        As `scgpt_tl.get.confusion_df` takes them, which gives the same numbers as a table.
    title
        Instead of one that says how many cells were called right.
    ax
        Axes to draw into; a new figure, large enough for the names, where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where a column is missing; the message names what makes it.
    ValueError
        Where a column holds measurements, not names, or no cell has a true type.
    """
    table = confusion_df(adata, truth_key=truth_key, pred_key=pred_key)
    n = table.pivot(index="truth", columns="pred", values="n")
    share = table.pivot(index="truth", columns="pred", values="share")
    rows, columns = wrapped(n.index), wrapped(n.columns)
    totals = n.sum(axis=1)
    rows = [f"{name} ({total:,})" for name, total in zip(rows, totals, strict=True)]
    room = (0.085 * widest(rows) + 1.6, 0.08 * widest(columns) + 1.3)
    ax = one_axes(ax, (_CELL * len(columns) + room[0], _CELL * len(rows) + room[1]))
    places = np.arange(len(columns)) + np.where(n.columns == UNKNOWN, _APART, 0.0)
    _cells(ax, share.to_numpy(), places)
    _figures(ax, n, share, places)
    ax.set_xlabel(f"called ({plain(pred_key)})", labelpad=8)
    ax.set_ylabel(f"true ({plain(truth_key)})", labelpad=8)
    ax.set_yticks(np.arange(len(rows)), rows)
    ax.set_xticks(places, columns, rotation=90 if widest(columns) > 5 else 0)
    ax.set_xlim(-0.5, places[-1] + 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(_summary(n, table.attrs["n_missing"]) if title is None else title, fontsize=10)
    return ax


def _cells(ax: Axes, share: np.ndarray, places: np.ndarray) -> None:
    """One mesh for the types, one for unknown: the gap between them belongs to neither."""
    apart = places != np.arange(len(places))
    down = np.arange(len(share) + 1) - 0.5
    for part in (~apart, apart):
        if part.any():
            across = np.append(places[part] - 0.5, places[part][-1] + 0.5)
            drawn = ax.pcolormesh(
                across, down, share[:, part], cmap=SHARES, vmin=0, vmax=1, edgecolors="#DDDDDD", linewidth=0.5
            )
    bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.6, aspect=25, pad=0.02, label="share of the true type's cells")
    bar.outline.set_visible(False)


def _figures(ax: Axes, n: pd.DataFrame, share: pd.DataFrame, places: np.ndarray) -> None:
    few = max(n.shape) <= _SMALL
    for row, truth in enumerate(n.index):
        for column, pred in enumerate(n.columns):
            count, part = int(n.iat[row, column]), float(share.iat[row, column])
            if truth == pred:
                ax.add_patch(Rectangle((places[column] - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec=FRAME, lw=1.5))
            if count:
                percent = f"{100 * part:.0f}" if part >= 0.005 else "<1"
                text = f"{percent}%\n{count:,}" if few else percent
                ax.text(places[column], row, text, ha="center", va="center", fontsize=7, color=ink(SHARES(part)))


def _summary(n: pd.DataFrame, n_missing: int) -> str:
    total = int(n.to_numpy().sum())
    right = sum(int(n.at[name, name]) for name in n.index if name in n.columns)
    parts = [f"{100 * right / total:.1f}% called right"] if right else []
    if UNKNOWN in n.columns:
        parts.append(f"{100 * n[UNKNOWN].sum() / total:.1f}% unknown")
    parts.append(f"{total:,} cells")
    return ", ".join(parts) + (f"\n({n_missing:,} without a true type left out)" if n_missing else "")

"""Scores of several methods as a heat map with its numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from scgpt_tl.pl._style import FRAME, listed, one_axes, plain, widest, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELL = (0.78, 0.42)  # inches
_BEHIND = LinearSegmentedColormap.from_list("scgpt_behind", ["#86C1E6", "#FFFFFF"])  # black figures read on all of it
_SPAN = 0.2  # of scores up to 1: what is farther behind is white, so that one poor method does not hide the rest
_NO_SCORES = {"resolution", "seconds"}


def metrics(
    data: pd.DataFrame,
    *,
    columns: str | Sequence[str] | None = None,
    lower: str | Sequence[str] = ("ECE",),
    digits: int = 3,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a table of scores: one row a method, one column a score, the best of each column framed and in bold.

    Colour tells how far a score is behind the best of its column, 0 to 0.2 and more, on one scale for all columns, so
    that a difference of no weight gets no colour. What reads equal to `digits` is framed alike.

    Parameters
    ----------
    data
        As `scgpt_tl.metrics.compare` gives it, or any DataFrame of scores by method.
    columns
        Scores to draw. None: columns of fractions; counts of cells and clusters and the Leiden resolution are left out.
    lower
        Columns in which less is better.
    digits
        Digits after the point.
    title
        Instead of the table's verdict (`.attrs["verdict"]`).
    ax
        Axes to draw into; a new figure, large enough for the names, where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where a column is missing.
    ValueError
        Where there is no row or no score.
    """
    scores, lower = _scores(data, None if columns is None else listed(columns)), listed(lower)
    best, behind = _standing(scores, set(lower), digits)
    rows = wrapped(" / ".join(map(str, name)) if isinstance(name, tuple) else name for name in scores.index)
    heads = wrapped([f"{name} ↓" if name in lower else name for name in scores], 12)
    width = max(_CELL[0], 0.1 * widest(heads), 3.6 / len(heads)) * len(heads)  # a verdict needs 3.6 inches
    verdict = plain(data.attrs.get("verdict", "")) if title is None else title
    head = textwrap.fill(verdict, int(width * 13))
    ax = one_axes(ax, (width + 0.085 * widest(rows) + 1.2, _CELL[1] * len(rows) + 0.9 + 0.17 * head.count("\n")))
    span = _SPAN * max(1.0, float(scores.abs().max(axis=None)))
    drawn = ax.pcolormesh(np.where(np.isnan(behind), 0, behind), cmap=_BEHIND, vmin=0, vmax=span, ec="white", lw=1)
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02, extend="max", label="behind the best")
    bar.outline.set_visible(False)
    for (row, column), value in np.ndenumerate(scores.to_numpy()):
        _figure(ax, row, column, value, digits, best=bool(best[row, column]))
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.set_xticks(np.arange(len(heads)) + 0.5, heads)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.set_title(head, fontsize=9, loc="left")
    return ax


def _scores(data: pd.DataFrame, columns: Sequence[str] | None) -> pd.DataFrame:
    if not isinstance(data, pd.DataFrame):
        msg = (
            f"scores by method come in a DataFrame, as scgpt_tl.metrics.compare gives it, not in {type(data).__name__}"
        )
        raise TypeError(msg)
    if columns is None:
        kept = [
            name for name in data if pd.api.types.is_float_dtype(data[name]) and str(name).casefold() not in _NO_SCORES
        ]
        columns = [name for name in kept if not str(name).startswith("n_") and data[name].notna().any()]
    unknown = [name for name in columns if name not in data]
    if unknown:
        msg = f"the table has no column {unknown}; there are {list(data.columns)}"
        raise KeyError(msg)
    if not len(data) or not len(columns):
        msg = f"nothing to draw: {len(data)} row(s), and no column of scores among {list(data.columns)}"
        raise ValueError(msg)
    return data[list(columns)].astype(float)


def _standing(scores: pd.DataFrame, lower: set[str], digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Which scores are the best of their column as printed, and how far each is from it."""
    sign = np.where([name in lower for name in scores], -1.0, 1.0)
    values = scores.round(digits).to_numpy() * sign
    top = np.array([np.nan if np.isnan(column).all() else np.nanmax(column) for column in values.T])
    behind = top - values
    return behind == 0, behind


def _figure(ax: Axes, row: int, column: int, value: float, digits: int, *, best: bool) -> None:
    if np.isnan(value):
        ax.add_patch(Rectangle((column, row), 1, 1, facecolor="white", hatch="///", edgecolor="#CCCCCC", linewidth=0))
        ax.text(column + 0.5, row + 0.5, "none", ha="center", va="center", fontsize=8, color="#555555")
        return
    ax.text(
        column + 0.5, row + 0.5, f"{value:.{digits}f}", ha="center", va="center", fontsize=9,
        fontweight="bold" if best else "normal",
    )  # fmt: skip
    if best:
        ax.add_patch(Rectangle((column + 0.04, row + 0.08), 0.92, 0.84, fill=False, edgecolor=FRAME, linewidth=2.2))

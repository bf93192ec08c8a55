"""Training curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from scgpt_tl.get import history_df
from scgpt_tl.pl._style import LINES, PALETTE, entry, listed, one_axes, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_POSITIONS = ("epoch", "step")
_FEW = 30  # a curve of fewer points shows them


def training_history(
    data: Any,
    *,
    key: str | None = None,
    columns: str | Sequence[str] | None = None,
    logy: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw losses over steps or epochs.

    An objective has one colour; its loss on the cells trained on is a full line, on held-out cells a dashed one. Where
    there is a loss on held-out cells, a ring marks its lowest point; `keep="best"` keeps the weights of that epoch.

    Parameters
    ----------
    data, key
        As `scgpt_tl.get.history_df` takes them: an AnnData, a Model, a DataFrame or records.
    columns
        Curves to draw; all columns with any number where none are given.
    logy
        Logarithmic scale.
    ax
        Axes to draw into; a new figure where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where there is no history, or no such column in it.
    ValueError
        Where nothing is left to draw.
    """
    table = history_df(data, key=key)
    wanted = _told(table) if columns is None else listed(columns)
    unknown = [name for name in wanted if name not in table]
    if unknown:
        msg = f"the history has no {unknown}; there are {list(table.columns)}"
        raise KeyError(msg)
    if not wanted:
        msg = f"the history has no column with numbers; there are {list(table.columns)}"
        raise ValueError(msg)
    ax = one_axes(ax, (6.4, 3.8))
    for name, color, line in _looks(wanted):
        curve = table[name].dropna()  # a validation loss is not there at every step
        marker = "." if len(curve) < _FEW else ""
        ax.plot(curve.index, curve, linestyle=line, color=color, marker=marker, label=entry(plain(name)))
        if name == "held_out/loss" and len(curve):
            ax.plot(
                curve.idxmin(),
                curve.min(),
                marker="o",
                ms=11,
                mfc="none",
                mec="black",
                label="lowest on held-out cells",
                linestyle="",
            )
    ax.set(xlabel=plain(table.index.name), ylabel="loss" if len(wanted) > 1 else plain(wanted[0]))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if logy:
        ax.set_yscale("log")
    if len(wanted) > 1:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _told(table: pd.DataFrame) -> list[str]:
    """Columns with any number, but those that say where in the run a record is."""
    return [name for name in table if table[name].notna().any() and name not in _POSITIONS]


def _looks(names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Colour by objective, line by the cells it was measured on; curves of an objective stand together."""
    parts = {name: str(name).rpartition("/") for name in names}
    objectives = list(dict.fromkeys(last for _, _, last in parts.values()))
    places = sorted({first for first, _, _ in parts.values()}, key=lambda first: (first not in ("train", ""), first))
    looks = []
    for name in sorted(names, key=lambda name: (objectives.index(parts[name][2]), places.index(parts[name][0]))):
        number, place = objectives.index(parts[name][2]), places.index(parts[name][0])
        line = LINES[(place + 2 * (number // len(PALETTE))) % len(LINES)]
        looks.append((name, PALETTE[number % len(PALETTE)], line))
    return looks

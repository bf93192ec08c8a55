"""Training curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from scgpt_tl.get import history_df

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def training_history(
    data: Any,
    *,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    logy: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw losses over steps or epochs.

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
    wanted = [name for name in table if table[name].notna().any()] if columns is None else list(columns)
    unknown = [name for name in wanted if name not in table]
    if unknown:
        msg = f"the history has no {unknown}; there are {list(table.columns)}"
        raise KeyError(msg)
    if not wanted:
        msg = f"the history has no column with numbers; there are {list(table.columns)}"
        raise ValueError(msg)
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for number, name in enumerate(wanted):
        curve = table[name].dropna()  # a validation loss is not there at every step
        style, color = _STYLES[number // len(_COLORS) % len(_STYLES)], _COLORS[number % len(_COLORS)]
        ax.plot(
            curve.index, curve, linestyle=style, color=color, marker="." if len(curve) < 30 else "", label=str(name)
        )
    ax.set(xlabel=str(table.index.name), ylabel="loss" if len(wanted) > 1 else str(wanted[0]))
    if logy:
        ax.set_yscale("log")
    if len(wanted) > 1:
        ax.legend(frameon=False)
    return ax

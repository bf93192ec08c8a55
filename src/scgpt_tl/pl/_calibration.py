"""How far a confidence can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgpt_tl._slots import SLOTS
from scgpt_tl.get import calibration_df
from scgpt_tl.pl._style import GREY, PALETTE, entry, one_axes, plain

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_Z = 1.96  # of a 95 % interval


def calibration(
    adata: AnnData,
    *,
    truth_key: str,
    key: str = SLOTS.label,
    n_bins: int = 15,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a reliability diagram: the accuracy of calls against the confidence that they were made with.

    Points on the dashed line can be taken at their word; below it calls are surer than right, above it righter than
    sure. Bars are 95 % intervals (Wilson) of a bin's accuracy. How many cells each bin has stands above.

    Parameters
    ----------
    adata, truth_key, key, n_bins
        As `scgpt_tl.get.calibration_df` takes them, which gives the same numbers as a table.
    title
        Instead of one that tells the expected calibration error (ECE).
    ax
        Axes to draw into; a new figure where none is given.

    Returns
    -------
    The Axes of the diagram; those of the histogram are its `child_axes[0]`.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ValueError
        As `scgpt_tl.get.calibration_df` does.
    """
    table = calibration_df(adata, truth_key=truth_key, key=key, n_bins=n_bins)
    ax = one_axes(ax, (4.6, 5.4))
    ax.plot([0, 1], [0, 1], linestyle="--", color=GREY, linewidth=1, label="as right as sure")
    some = table[table["n"] > 0]
    low, high = _wilson(some["accuracy"].to_numpy(), some["n"].to_numpy())
    ax.vlines(some["confidence"], low, high, color=PALETTE[0], linewidth=1.2, alpha=0.6)
    ax.plot(
        some["confidence"],
        some["accuracy"],
        "o-",
        color=PALETTE[0],
        markersize=5,
        linewidth=1.2,
        label=entry(f"{plain(key)}, with 95% intervals"),
    )
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel=f"share right ({plain(truth_key)})")
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    _histogram(ax, table)
    ax.set_title(_summary(table) if title is None else title, fontsize=10, y=1.23)  # above the histogram
    return ax


def _histogram(ax: Axes, table: pd.DataFrame) -> None:
    above = ax.inset_axes((0, 1.03, 1, 0.2))
    above.bar(table["low"], table["n"], width=table["high"] - table["low"], align="edge", color="#A8A8A8", ec="white")
    above.set(xlim=(0, 1), xticks=[], ylabel="cells")
    above.spines[["top", "right"]].set_visible(False)
    above.locator_params(axis="y", nbins=3)


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share of n trials; it stays within [0, 1], also for shares of 0 and 1."""
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def _summary(table: pd.DataFrame) -> str:
    told = table.attrs
    missing = f"\n({told['n_missing']:,} without a true type or a call left out)" if told["n_missing"] else ""
    return f"ECE {told['ece']:.3f} in {len(table)} bins, {told['n_cells']:,} cells{missing}"

"""How sure the calls of different groups of cells are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from scgpt_tl._slots import SLOTS, UNKNOWN
from scgpt_tl.get import annotation_df
from scgpt_tl.pl._style import LINES, PALETTE, entry, one_axes, plain, widest, wrapped

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_CURVES = 4  # groups that curves over each other still tell apart


def confidence(
    adata: AnnData,
    *,
    groupby: str,
    key: str = SLOTS.label,
    kind: Literal["ecdf", "box"] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how sure calls are, group by group: control beside stimulated cells, donor beside donor, type beside type.

    Parameters
    ----------
    adata
        Annotated by `scgpt_tl.tl.scgpt_annotate` or mapped by `scgpt_tl.tl.scgpt_map`.
    groupby
        Column of `.obs`; cells without a group are left out. Each group is shown with its number of cells, its median
        and the share that was called unknown.
    key
        The result's name: the `key_added` of the call, scgpt_mapped after `scgpt_map`.
    kind
        "ecdf": for each group a curve, the share of cells at most so sure: the lower a curve, the surer. "box": median,
        quartiles and the 5th and 95th percentile. None: curves for 4 groups or fewer.
    title
        Instead of none.
    ax
        Axes to draw into; a new figure where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where a slot or the column is missing; the message names what makes it.
    ValueError
        On another `kind`, or where no cell has both a group and a probability.
    """
    if kind not in ("ecdf", "box", None):
        msg = f"kind is {kind!r}: 'ecdf', 'box', or None to choose by the number of groups"
        raise ValueError(msg)
    groups = _groups(adata, groupby, key)
    curves = kind == "ecdf" or (kind is None and len(groups) <= _CURVES)
    names = wrapped(groups)
    ax = one_axes(ax, (6.0, 3.8) if curves else (6.4 + 0.085 * widest(names), 1.2 + 0.42 * len(names)))
    draw = _curves if curves else _boxes
    draw(ax, names, [cells["probability"].to_numpy(dtype=np.float64) for cells in groups.values()], _notes(groups))
    ax.set_xlim(0, 1.005)
    how = "" if curves else "\nbox: quartiles and median; line: 5th to 95th percentile"
    ax.set_xlabel(f"confidence ({plain(key)}){how}")
    ax.spines[["top", "right"]].set_visible(False)
    if title is not None:
        ax.set_title(title, fontsize=10)
    return ax


def _groups(adata: AnnData, groupby: str, key: str) -> dict[str, pd.DataFrame]:
    """Calls and probabilities of each group, in the order of its categories."""
    cells = annotation_df(adata, key=key)[["pred", "probability"]]
    if groupby not in adata.obs:
        msg = f"adata.obs has no column {groupby!r}; groupby may be one of {list(adata.obs.columns)}"
        raise KeyError(msg)
    kept = (cells["probability"].notna() & adata.obs[groupby].notna()).to_numpy()
    if not kept.any():
        msg = f"no cell has both a group in .obs[{groupby!r}] and a probability of {key!r}"
        raise ValueError(msg)
    by = adata.obs[groupby][kept].astype("category").cat.remove_unused_categories()
    return {str(name): part for name, part in cells[kept].groupby(by, observed=True)}


def _notes(groups: dict[str, pd.DataFrame]) -> list[str]:
    notes = []
    for cells in groups.values():
        unknown = (cells["pred"].isna() | (cells["pred"].astype(str) == UNKNOWN)).mean()
        median = cells["probability"].median()
        notes.append(f"{len(cells):,} cells, median {median:.2f}, unknown {100 * unknown:.1f}%")
    return notes


def _curves(ax: Axes, names: list[str], values: list[np.ndarray], notes: list[str]) -> None:
    for number, (name, points, note) in enumerate(zip(names, values, notes, strict=True)):
        ax.ecdf(
            points,
            label=entry(f"{name}: {note}"),
            color=PALETTE[number % len(PALETTE)],
            linestyle=LINES[number % len(LINES)],
        )
    ax.set(ylabel="share of cells at most so sure", ylim=(0, 1.005))
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _boxes(ax: Axes, names: list[str], values: list[np.ndarray], notes: list[str]) -> None:
    low, left, median, right, high = (
        np.array([np.quantile(v, q) for v in values]) for q in (0.05, 0.25, 0.5, 0.75, 0.95)
    )
    rows = np.arange(len(values))
    ax.hlines(rows, low, high, color="#0B5A94", linewidth=1.2)
    ax.barh(rows, right - left, left=left, height=0.55, color="#A9D4EF", edgecolor="#0B5A94")
    ax.vlines(median, rows - 0.275, rows + 0.275, color="black", linewidth=2.5)
    ax.set_yticks(rows, names)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    for row, note in enumerate(notes):
        ax.text(1.02, row, note, transform=ax.get_yaxis_transform(), va="center", fontsize=8)

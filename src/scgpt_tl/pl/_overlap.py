"""Which targets the settings of a perturbation share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from scgpt_tl._slots import SLOTS
from scgpt_tl.get import grn_df
from scgpt_tl.get._network import SETTINGS, perturbed
from scgpt_tl.pl._style import PALETTE, one_axes, plain

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scgpt_tl.get._network import Setting

_PALE, _DARK = "#D9D9D9", "#333333"


def overlap(
    adata: AnnData,
    *,
    regulator: str,
    group: str | None = None,
    key: str = SLOTS.network,
    n_top: int = 100,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many of a regulator's top targets the settings control, perturbed and difference share (an UpSet plot).

    Each bar counts the genes that are among the top targets of exactly the settings whose dots below are dark, as the
    parts of the preprint's Venn diagrams do (Figure 6); the bars sum to all genes that are among any.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn` that was given a control; nothing is written to it.
    regulator
        Whose targets.
    group
        The perturbed group. None: the only one.
    key
        The result's name: the `key_added` of the call.
    n_top
        Targets of each setting; of "difference" those whose scores change most, either way.
    title
        Instead of the regulator's name.
    ax
        Axes to draw into; a new figure where none is given.

    Returns
    -------
    The Axes of the bars; those of the dots are its `child_axes[0]`.

    Raises
    ------
    KeyError
        Where a slot, a group or the regulator is missing; the message names what makes it.
    ValueError
        Where the result has no control, or several groups and none is named.
    """
    group = perturbed(adata, key, group)
    tops = {}
    for setting in SETTINGS:
        of = None if setting == "control" else group
        edges = grn_df(adata, key=key, group=of, setting=setting, regulators=regulator, n_top=n_top)
        tops[setting] = set(edges["target"])
    parts = [part for size in (1, 2, 3) for part in combinations(SETTINGS, size)]
    counts = [len(_exactly(tops, part)) for part in parts]
    ax = one_axes(ax, (5.4, 4.4))
    bars = ax.bar(range(len(parts)), counts, width=0.6, color=PALETTE[0])
    ax.bar_label(bars, fontsize=10, padding=2)
    ax.set(xlim=(-0.6, len(parts) - 0.4), xticks=[], ylabel="genes", ylim=(0, 1.12 * max(*counts, 1)))
    ax.spines[["top", "right"]].set_visible(False)
    _dots(ax, parts, {name: f"{name} ({len(tops[name])})" for name in SETTINGS})
    said = plain(f"{regulator}: top {n_top} targets, {group}") if title is None else title
    ax.set_title(said, fontsize=10)
    return ax


def _exactly(tops: Mapping[Setting, set[str]], part: Sequence[Setting]) -> set[str]:
    """Genes that are in these sets and in no other."""
    others = set().union(*(genes for name, genes in tops.items() if name not in part))
    return set.intersection(*(tops[name] for name in part)) - others


def _dots(ax: Axes, parts: Sequence[Sequence[Setting]], names: Mapping[Setting, str]) -> None:
    below = ax.inset_axes((0, -0.42, 1, 0.38), sharex=ax)
    for row, name in enumerate(names):
        if row % 2 == 0:
            below.axhspan(row - 0.5, row + 0.5, color="#F4F4F4", linewidth=0)
        for column, part in enumerate(parts):
            below.plot(column, row, "o", markersize=9, color=_DARK if name in part else _PALE)
    for column, part in enumerate(parts):
        rows = [row for row, name in enumerate(names) if name in part]
        below.plot([column, column], [min(rows), max(rows)], color=_DARK, linewidth=2)
    below.set_yticks(range(len(names)), list(names.values()))
    below.set_ylim(len(names) - 0.5, -0.5)
    below.tick_params(length=0, labelbottom=False)
    below.spines[:].set_visible(False)

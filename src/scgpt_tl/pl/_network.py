"""Genes and what joins them, as a drawing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from scgpt_tl._slots import SLOTS
from scgpt_tl.get import grn_df, programs_df
from scgpt_tl.get._network import network as run_of
from scgpt_tl.pl._layout import layout
from scgpt_tl.pl._style import GREY, MARKERS, PALETTE, listed, one_axes, plain

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from scgpt_tl.get._network import Setting

_PAIRS, _TARGETS = 150, 20  # drawn where the user names no number; 20 targets are the preprint's (section 4.7)
_MOST = 200  # genes that a drawing can name
_LETTER, _HEIGHT = 0.075, 0.31  # inches of a letter, and of a gene with its name below
_THIN, _WIDE = 0.5, 4.0  # points
_NONE, _RISES, _FALLS = "#B4B4B4", PALETTE[0], PALETTE[5]


def network(
    adata: AnnData,
    *,
    genes: str | Sequence[str] | None = None,
    regulators: str | Sequence[str] | None = None,
    key: str = SLOTS.network,
    group: str | None = None,
    setting: Setting | None = None,
    threshold: float | None = None,
    n_top: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a gene network: the stronger an edge the wider; colour and marker tell the gene's program.

    Edges have no arrows: an embedding network has no direction, and that of attention is unknown. In the "difference"
    setting what rises is a blue line and what falls a broken orange one. Genes without an edge are left out. The same
    edges are drawn at the same places every time.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn`; nothing is written to it.
    genes
        Draw edges between these alone. None: between any.
    regulators
        Draw their targets, or in an embedding network their neighbours. None: any.
    key, group, setting
        As `scgpt_tl.get.grn_df` takes them, which gives the same edges as a table. One group is drawn.
    threshold
        Weight of an edge at least, of a difference its size. The preprint draws cosines above 0.5 (HLA) and 0.4 (CD).
    n_top
        Edges of each regulator, strongest first; of an embedding network without `regulators`, edges in all. None: 20,
        and 150.
    title
        Instead of one that says what is drawn.
    ax
        Axes to draw into; a new figure, large enough for the names, where none is given.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Where a slot, a group or a regulator is missing; the message names what makes it.
    ValueError
        Where no edge is left, or more than 200 genes, or several groups; and as `scgpt_tl.get.grn_df` does.
    """
    genes = None if genes is None else listed(genes)
    table = grn_df(adata, key=key, group=group, setting=setting, regulators=_sources(adata, key, genes, regulators))
    method = str(run_of(adata, key)["method"])
    similar = method == "embedding"
    edges = _chosen(table, key, genes, threshold, n_top, pairs=similar and regulators is None)
    ends, names = pd.factorize(np.append(edges["source"], edges["target"]), sort=True)
    if len(names) > _MOST:
        msg = f"{len(names)} genes are more than a drawing can name ({_MOST}): give genes=, fewer regulators=, a lower "
        msg += "n_top= or a higher threshold="
        raise ValueError(msg)
    codes = _codes(adata, key if similar else SLOTS.network, names)
    hubs = np.isin(names, [] if similar and regulators is None else edges["source"].unique())
    ax = _draw(ax, names, ends.reshape(2, -1).T, edges, codes, hubs)
    said = plain(_summary(edges, names, genes, threshold, method)) if title is None else title
    ax.set_title(textwrap.fill(said, max(20, int(12 * ax.figure.bbox.width / ax.figure.dpi))), fontsize=10, loc="left")
    return ax


def _sources(
    adata: AnnData, key: str, genes: Sequence[str] | None, regulators: str | Sequence[str] | None
) -> str | Sequence[str] | None:
    """Regulators to read: where every gene is one, those that can be drawn."""
    run = run_of(adata, key)
    if regulators is not None or genes is None or str(run["method"]) == "embedding":
        return regulators
    held = run["regulators"] if len(run["regulators"]) else run["genes"]
    return [name for name in map(str, held) if name in set(genes)] or None


def _chosen(
    table: pd.DataFrame,
    key: str,
    genes: Sequence[str] | None,
    threshold: float | None,
    n_top: int | None,
    *,
    pairs: bool,
) -> pd.DataFrame:
    """Edges to draw."""
    groups = table["group"].unique()
    if len(groups) > 1:
        msg = f"{key!r} has the groups {', '.join(groups)}, and one is drawn: give group= or setting="
        raise ValueError(msg)
    if genes is not None:
        table = table[table["source"].isin(list(genes)) & table["target"].isin(list(genes))]
    if threshold is not None:
        table = table[table["weight"].abs() >= threshold]
    table = table.head(n_top or _PAIRS) if pairs else table.groupby("source", sort=False).head(n_top or _TARGETS)
    if not len(table):
        between = "" if genes is None else f" between the {len(genes)} genes"
        least = "" if threshold is None else f" of a weight of {threshold:g}"
        msg = f"{key!r} has no edge{between}{least}: lower threshold=, or name other genes. An embedding network joins "
        msg += "each gene with its nearest alone: scgpt_tl.tl.scgpt_grn(adata, genes=...) joins these among themselves"
        raise ValueError(msg)
    lone = table["source"] == table["target"]
    pair = np.sort(table[["source", "target"]].astype(str), axis=1)
    return table[~lone & ~pd.DataFrame(pair).duplicated().to_numpy()] if pairs else table


def _codes(adata: AnnData, key: str, names: np.ndarray) -> pd.Categorical:
    """Programs of genes; a network of another method is coloured by those of the embedding network."""
    run = adata.uns.get(key)
    if not isinstance(run, Mapping) or str(run.get("method")) != "embedding":
        return pd.Categorical([None] * len(names))
    programs = programs_df(adata, key=key).set_index("gene")["program"].reindex(names)
    return pd.Categorical(programs).remove_unused_categories()


def _draw(
    ax: Axes | None, names: np.ndarray, ends: np.ndarray, edges: pd.DataFrame, codes: pd.Categorical, hubs: np.ndarray
) -> Axes:
    letters = np.array([len(name) for name in names])
    boxes = np.column_stack([_LETTER * letters * np.where(hubs, 1.2, 1) + 0.12, np.full(len(names), _HEIGHT)])
    legend = _legend(edges, codes)
    given = None if ax is None else _inches(ax)
    ratio = 1.25 if given is None else float(np.clip(given[0] / given[1], 0.3, 3))
    places = layout(ends, edges["weight"].abs().to_numpy(), boxes, ratio=ratio)
    size = (places + boxes / 2).max(axis=0)
    ax = one_axes(ax, (max(size[0], 1.6) + 1.9, max(size[1] + 0.6, 0.2 * len(legend) + 0.8)))
    ax.set(xlim=(-0.05, size[0] + 0.05), ylim=(-0.05, size[1] + 0.05))
    ax.set_axis_off()
    _lines(ax, places[ends], edges["weight"].to_numpy())
    small = 1.0 if given is None else float(np.clip((given / size).min(), 0.5, 1))  # names shrink with a small picture
    _genes(ax, places, names, codes, hubs, small)
    ax.legend(
        handles=legend, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8,
        ncols=1 + len(legend) // 25,
    )  # fmt: skip
    return ax


def _lines(ax: Axes, ends: np.ndarray, weights: np.ndarray) -> None:
    rises = weights >= 0
    for part, colour, line in ((rises, GREY if rises.all() else _RISES, "-"), (~rises, _FALLS, (0, (4, 2)))):
        ax.add_collection(
            LineCollection(
                list(ends[part]), linewidths=_widths(weights)[part], colors=colour, linestyles=[line], alpha=0.55,
                capstyle="round", zorder=1,
            )
        )  # fmt: skip


def _inches(ax: Axes) -> np.ndarray:
    """Size of Axes that were given."""
    box = ax.get_window_extent()
    return np.array([box.width, box.height]) / ax.figure.dpi


def _widths(weights: Any) -> np.ndarray:
    """Of lines, in points."""
    sizes = np.abs(np.asarray(weights, dtype=float))
    span = np.ptp(sizes)
    return _THIN + (_WIDE - _THIN) * ((sizes - sizes.min()) / span if span > 0 else np.full(len(sizes), 0.5))


def _look(code: int) -> tuple[str, str]:
    """Colour and marker."""
    return (_NONE, "o") if code < 0 else (PALETTE[code % len(PALETTE)], MARKERS[code // len(PALETTE) % len(MARKERS)])


def _genes(
    ax: Axes, places: np.ndarray, names: np.ndarray, codes: pd.Categorical, hubs: np.ndarray, small: float
) -> None:
    halo = [patheffects.withStroke(linewidth=2, foreground="white")]
    for (x, y), name, code, hub in zip(places, names, codes.codes, hubs, strict=True):
        colour, marker = _look(code)
        ax.plot(
            x, y + 0.06, marker, color=colour, markersize=small * (11 if hub else 7), zorder=2,
            markeredgecolor="black" if hub else "white", markeredgewidth=1.2 if hub else 0.5,
        )  # fmt: skip
        ax.text(
            x, y - 0.02, plain(name), ha="center", va="top", zorder=3, path_effects=halo,
            fontsize=small * (8.5 if hub else 7.5), fontweight="bold" if hub else "normal",
        )  # fmt: skip


def _legend(edges: pd.DataFrame, codes: pd.Categorical) -> list[Line2D]:
    """Programs, then what a width and a line mean."""
    handles = []
    for code, name in [*enumerate(codes.categories), (-1, "no program")]:
        if (codes.codes == code).any() and len(codes.categories):
            colour, marker = _look(code)
            text = name if code < 0 else plain(f"program {name}")
            handles.append(Line2D([], [], linestyle="", marker=marker, color=colour, markersize=7, label=text))
    sizes = edges["weight"].abs()
    for size, width in {sizes.max(): _WIDE, sizes.min(): _THIN}.items() if sizes.nunique() > 1 else ():
        handles.append(Line2D([], [], color=GREY, linewidth=width, label=f"{size:.2g}"))
    if (edges["weight"] < 0).any():
        handles.append(Line2D([], [], color=_RISES, linewidth=2, label="rises"))
        handles.append(Line2D([], [], color=_FALLS, linewidth=2, linestyle=(0, (4, 2)), label="falls"))
    return handles


def _summary(
    edges: pd.DataFrame, names: np.ndarray, genes: Sequence[str] | None, threshold: float | None, method: str
) -> str:
    among = f"{len(names)} genes" if genes is None else f"{len(names)} of {len(set(genes))} genes"
    least = "" if threshold is None else f", {'cosine' if method == 'embedding' else 'weight'} ≥ {threshold:g}"
    first = edges.iloc[0]
    place = [method, first["setting"], first["group"] if first["group"] != "all" else ""]
    plural = "s" if len(edges) > 1 else ""
    return f"{among}, {len(edges)} edge{plural}{least} ({', '.join(filter(None, place))})"

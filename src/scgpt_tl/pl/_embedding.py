"""Two dimensions of an embedding, coloured by labels, in panels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.lines import Line2D

from scgpt_tl.pl._style import MARKERS, PALETTE, entry, listed, plain

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_NONE = "#C8C8C8"


def embedding(
    adata: AnnData,
    *,
    color: str | Sequence[str],
    basis: str | Sequence[str] = "X_umap",
    title: str | Sequence[str] | None = None,
    size: float | None = None,
    legend_columns: int | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes | list[Axes]:
    """Scatter cells of a two-dimensional embedding, one panel per colouring.

    Parameters
    ----------
    adata
        Holds `.obsm[basis]` and `.obs[color]`; nothing is written to it.
    color
        Columns of `.obs`. Names and categories get a colour, a marker and a number each; cells without a value are
        grey. Numbers get a colour scale.
    basis
        Key of `.obsm`, one for all panels or one for each; the first two dimensions are drawn. `scanpy.tl.umap` makes
        X_umap.
    title
        One for each panel; the column's name where none is given.
    size
        Area of a point in square points; by the number of cells where none is given.
    legend_columns
        Columns of the legend below a panel; by the length of the names where none is given.
    ax
        Axes to draw into, one for each panel; a new figure where none is given.

    Returns
    -------
    The Axes: one, or a list where `color` is a list.

    Raises
    ------
    KeyError
        Where a column or an embedding is missing; the message names what makes it.
    ValueError
        Where there is no cell, or numbers of panels, bases, titles and Axes do not agree.
    """
    columns = listed(color)
    bases = [basis] * len(columns) if isinstance(basis, str) else list(basis)
    titles = [plain(column) for column in columns] if title is None else listed(title)
    _check(adata, columns, bases, titles)
    panels = _panels(ax, len(columns))
    for panel, column, key, text in zip(panels, columns, bases, titles, strict=True):
        points = np.asarray(adata.obsm[key])[:, :2]
        area = float(np.clip(12_000 / max(len(points), 1), 0.5, 24)) if size is None else size
        _draw(panel, points, adata.obs[column], area, legend_columns)
        panel.set_title(text, fontsize=11)
        name = key.removeprefix("X_").split("_")[0].upper() if "umap" in key.lower() else plain(key.removeprefix("X_"))
        panel.set(xlabel=f"{name} 1", ylabel=f"{name} 2", xticks=[], yticks=[])
    return panels[0] if isinstance(color, str) else panels


def _check(adata: AnnData, columns: list[str], bases: list[str], titles: list[str]) -> None:
    if not columns or not len(columns) == len(bases) == len(titles):
        msg = f"{len(columns)} colour(s), {len(bases)} basis key(s) and {len(titles)} title(s): each panel needs one"
        raise ValueError(msg)
    if not adata.n_obs:
        msg = "adata has no cell to draw; check how it was filtered"
        raise ValueError(msg)
    for column in columns:
        if column not in adata.obs:
            msg = f"adata.obs has no column {column!r}; color may be one of {list(adata.obs.columns)}"
            raise KeyError(msg)
    for key in bases:
        if key not in adata.obsm:
            msg = f"adata.obsm has no {key!r}; there are {list(adata.obsm.keys())}. X_umap is made by "
            msg += "scanpy.pp.neighbors(adata, use_rep='X_scGPT') followed by scanpy.tl.umap(adata)"
            raise KeyError(msg)
        if adata.obsm[key].shape[1] < 2:
            msg = f"adata.obsm[{key!r}] has one dimension; two are needed to draw it"
            raise ValueError(msg)


def _panels(ax: Axes | Sequence[Axes] | None, n: int) -> list[Axes]:
    if ax is None:
        _, drawn = plt.subplots(1, n, figsize=(4.6 * n, 5.4), squeeze=False, layout="constrained")
        return list(drawn[0])
    given: list[Any] = np.ravel(np.asarray(ax, dtype=object)).tolist()  # one, a list, or what plt.subplots gives
    if len(given) != n:
        msg = f"{len(given)} Axes for {n} panel(s); give one for each, or none"
        raise ValueError(msg)
    return given


def _draw(ax: Axes, points: np.ndarray, values: pd.Series, size: float, columns: int | None) -> None:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        known = values.notna().to_numpy()
        _points(ax, points[~known], s=size, c=_NONE)
        drawn = _points(ax, points[known], s=size, c=values[known], cmap="cividis")
        ax.figure.colorbar(drawn, ax=ax, location="bottom", shrink=0.7, label=plain(values.name))
        return
    groups = values.astype("category")
    codes = groups.cat.codes.to_numpy()
    names = [str(name) for name in groups.cat.categories]
    short = max(map(len, names), default=0) <= 3  # cluster numbers stand for themselves
    _scatter_groups(ax, points, codes, size)
    marks = names if short else [str(code + 1) for code in range(len(names))]
    _number(ax, points, codes, marks)
    there = np.unique(codes[codes >= 0]).tolist()  # a category without cells keeps its colour, and is not listed
    handles = [_handle(code, names[code] if short else f"{code + 1}  {names[code]}") for code in there]
    missing = int((codes < 0).sum())
    if missing:
        handles.append(_handle(-1, f"no label ({missing:,})"))
    if not handles:
        return
    widest = max(len(str(handle.get_label())) for handle in handles)
    rows = -(-len(handles) // int(np.clip(72 // (widest + 4), 1, 9)))
    ax.legend(
        handles=handles, ncols=columns or -(-len(handles) // rows), loc="upper center", bbox_to_anchor=(0.5, -0.07),
        frameon=False, fontsize=8, columnspacing=1, handletextpad=0.2,
    )  # fmt: skip


def _scatter_groups(ax: Axes, points: np.ndarray, codes: np.ndarray, size: float) -> None:
    """Unlabelled cells first; the others in an order of no meaning, so that the last group does not hide the rest."""
    _points(ax, points[codes < 0], s=size, c=_NONE)
    order = np.random.default_rng(0).permutation(len(points))
    order = order[codes[order] >= 0]
    shapes = codes[order] // len(PALETTE)
    for shape in np.unique(shapes):
        cells = order[shapes == shape]
        colors = [PALETTE[code % len(PALETTE)] for code in codes[cells]]
        _points(ax, points[cells], s=size, c=colors, marker=MARKERS[shape % len(MARKERS)])


def _points(ax: Axes, points: np.ndarray, **style: Any) -> Any:
    return ax.scatter(points[:, 0], points[:, 1], linewidths=0, rasterized=True, **style)


def _number(ax: Axes, points: np.ndarray, codes: np.ndarray, marks: Sequence[str]) -> None:
    """Write each group's mark on one of its cells: the nearest to its median that leaves room for the marks before."""
    extent = np.ptp(points, axis=0) + 1e-12
    halo = patheffects.withStroke(linewidth=2.5, foreground="white")
    placed: list[np.ndarray] = []
    for code, mark in enumerate(marks):
        cells = points[codes == code]
        if not len(cells):
            continue
        order = np.argsort((((cells - np.median(cells, axis=0)) / extent) ** 2).sum(axis=1))
        room = np.ones(len(cells), dtype=bool)
        for other in placed:
            room &= (np.abs(cells - other) / extent > (0.05, 0.06)).any(axis=1)
        free = order[room[order]]
        place = cells[free[0] if len(free) else order[0]]
        placed.append(place)
        ax.text(
            place[0],
            place[1],
            plain(mark),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            path_effects=[halo],
        )


def _handle(code: int, label: str) -> Any:
    color = _NONE if code < 0 else PALETTE[code % len(PALETTE)]
    marker = "o" if code < 0 else MARKERS[code // len(PALETTE) % len(MARKERS)]
    return Line2D([], [], linestyle="", marker=marker, color=color, markersize=6, label=entry(plain(label)))

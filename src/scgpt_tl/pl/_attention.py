"""Regulators and their targets in the control, in perturbed cells, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from scgpt_tl._slots import SLOTS
from scgpt_tl.get import grn_df
from scgpt_tl.get._network import SETTINGS, named, network, perturbed, symbols
from scgpt_tl.get._result import strings
from scgpt_tl.pl._style import CHANGES, SHARES, listed, plain

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_CELL = 0.26  # inches
_COLUMNS = 60  # targets that a page shows


def attention(
    adata: AnnData,
    *,
    regulators: str | Sequence[str] | None = None,
    group: str | None = None,
    key: str = SLOTS.network,
    n_top: int | None = None,
    title: str | None = None,
    ax: Any = None,
) -> np.ndarray:
    """Draw scores of regulators (rows) for their top targets (columns): control, perturbed, and the difference.

    Targets are those whose scores change most, either way, from the largest rise to the largest fall; of a result
    without a control, those of the highest scores. Control and perturbed share one scale. Scores of attention are
    associations.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn` of any method but "embedding"; nothing is written to it.
    regulators
        Which ones. None: all.
    group
        The perturbed group, or of a result without a control any group. None: the only one.
    key
        The result's name: the `key_added` of the call.
    n_top
        Targets of each regulator. None: 20 of one, fewer of several.
    title
        Instead of one that names group and method.
    ax
        Axes to draw into, three, or one where there is no control; a new figure where none is given.

    Returns
    -------
    Array of Axes: control, perturbed, difference; or that of the one group.

    Raises
    ------
    KeyError
        Where a slot, a group or a regulator is missing; the message names what makes it.
    ValueError
        Where several groups are there and none is named, more than 60 targets would be drawn, or Axes of another number
        are given; and as `scgpt_tl.get.grn_df` does.
    """
    run = network(adata, key)
    if str(run["method"]) == "embedding":
        msg = f"{key!r} is a network of embeddings, without regulators: scgpt_tl.pl.network draws it, and "
        msg += "scgpt_tl.tl.scgpt_grn(adata, method='attention', regulators=...) makes what is drawn here"
        raise ValueError(msg)
    controlled = bool(str(run["control"]))
    group = perturbed(adata, key, group) if controlled else _only(strings(run["groups"]), key, group)
    asked = named(_asked(strings(run["regulators"]), regulators, key), strings(run["genes"]), symbols(adata, key))
    scores = _scores(adata, key, group, asked, controlled=controlled)
    targets = _targets(scores.get("difference", next(iter(scores.values()))), n_top, by_size=controlled)
    if len(targets) > _COLUMNS:
        msg = f"{len(targets)} targets of {len(asked)} regulators are more than a page shows ({_COLUMNS}): give fewer "
        msg += "regulators= or a lower n_top="
        raise ValueError(msg)
    panels = _panels(ax, len(scores), len(asked), len(targets))
    for panel, (name, table) in zip(panels, scores.items(), strict=True):
        _heat(panel, table.reindex(index=targets, columns=asked).T, name, scores)
    panels[-1].set_xticks(range(len(targets)), [plain(name) for name in targets], rotation=90, fontsize=8)
    said = plain(f"{group}, {run['method']}") if title is None else title
    panels[0].figure.suptitle(said, fontsize=10) if ax is None else panels[0].set_title(said, fontsize=10)
    return panels


def _only(groups: list[str], key: str, group: str | None) -> str:
    if group is None and len(groups) > 1:
        msg = f"{key!r} has the groups {', '.join(groups)}: give group="
        raise ValueError(msg)
    return groups[0] if group is None else group


def _asked(held: list[str], regulators: str | Sequence[str] | None, key: str) -> list[str]:
    if regulators is not None:
        return list(dict.fromkeys(listed(regulators)))
    if not held:
        msg = f"in {key!r} every gene is a regulator: give regulators="
        raise ValueError(msg)
    return held


def _scores(adata: AnnData, key: str, group: str, asked: list[str], *, controlled: bool) -> dict[str, pd.DataFrame]:
    """Setting -> scores, targets by regulators."""
    tables = {}
    for setting in SETTINGS if controlled else (None,):
        of = None if setting == "control" else group
        edges = grn_df(adata, key=key, group=of, setting=setting, regulators=asked)
        tables[setting or group] = edges.pivot(index="target", columns="source", values="weight").reindex(columns=asked)
    if not all(len(table) for table in tables.values()):
        msg = f"{key!r} has no score of {', '.join(asked)}: name other regulators=, or another group="
        raise ValueError(msg)
    return tables


def _targets(scores: pd.DataFrame, n_top: int | None, *, by_size: bool) -> list[str]:
    """The top targets of each regulator, each once, from the highest mean score to the lowest."""
    n = n_top or max(5, min(20, _COLUMNS // scores.shape[1]))
    size = (scores.abs() if by_size else scores).sort_index()
    tops = [size[name].sort_values(ascending=False, kind="stable").index[:n] for name in size]
    union = sorted({gene for top in tops for gene in top})
    return list(scores.loc[union].mean(axis=1).sort_values(ascending=False, kind="stable").index)


def _panels(ax: Any, n: int, n_rows: int, n_columns: int) -> np.ndarray:
    if ax is None:
        size = (_CELL * n_columns + 2.8, n * (_CELL * n_rows + 0.25) + 1.4)
        return plt.subplots(n, 1, figsize=size, squeeze=False, sharex=True, layout="constrained")[1][:, 0]
    given = np.ravel(np.asarray(ax, dtype=object))
    if len(given) != n:
        msg = f"{len(given)} Axes for {n} heat map(s); give one for each, or none"
        raise ValueError(msg)
    return given


def _heat(ax: Axes, table: pd.DataFrame, name: str, scores: dict[str, pd.DataFrame]) -> None:
    values = table.to_numpy()
    if name == "difference":
        far = max(float(np.nanmax(np.abs(values))), 1e-12)
        colours, low, high = CHANGES, -far, far
    else:
        shown = [t.reindex(index=table.columns, columns=table.index) for s, t in scores.items() if s != "difference"]
        low, high = min(t.min(axis=None) for t in shown), max(t.max(axis=None) for t in shown)
        colours = SHARES
    edges = np.arange(values.shape[1] + 1) - 0.5, np.arange(values.shape[0] + 1) - 0.5
    drawn = ax.pcolormesh(
        *edges, np.ma.masked_invalid(values), edgecolors="white", linewidth=0.5, cmap=colours, vmin=low, vmax=high
    )
    ax.set_facecolor("#EEEEEE")  # a regulator is no target of its own
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.015, aspect=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    bar.locator = MaxNLocator(nbins=3)
    ax.set_yticks(range(len(table)), [plain(gene) for gene in table.index], fontsize=8)
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_ylabel(plain(name), rotation=0, ha="right", va="center", fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)

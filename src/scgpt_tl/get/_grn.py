"""Edges of a gene network as a table, strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tl._slots import SLOTS
from scgpt_tl.get._network import known, names_there, network, pairs, scores, settings, symbols

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.get._network import Setting

_MOST_ROWS = 50_000_000  # of a table that still fits into memory beside its data


def grn_df(
    adata: AnnData,
    *,
    key: str = SLOTS.network,
    group: str | int | None = None,
    setting: Setting | None = None,
    regulators: str | Sequence[str] | None = None,
    n_top: int | None = None,
) -> pd.DataFrame:
    """Edges of a gene network, strongest first.

    `source`, `target` and `weight` are the columns that decoupler reads as a `net`. Weights of attention are
    associations: they have no sign, and their direction is unknown unless the data are perturbations.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn`.
    key
        The result's name: the `key_added` of the call.
    group
        One group of cells. None: each of them.
    setting
        Of a result with a control: "control", the control's cells; "perturbed", the other groups'; "difference", what
        is added to the control's score in the other groups (preprint, section 4.5), ranked by size, the sign kept.
        None: each group as it is.
    regulators
        Names of sources, of variables or as the model has them. None: all there are.
    n_top
        So many targets of each regulator in each group; of an embedding network without `regulators`, so many pairs.

    Returns
    -------
    One row per edge: `source`, the regulator; `target`; `weight`; `rank`, from 1, among the targets of that regulator
    in that group, equal weights in the order of names; `group`; and `setting`, empty where the result has no control. A
    gene and itself are left out. Regulators come in the order asked for, else by name. An embedding network has no
    direction: each pair stands once, the name that comes first in the alphabet as its source, ranked among all pairs;
    with `regulators` each stands with its neighbours.

    Raises
    ------
    KeyError
        Where a slot, a group or a regulator is missing, or no gene of the network is in `.var_names` any more; the
        message names what makes it.
    ValueError
        On a setting that the result does not have, `n_top` that is no whole number from 1, or a table too large for
        memory.
    """
    run = network(adata, key)
    _check_top(n_top)
    asked = [regulators] if isinstance(regulators, str) else None if regulators is None else list(regulators)
    if str(run["method"]) == "embedding":
        return _similar(adata, key, group, setting, asked, n_top)
    parts, wanted = [], settings(run, key, group, setting)
    names_there(adata, key)
    for name, called, number, base in wanted:
        targets, sources, weights = scores(adata, key, number)
        if base is not None:
            weights = weights - scores(adata, key, base)[2]
        if asked is not None:
            places = pd.Index(sources).get_indexer(known(asked, sources, key, "regulator", symbols=symbols(adata, key)))
            sources, weights = sources[places], weights[:, places]
        _refuse_huge(key, len(wanted), len(sources), min(n_top or len(targets), len(targets)))
        parts.append(_ranked(targets, sources, weights, n_top, by_size=base is not None))
        parts[-1]["group"], parts[-1]["setting"] = name, called
    return pd.concat(parts, ignore_index=True)


def _similar(
    adata: AnnData, key: str, group: object, setting: str | None, asked: list[str] | None, n_top: int | None
) -> pd.DataFrame:
    """Pairs of an embedding network."""
    run = network(adata, key)
    context = run.get("params", {}).get("context", False)
    whole = context if isinstance(context, str) else "all"
    if setting is not None or (group is not None and str(group) != whole):
        what = f"setting {setting!r}" if setting is not None else f"group {str(group)!r}"
        msg = f"{key!r} is one network of gene embeddings, of {whole!r}, without a {what}: "
        msg += "tl.scgpt_grn(method='embedding', groupby=..., context=GROUP) makes that of a group, "
        msg += "method='attention' with control= those of settings"
        raise ValueError(msg)
    edges, names = pairs(adata, key), adata.var_names.astype(str).to_numpy(dtype=object)
    one, other, weights = names[edges.row], names[edges.col], edges.data
    if asked is not None:
        asked = known(asked, names_there(adata, key), key, "gene", symbols=symbols(adata, key))
        one, other, weights = np.append(one, other), np.append(other, one), np.append(weights, weights)
        kept = np.isin(one.astype(str), asked)
        one, other, weights = one[kept], other[kept], weights[kept]
    else:
        one, other = np.where(one < other, one, other), np.where(one < other, other, one)
    table = pd.DataFrame({"source": one, "target": other, "weight": weights})
    if asked is None:
        table = table.sort_values(["weight", "source", "target"], ascending=[False, True, True], ignore_index=True)
        table["rank"] = np.arange(1, len(table) + 1)
    else:
        table["asked"] = table["source"].map({name: place for place, name in enumerate(asked)})
        table = table.sort_values(["asked", "weight", "target"], ascending=[True, False, True], ignore_index=True)
        table["rank"] = table.groupby("asked").cumcount() + 1
    table = table[table["rank"] <= (n_top or len(table))].reset_index(drop=True)
    return table[["source", "target", "weight", "rank"]].assign(group=whole, setting="")


def _ranked(
    targets: np.ndarray, sources: np.ndarray, weights: np.ndarray, n_top: int | None, *, by_size: bool
) -> pd.DataFrame:
    """The strongest targets of each source, of scores `(targets, sources)`, targets by name; NaN is no edge."""
    weights = weights.astype(np.float32)  # a copy
    weights[targets[:, None] == sources[None]] = np.nan
    size = np.abs(weights) if by_size else weights
    order = np.argsort(-size, axis=0, kind="stable")[:n_top]  # ties stay by name, NaN comes last
    taken = np.take_along_axis(weights, order, axis=0).T
    column, place = np.nonzero(~np.isnan(taken))  # source by source, rank by rank
    return pd.DataFrame(
        {
            "source": sources[column],
            "target": targets[order.T[column, place]],
            "weight": taken[column, place],
            "rank": place + 1,
        }
    )


def _check_top(n_top: object) -> None:
    if n_top is not None and not (isinstance(n_top, (int, np.integer)) and n_top >= 1):
        msg = f"n_top is {n_top!r}; a whole number from 1 is needed, or None for all"
        raise ValueError(msg)


def _refuse_huge(key: str, n_groups: int, n_sources: int, n_targets: int) -> None:
    rows = n_groups * n_sources * n_targets
    if rows > _MOST_ROWS:
        mend = "regulators=, n_top= or group=" if n_groups > 1 else "fewer regulators= or a lower n_top="
        msg = f"edges of {key!r} are a table of {rows:,} rows, and {_MOST_ROWS:,} are the most: give {mend}"
        raise ValueError(msg)

"""Slots -> tidy DataFrames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from scgpt_tl._slots import OWNER, SLOTS

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["history_df", "run_params"]


def run_params(adata: AnnData, *, key: str | None = None) -> pd.DataFrame:
    """What made a result: model, weights' sha256, seed, dtype, versions, genes matched.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl`.
    key
        The result's name in `.uns`: the `key_added` of the call, or scgpt where none was given.

    Returns
    -------
    One row per parameter (index `parameter`, dots where one lies inside another), column `value`.

    Raises
    ------
    KeyError
        Where `.uns` has no such result.
    """
    values = dict(_flat(_result(adata, key)))
    return pd.DataFrame({"value": pd.Series(values, dtype=object)}).rename_axis("parameter")


def history_df(data: Any, *, key: str | None = None) -> pd.DataFrame:
    """Training history, one row per record.

    Parameters
    ----------
    data
        An AnnData whose `.uns[key]` has a `history`; a `Model`, whose provenance has one; or the history itself: a
        DataFrame, columns in a mapping, or a sequence of records.
    key
        The result's name in `.uns`, scgpt where none is given.

    Returns
    -------
    Numeric columns; the index is named epoch or step where there is such a column, else it counts records.

    Raises
    ------
    KeyError
        Where there is no history.
    ValueError
        Where it is empty.
    """
    table = pd.DataFrame(_history(data, key))
    if table.empty:
        msg = "the training history is empty: no step was recorded"
        raise ValueError(msg)
    for name in ("step", "epoch"):
        if name in table:
            table = table.set_index(name)
            break
    return table.rename_axis(table.index.name or "record").apply(pd.to_numeric, errors="coerce")


def _history(data: Any, key: str | None) -> Any:
    if hasattr(data, "uns"):
        holder = _result(data, key)
    elif hasattr(data, "provenance"):
        holder = data.provenance
    elif isinstance(data, pd.DataFrame):
        return data.reset_index() if data.index.name in ("step", "epoch") else data
    elif isinstance(data, Mapping):
        return data.get("history", data)
    elif isinstance(data, Sequence) and not isinstance(data, str):
        return data
    else:
        msg = f"a training history is an AnnData, a Model, a DataFrame, a mapping or records, not {type(data).__name__}"
        raise TypeError(msg)
    if "history" not in holder:
        msg = f"no training history here: 'history' is not among {sorted(holder)}"
        raise KeyError(msg)
    return holder["history"]


def _result(adata: AnnData, key: str | None) -> Mapping[str, Any]:
    key = SLOTS.run if key is None else key
    found = adata.uns.get(key)
    if not isinstance(found, Mapping):
        ours = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and OWNER in value]
        msg = f"adata.uns has no result {key!r}; scgpt_tl.tl.scgpt_embed(adata) makes one. Results there: {ours}"
        raise KeyError(msg)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, names joined by dots; histories are left to `history_df`."""
    for name, value in values.items():
        if name == "history":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value

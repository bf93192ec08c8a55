"""What made a result, and how it was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS
from scgpt_tl.get._result import flat, result

if TYPE_CHECKING:
    from anndata import AnnData


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
    values = dict(flat(result(adata, SLOTS.run if key is None else key)))
    return pd.DataFrame({"value": pd.Series(values, dtype=object)}).rename_axis("parameter")


def history_df(data: Any, *, key: str | None = None) -> pd.DataFrame:
    """Training history, one row per record.

    Parameters
    ----------
    data
        An AnnData whose `.uns[key]` has a `history`; a `Model`, whose provenance has one; or the history itself: a
        DataFrame, columns in a mapping (those of a mapping inside it get its name and a slash before theirs), or a
        sequence of records.
    key
        The result's name in `.uns`. None: the only one with a history.

    Returns
    -------
    Numeric columns; the index is named step or epoch where there is such a column, else it counts records.

    Raises
    ------
    KeyError
        Where there is no history, or there are several and no `key` says which.
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
        holder = result(data, _with_history(data) if key is None else key)
    elif hasattr(data, "provenance"):
        holder = data.provenance
    elif isinstance(data, pd.DataFrame):
        return data.reset_index() if data.index.name in ("step", "epoch") else data
    elif isinstance(data, Mapping):
        holder = data if "history" in data else {"history": data}
    elif isinstance(data, Sequence) and not isinstance(data, str):
        return data
    else:
        msg = f"a training history is an AnnData, a Model, a DataFrame, a mapping or records, not {type(data).__name__}"
        raise TypeError(msg)
    if "history" not in holder:
        msg = f"no training history here: 'history' is not among {sorted(holder)}"
        raise KeyError(msg)
    found = holder["history"]
    # A slash in a name makes a group inside a group of an h5ad: what was {"train/loss": ...} is read as {"train": ...}.
    return dict(flat(found, joint="/")) if isinstance(found, Mapping) else found


def _with_history(adata: AnnData) -> str:
    """The only result with a training history."""
    found = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and "history" in value]
    if len(found) == 1:
        return found[0]
    if found:
        msg = f"several results have a training history: {found}; give key="
    else:
        makers = f"{MAKERS[SLOTS.label]} and {MAKERS[SLOTS.integration]} write one"
        msg = f"no result in adata.uns has a training history; {makers}. A model has its own: give the model"
    raise KeyError(msg)

"""Columns of `.obs` that name cell types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS, UNKNOWN
from scgpt_tl.metrics._checks import names

if TYPE_CHECKING:
    from anndata import AnnData


def column_of(adata: AnnData, name: str, key: str | None) -> pd.Series:
    """A column of `.obs`; `key` is the result that it belongs to, where it is not the user's own."""
    if name in adata.obs:
        return adata.obs[name]
    maker = "" if key is None else f"; {MAKERS.get(key, MAKERS[SLOTS.label])} makes it"
    msg = f"adata.obs has no column {name!r}{maker}; there are {list(adata.obs.columns)}"
    raise KeyError(msg)


def names_of(adata: AnnData, name: str, key: str | None = None) -> pd.Series:
    """A column of names as strings, a categorical in the order of the user's own; an empty name is a missing one."""
    groups = column_of(adata, name, key).astype("category")
    held = groups.cat.categories
    if pd.api.types.is_float_dtype(held) and not (held.to_numpy() % 1 == 0).all():  # whole ones are names
        msg = f".obs[{name!r}] holds measurements ({held.dtype}), where names are expected"
        raise ValueError(msg)
    spelled = dict(zip(held, names(held), strict=True))
    order = list(dict.fromkeys(text for text in spelled.values() if text is not None))
    return groups.astype(object).map(spelled).astype(pd.CategoricalDtype(order))


def truth_of(adata: AnnData, name: str) -> pd.Series:
    """Names of true types, at least one."""
    truth = names_of(adata, name)
    if truth.isna().all():
        msg = f".obs[{name!r}] holds no true type: every cell's is missing"
        raise ValueError(msg)
    if (truth == UNKNOWN).any():
        msg = f"{(truth == UNKNOWN).sum()} cells of .obs[{name!r}] have the true type {UNKNOWN!r}, which stands for "
        msg += "cells without a call: set them to NaN to leave them out, or give that type another name"
        raise ValueError(msg)
    return truth

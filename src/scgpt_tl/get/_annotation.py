"""Called cell types, cell by cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS
from scgpt_tl.get._labels import column_of
from scgpt_tl.get._result import result, strings

if TYPE_CHECKING:
    from anndata import AnnData


def annotation_df(adata: AnnData, *, key: str = SLOTS.label) -> pd.DataFrame:
    """What each cell was called, how surely, and what else it might be.

    Parameters
    ----------
    adata
        Annotated by `scgpt_tl.tl.scgpt_annotate` or mapped by `scgpt_tl.tl.scgpt_map`.
    key
        The result's name: the `key_added` of the call, scgpt_mapped after `scgpt_map`. Calls of another method are read
        too, where they lie likewise: `.obs[key]`, `.obs[key + "_probability"]` and, if there are any,
        `.obsm[key + "_probabilities"]` as a DataFrame whose columns are the types.

    Returns
    -------
    One row per cell, in the order of `.obs_names`: `pred`, the call, which may be unknown, and its `probability`; then
    the two likeliest types, whether called or not, `first`, `first_probability`, `second` and `second_probability`, and
    the `margin` between the two. The last five are missing where the result has no probabilities of all types.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ValueError
        Where probabilities and classes do not agree.
    """
    table = pd.DataFrame({"pred": column_of(adata, key, key), "probability": _confidence(adata, key)})
    classes, shares = _probabilities(adata, key)
    order = np.argsort(-shares, axis=1, kind="stable")
    known = np.isfinite(shares).all(axis=1)
    for place, name in enumerate(("first", "second")):
        codes, values = np.full(adata.n_obs, -1), np.full(adata.n_obs, np.nan, dtype=np.float32)
        if len(classes) > place:
            codes[known] = order[known, place]
            values[known] = shares[known, codes[known]]
        table[name] = pd.Categorical.from_codes(codes, categories=classes)
        table[f"{name}_probability"] = values
    table["margin"] = table["first_probability"] - table["second_probability"]
    return table


def _confidence(adata: AnnData, key: str) -> pd.Series:
    name = SLOTS.probability if key == SLOTS.label else f"{key}_probability"
    return column_of(adata, name, key)


def _probabilities(adata: AnnData, key: str) -> tuple[pd.Index, np.ndarray]:
    """Class names `(C,)` and probabilities `(n, C)`; no class where the result has none."""
    name = SLOTS.probabilities if key == SLOTS.label else f"{key}_probabilities"
    if name not in adata.obsm:
        return pd.Index([], dtype=object), np.empty((adata.n_obs, 0), dtype=np.float32)
    if isinstance(adata.obsm[name], pd.DataFrame):
        return adata.obsm[name].columns.astype(str), adata.obsm[name].to_numpy()
    shares, run = np.asarray(adata.obsm[name]), result(adata, key)
    if "classes" not in run:
        msg = f"adata.uns[{key!r}] names no classes for .obsm[{name!r}]: {MAKERS[SLOTS.label]} writes both"
        raise KeyError(msg)
    classes = pd.Index(strings(run["classes"]), dtype=object)
    if shares.ndim != 2 or shares.shape[1] != len(classes):
        msg = f"adata.obsm[{name!r}] has the shape {shares.shape}, and .uns[{key!r}] names {len(classes)} classes"
        raise ValueError(msg)
    return classes, shares

"""Slots -> tidy DataFrames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from scgpt_tl._slots import MAKERS, OWNER, SLOTS, UNKNOWN

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["annotation_df", "calibration_df", "confusion_df", "history_df", "run_params"]

#: Result -> the function that makes it; a key that the user chose is taken for an annotation.


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
    values = dict(_flat(_result(adata, SLOTS.run if key is None else key)))
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
    table = pd.DataFrame({"pred": _column(adata, key, key), "probability": _confidence(adata, key)})
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


def confusion_df(adata: AnnData, *, truth_key: str, pred_key: str = SLOTS.label) -> pd.DataFrame:
    """How often cells of each true type were called each type.

    Parameters
    ----------
    adata
        Holds both columns in `.obs`.
    truth_key
        Column with the true types. Cells without one are left out.
    pred_key
        Column with the calls: of `scgpt_tl.tl.scgpt_annotate`, or of any other method. A missing one counts as unknown.

    Returns
    -------
    One row per pair: `truth` and `pred`, `n` cells, and `share` of the cells of that true type. Both are categoricals
    in an order in which the diagonal reads: names that both have come first, then other names, each beside the type
    that it is called most; unknown is the last call. `.attrs["n_missing"]` counts the cells left out.

    Raises
    ------
    KeyError
        Where a column is missing; the message names what makes it.
    ValueError
        Where a column holds measurements, not names, or no cell has a true type.
    """
    truth, pred = _truth(adata, truth_key), _names(adata, pred_key, pred_key)
    kept = truth.notna().to_numpy()
    if UNKNOWN not in pred.cat.categories:
        pred = pred.cat.add_categories([UNKNOWN])
    n = pd.crosstab(truth[kept].astype(str), pred[kept].fillna(UNKNOWN).astype(str))
    rows = [name for name in truth.cat.categories if name in n.index]
    columns = [name for name in pred.cat.categories if name in n.columns or name in rows]
    rows, columns = _diagonal(n.reindex(index=rows, columns=columns, fill_value=0))
    table = n.reindex(index=rows, columns=columns, fill_value=0).rename_axis(index="truth", columns="pred")
    tidy = table.stack().rename("n").reset_index()
    tidy["truth"] = pd.Categorical(tidy["truth"], categories=rows, ordered=True)
    tidy["pred"] = pd.Categorical(tidy["pred"], categories=columns, ordered=True)
    tidy["share"] = tidy["n"] / tidy.groupby("truth", observed=True)["n"].transform("sum")
    tidy.attrs["n_missing"] = int((~kept).sum())
    return tidy


def calibration_df(adata: AnnData, *, truth_key: str, key: str = SLOTS.label, n_bins: int = 15) -> pd.DataFrame:
    """Whether calls made with confidence p are right in p of the cases (a reliability diagram's numbers).

    Each cell counts with its likeliest type, called or held back as unknown; where the result has no probabilities of
    all types, with its call, and cells called unknown are left out. A type that the reference lacks cannot be told:
    such cells count as wrong.

    Parameters
    ----------
    adata
        Annotated by `scgpt_tl.tl.scgpt_annotate` or mapped by `scgpt_tl.tl.scgpt_map`.
    truth_key
        Column of `.obs` with the true types, named as the reference names them. Cells without one are left out.
    key
        The result's name: the `key_added` of the call, scgpt_mapped after `scgpt_map`.
    n_bins
        Bins of equal width over (0, 1].

    Returns
    -------
    One row per bin: its edges `low` and `high`, `n` cells, their mean `confidence` and `accuracy` (missing in an empty
    bin). `.attrs["ece"]` is the expected calibration error, the mean of `|accuracy - confidence|` over cells
    (Guo et al. 2017, equation 3); `n_cells` and `n_missing` are beside it.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ValueError
        Where probabilities and classes do not agree, probabilities are not in [0, 1], or no cell can be judged.
    """
    if n_bins < 1:
        msg = f"n_bins is {n_bins}; at least one bin is needed"
        raise ValueError(msg)
    truth, (named, confidence) = _truth(adata, truth_key), _likeliest(adata, key)
    kept = (truth.notna() & named.notna()).to_numpy() & np.isfinite(confidence)
    if not kept.any():
        msg = f"no cell has both a true type in .obs[{truth_key!r}] and a probability of {key!r}"
        raise ValueError(msg)
    confidence = confidence[kept]
    if confidence.min() < 0 or confidence.max() > 1:
        msg = f"probabilities of {key!r} run from {confidence.min():.3g} to {confidence.max():.3g}, not within [0, 1]"
        raise ValueError(msg)
    right = (truth[kept].astype(str) == named[kept].astype(str)).to_numpy()
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    n = np.bincount(bins, minlength=n_bins)
    some = np.where(n > 0, n, np.nan)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": n}).rename_axis("bin")
    table["confidence"] = np.bincount(bins, confidence, minlength=n_bins) / some
    table["accuracy"] = np.bincount(bins, right, minlength=n_bins) / some
    gaps = (table["accuracy"] - table["confidence"]).abs()
    table.attrs = {"ece": float((gaps * n).sum() / n.sum()), "n_cells": int(n.sum()), "n_missing": int((~kept).sum())}
    return table


def _likeliest(adata: AnnData, key: str) -> tuple[pd.Series, np.ndarray]:
    """Each cell's likeliest type and its probability, float64."""
    found = annotation_df(adata, key=key)
    if found["first"].notna().any():
        return found["first"], found["first_probability"].to_numpy(dtype=np.float64)
    return found["pred"].where(found["pred"].astype(str) != UNKNOWN), found["probability"].to_numpy(dtype=np.float64)


def _column(adata: AnnData, name: str, key: str | None) -> pd.Series:
    """A column of `.obs`; `key` is the result that it belongs to, where it is not the user's own."""
    if name in adata.obs:
        return adata.obs[name]
    maker = "" if key is None else f"; {MAKERS.get(key, MAKERS[SLOTS.label])} makes it"
    msg = f"adata.obs has no column {name!r}{maker}; there are {list(adata.obs.columns)}"
    raise KeyError(msg)


def _names(adata: AnnData, name: str, key: str | None = None) -> pd.Series:
    """A column of names as strings, a categorical in the order of the user's own; an empty name is a missing one."""
    column = _column(adata, name, key)
    if pd.api.types.is_float_dtype(column):  # whole numbers that a missing value has turned into floats are names
        if not column.dropna().mod(1).eq(0).all():
            msg = f".obs[{name!r}] holds measurements ({column.dtype}), where names of cell types are expected"
            raise ValueError(msg)
        column = column.astype("Int64")
    groups = column.astype("category")
    spelled = {name: str(name) for name in groups.cat.categories}
    order = list(dict.fromkeys(text for text in spelled.values() if text.strip()))
    return groups.astype(object).map(spelled).astype(pd.CategoricalDtype(order))


def _truth(adata: AnnData, name: str) -> pd.Series:
    """Names of true types, at least one."""
    truth = _names(adata, name)
    if truth.isna().all():
        msg = f".obs[{name!r}] holds no true type: every cell's is missing"
        raise ValueError(msg)
    if (truth == UNKNOWN).any():
        msg = f"{(truth == UNKNOWN).sum()} cells of .obs[{name!r}] have the true type {UNKNOWN!r}, which stands for "
        msg += "cells without a call: set them to NaN to leave them out, or give that type another name"
        raise ValueError(msg)
    return truth


def _confidence(adata: AnnData, key: str) -> pd.Series:
    name = SLOTS.probability if key == SLOTS.label else f"{key}_probability"
    return _column(adata, name, key)


def _probabilities(adata: AnnData, key: str) -> tuple[pd.Index, np.ndarray]:
    """Class names `(C,)` and probabilities `(n, C)`; no class where the result has none."""
    name = SLOTS.probabilities if key == SLOTS.label else f"{key}_probabilities"
    if name not in adata.obsm:
        return pd.Index([], dtype=object), np.empty((adata.n_obs, 0), dtype=np.float32)
    if isinstance(adata.obsm[name], pd.DataFrame):
        return adata.obsm[name].columns.astype(str), adata.obsm[name].to_numpy()
    shares, run = np.asarray(adata.obsm[name]), _result(adata, key)
    if "classes" not in run:
        msg = f"adata.uns[{key!r}] names no classes for .obsm[{name!r}]: {MAKERS[SLOTS.label]} writes both"
        raise KeyError(msg)
    classes = pd.Index(np.asarray(run["classes"]).astype(str), dtype=object)
    if shares.ndim != 2 or shares.shape[1] != len(classes):
        msg = f"adata.obsm[{name!r}] has the shape {shares.shape}, and .uns[{key!r}] names {len(classes)} classes"
        raise ValueError(msg)
    return classes, shares


def _diagonal(n: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Rows and columns in an order in which like stands beside like.

    Names on both sides come first, in the order of the rows. Others are paired so that the shares of all pairs sum to
    the most; what finds no partner follows the pair that it goes with most. Unknown is last.
    """
    shared = [name for name in n.index if name in n.columns]
    share = n.div(n.sum(axis=1).clip(lower=1), axis=0)
    others = share.drop(index=shared).drop(columns=[*shared, UNKNOWN], errors="ignore")
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(others, maximize=True), strict=True) if others.iat[i, j] > 0]
    rows, columns = [others.index[i] for i, _ in pairs], [others.columns[j] for _, j in pairs]
    last = [UNKNOWN] * (UNKNOWN in n.columns)
    return shared + _beside(rows, others[columns]), shared + _beside(columns, others.loc[rows].T) + last


def _beside(first: list[str], weights: pd.DataFrame) -> list[str]:
    """Names `(m,)` by place in `first`; one that has none follows that of its largest weight `(m, first)`."""
    place = {name: int(w.argmax()) if w.any() else len(first) for name, w in weights.iterrows()}
    place |= {name: number for number, name in enumerate(first)}
    return sorted([*first, *(name for name in weights.index if name not in first)], key=place.__getitem__)


def _history(data: Any, key: str | None) -> Any:
    if hasattr(data, "uns"):
        holder = _result(data, _with_history(data) if key is None else key)
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
    return dict(_flat(found, joint="/")) if isinstance(found, Mapping) else found


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


def _result(adata: AnnData, key: str) -> Mapping[str, Any]:
    found = adata.uns.get(key)
    if not isinstance(found, Mapping):
        ours = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and OWNER in value]
        maker = MAKERS.get(key, MAKERS[SLOTS.run])
        msg = f"adata.uns has no result {key!r}; {maker} makes one. Results there: {ours}"
        raise KeyError(msg)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "", *, joint: str = ".") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, names joined; histories are left to `history_df`."""
    for name, value in values.items():
        if name == "history":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}{joint}", joint=joint)
        else:
            yield f"{prefix}{name}", value

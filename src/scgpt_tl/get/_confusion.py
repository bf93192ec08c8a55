"""Called types against true ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from scipy.optimize import linear_sum_assignment

from scgpt_tl._slots import SLOTS, UNKNOWN
from scgpt_tl.get._labels import names_of, truth_of

if TYPE_CHECKING:
    from anndata import AnnData


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
    truth, pred = truth_of(adata, truth_key), names_of(adata, pred_key, pred_key)
    kept = truth.notna().to_numpy()
    if UNKNOWN not in pred.cat.categories:
        pred = pred.cat.add_categories([UNKNOWN])
    pairs = truth[kept].to_numpy(dtype=str), pred[kept].fillna(UNKNOWN).to_numpy(dtype=str)  # cells may share a name
    n = pd.crosstab(*pairs)
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

"""Several ways to call the types of the same cells side by side, and beside the simple methods, in one table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS, UNKNOWN
from scgpt_tl.metrics import _checks
from scgpt_tl.metrics._compare import by_name, chosen, column, expression
from scgpt_tl.metrics._labels import class_scores
from scgpt_tl.metrics._verdict import verdict
from scgpt_tl.metrics.baselines import CLASSIFIERS

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
_LEAST_GENES = 3
_FEW = 0.5  # share of common genes below which it is said
_COUNTS = ("n_cells", "n_unknown", "n_unlabelled")


def compare_labels(
    adata: AnnData,
    *,
    predictions: Mapping[str, str] | Sequence[str],
    labels_key: str,
    reference: AnnData | None = None,
    reference_labels_key: str | None = None,
    baselines: Sequence[str] | Mapping[str, Mapping[str, Any]] = tuple(CLASSIFIERS),
    layer: str | None = None,
    unknown: str | None = UNKNOWN,
    n_bins: int = 15,
) -> pd.DataFrame:
    """Score called cell types against true ones (preprint, S.5.1), beside what simple methods learn on a reference.

    Parameters
    ----------
    adata
        Holds calls and truth in `.obs`; nothing is written to it.
    predictions
        Name to show -> column of `.obs`, or columns alone. The first one is judged against the others. Where `.obsm`
        holds probabilities beside it (`key + "_probabilities"`, a DataFrame or an array with the names of its columns
        in `.uns[key]["classes"]`, as `tl.scgpt_annotate` leaves them), their calibration error is taken.
    labels_key
        Column of `.obs` with the true types; cells without one are left out and counted.
    reference
        Cells that baselines learn from, those that the judged method learned from. None: no baselines.
    reference_labels_key
        Column of `reference.obs` with their types; None: `labels_key`.
    baselines
        Of "logistic_regression", "knn_pca" and "majority", those to show. A mapping gives each one's options,
        {"knn_pca": {"k": 30}}. They see the genes whose names both sides have once, by `pp.harmonize_genes` where it
        was run, and learn from the cells that `tl.scgpt_annotate` learns from: those whose type is known.
    layer
        Layer of both with counts or log-normalised values for the baselines; None: `.X`.
    unknown
        What a cell is called that is not called: an error, and counted. None: a type like any other.
    n_bins
        Bins of the calibration error.

    Returns
    -------
    One row per method (index `method`) with the columns accuracy, balanced accuracy, precision, recall and F1, each
    (macro) and (micro), ECE (NaN without probabilities), n_cells, n_unknown and n_unlabelled; see
    `metrics.class_scores`. `.attrs["verdict"]` is one plain sentence on F1 (macro).

    Raises
    ------
    KeyError
        Where a column is missing; the message names what makes it.
    ValueError
        Where nothing is to be scored, a baseline is unknown, both sides share fewer than 3 genes, or the labels cannot
        be scored.
    """
    predictions = by_name(predictions)
    if not predictions:
        msg = "predictions is empty: give {name: column of adata.obs}, the one to be judged first"
        raise ValueError(msg)
    wanted = chosen(baselines, CLASSIFIERS, predictions) if reference is not None else {}
    column(adata, labels_key)
    for key in predictions.values():
        if key in MAKERS and key not in adata.obs:
            msg = f"adata.obs has no {key!r}; {MAKERS[key]} makes it"
            raise KeyError(msg)
        column(adata, key, "predictions")
    truth = adata.obs[labels_key]
    rows = {}
    for name, key in predictions.items():
        shares, classes = _probabilities(adata, key)
        scores = class_scores(
            truth, adata.obs[key], probabilities=shares, classes=classes, unknown=unknown, n_bins=n_bins
        )
        rows[name] = scores.to_dict()
    if reference is not None and wanted:
        labels = _types(reference, reference_labels_key or labels_key, unknown)
        known, query = _sides(adata, reference, layer)
        for name, options in wanted.items():
            title, call = CLASSIFIERS[name]
            called, shares, classes = call(known, labels, query, **options)
            scores = class_scores(truth, called, probabilities=shares, classes=classes, unknown=unknown, n_bins=n_bins)
            rows[title] = scores.to_dict()
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").astype(dict.fromkeys(_COUNTS, int))
    table.attrs["verdict"] = verdict(table, by="F1 (macro)")
    return table


def _probabilities(adata: AnnData, key: str) -> tuple[Any, Any]:
    """Probabilities `(n, C)` that lie beside a column of calls and the names of their columns; None, None without."""
    place = SLOTS.probabilities if key == SLOTS.label else f"{key}_probabilities"
    if place not in adata.obsm:
        return None, None
    shares = adata.obsm[place]
    if isinstance(shares, pd.DataFrame):
        return shares.to_numpy(), shares.columns
    told = adata.uns.get(key)
    if not isinstance(told, Mapping) or "classes" not in told:
        msg = f".obsm[{place!r}] holds probabilities, and .uns[{key!r}]['classes'] does not name their columns: write "
        msg += "them there, or make the probabilities a DataFrame"
        raise KeyError(msg)
    return shares, told["classes"]


def _types(reference: AnnData, key: str, unknown: str | None) -> np.ndarray:
    """Types of the reference's cells, None where one is missing."""
    if key not in reference.obs:
        msg = f"reference.obs has no column {key!r}; reference_labels_key may be one of {list(reference.obs.columns)}"
        raise KeyError(msg)
    return (_checks.names if unknown is None else _checks.types)(reference.obs[key])


def _sides(adata: AnnData, reference: AnnData, layer: str | None) -> tuple[Any, Any]:
    """Values of the reference and of the query, over the genes whose names both have once."""
    ours, theirs = _gene_names(adata), _gene_names(reference)
    shared = theirs[~theirs.duplicated(keep=False) & theirs.isin(ours[~ours.duplicated(keep=False)])]
    said = f"{len(shared):,} genes of the reference ({list(theirs[:3])} ...) are in the query ({list(ours[:3])} ...)"
    cure = "scgpt_tl.pp.harmonize_genes, on both, gives them the same names"
    if len(shared) < _LEAST_GENES:
        msg = f"{said}: baselines learn from nothing else; {cure}"
        raise ValueError(msg)
    if len(shared) < _FEW * min(len(ours), len(theirs)):
        logger.warning("%s, and baselines learn from these alone; %s", said, cure)
    known, query = expression(reference, layer), expression(adata, layer)
    return known[:, theirs.get_indexer_for(shared)], query[:, ours.get_indexer_for(shared)]


def _gene_names(adata: AnnData) -> pd.Index:
    """Names of the variables, those of `pp.harmonize_genes` where it has found one."""
    given = adata.var_names.astype(str).to_numpy(object)
    if SLOTS.gene not in adata.var:
        return pd.Index(given)
    found = adata.var[SLOTS.gene].astype(object).fillna("").to_numpy(object)
    return pd.Index(np.where(found != "", found, given))

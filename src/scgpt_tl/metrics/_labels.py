"""How right called cell types are, and how far their probabilities can be believed (preprint, S.5.1).

Arrays in, numbers out; scikit-learn counts. A cell that is called "unknown" is a cell that is not called: it lowers
accuracy and recall, and leaves precision alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from scgpt_tl._slots import UNKNOWN
from scgpt_tl.metrics._checks import names
from scgpt_tl.metrics._reliability import reliability

#: Probabilities of a cell may sum to one with this error: float32, and roundings to three digits on disk.
_SUM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ClassScores:
    """What `class_scores` found. All but `ece` are higher where better, between 0 and 1."""

    accuracy: float
    """Share of cells called right."""
    balanced_accuracy: float
    """Mean over the true classes of the share called right; the same number as `recall_macro`."""
    precision_macro: float
    precision_micro: float
    """Share right of the cells that were called at all."""
    recall_macro: float
    recall_micro: float
    """The same number as `accuracy`: every cell has one true class."""
    f1_macro: float
    f1_micro: float
    ece: float
    """Expected calibration error, lower is better; NaN without probabilities."""
    n_cells: int
    """Cells with a true label: those that were scored."""
    n_unknown: int
    """Cells of these that were called "unknown" or not called."""
    n_unlabelled: int = 0
    """Cells left out for want of a true label."""

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, scores under the names that tables show."""
        return {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "precision (macro)": self.precision_macro,
            "precision (micro)": self.precision_micro,
            "recall (macro)": self.recall_macro,
            "recall (micro)": self.recall_micro,
            "F1 (macro)": self.f1_macro,
            "F1 (micro)": self.f1_micro,
            "ECE": self.ece,
            "n_cells": self.n_cells,
            "n_unknown": self.n_unknown,
            "n_unlabelled": self.n_unlabelled,
        }


def class_scores(
    truth: Any,
    predicted: Any,
    *,
    probabilities: Any = None,
    classes: Any = None,
    unknown: str | None = UNKNOWN,
    n_bins: int = 15,
) -> ClassScores:
    """Accuracy, precision, recall and F1 of called classes, and the calibration of their probabilities (S.5.1).

    Macro scores are means over the classes that occur in the truth, each with the same weight, so that two methods
    are divided by the same classes whatever they call; micro scores count all cells alike. A class that is never
    called has precision 0. A class that is called and never true counts against the cells that were called so.

    Parameters
    ----------
    truth
        `(n,)` true classes; cells whose class is missing (NaN, None, empty) are left out and counted.
    predicted
        `(n,)` called classes. A missing one counts as unknown.
    probabilities
        `(n, C)`, rows that sum to one; only the calibration error is taken from them.
    classes
        `(C,)` names of the columns of `probabilities`.
    unknown
        What a cell is called that is not called; `None`: no such name, every name is a class.
    n_bins
        Bins of the calibration error.

    Raises
    ------
    ValueError
        On lengths that do not agree, no labelled cell, probabilities of another shape or not summing to one, or a
        true class of the name that stands for unknown.
    """
    true, called = names(truth), names(predicted)
    if len(true) != len(called):
        msg = f"{len(true)} true labels but {len(called)} predicted ones"
        raise ValueError(msg)
    kept = pd.notna(true)
    if not kept.any():
        msg = f"none of the {len(true)} cells has a true label; is this the right column of .obs?"
        raise ValueError(msg)
    if unknown is not None and (true == unknown).any():
        msg = (
            f"{(true == unknown).sum()} cells have the true label {unknown!r}, which stands for cells without a call: "
        )
        msg += "set them to NaN to leave them out, or unknown=None to score it as a class like any other"
        raise ValueError(msg)
    calibration = _calibration(probabilities, classes, true, kept, n_bins)
    true, called = true[kept], called[kept]
    open_ = pd.isna(called) | (called == unknown)  # no name equals None
    called = np.where(open_, "", called).astype(str)  # no class bears the empty name
    macro, micro = _counted(true.astype(str), called)
    return ClassScores(
        accuracy=float((true == called).mean()),
        balanced_accuracy=macro[1],
        precision_macro=macro[0],
        precision_micro=micro[0],
        recall_macro=macro[1],
        recall_micro=micro[1],
        f1_macro=macro[2],
        f1_micro=micro[2],
        ece=calibration,
        n_cells=len(true),
        n_unknown=int(open_.sum()),
        n_unlabelled=int((~kept).sum()),
    )


def ece(probabilities: Any, codes: Any, *, n_bins: int = 15) -> float:
    """Expected calibration error: sum over bins b of `|b| / n * |accuracy(b) - confidence(b)|` (Guo et al. 2017).

    A cell's confidence is its largest probability, and it is right where that column is its true class. Bins are of
    equal width over 0 to 1, each closed on its right.

    Parameters
    ----------
    probabilities
        `(n, C)`, rows that sum to one.
    codes
        `(n,)` column of each cell's true class; -1 where no column is: whatever is called there is wrong.
    n_bins
        How many bins.

    Raises
    ------
    ValueError
        On other shapes, rows that do not sum to one, or codes outside -1 ... C - 1.
    """
    shares = _shares(probabilities)
    true = np.asarray(codes)
    if true.shape != (len(shares),) or not np.issubdtype(true.dtype, np.integer):
        msg = f"codes must be {len(shares)} integers, one per row of probabilities, found {true.dtype} {true.shape}"
        raise ValueError(msg)
    if len(true) and not -1 <= true.min() <= true.max() < shares.shape[1]:
        msg = f"codes run from {true.min()} to {true.max()}, but probabilities have {shares.shape[1]} columns"
        raise ValueError(msg)
    return reliability(shares.max(axis=1), shares.argmax(axis=1) == true, n_bins).ece


def _counted(true: np.ndarray, called: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Precision, recall and F1: macro over the true classes, micro over every name but the empty one."""
    occurring = np.unique(true)
    any_ = np.union1d(occurring, called[called != ""])
    macro = precision_recall_fscore_support(true, called, labels=occurring, average="macro", zero_division=0)
    micro = precision_recall_fscore_support(true, called, labels=any_, average="micro", zero_division=0)
    return tuple(map(float, macro[:3])), tuple(map(float, micro[:3]))


def _calibration(probabilities: Any, classes: Any, true: np.ndarray, kept: np.ndarray, n_bins: int) -> float:
    """ECE of the labelled cells, NaN where no probabilities are given."""
    if probabilities is None:
        return float("nan")
    shape = np.shape(probabilities)
    if classes is None or shape != (len(true), len(classes)):
        found = "no classes" if classes is None else f"{len(classes)} classes"
        msg = f"probabilities have shape {shape} for {len(true)} cells and {found}: one row per cell is needed, and "
        msg += "the name of every column in classes"
        raise ValueError(msg)
    column = {name: i for i, name in enumerate(names(classes))}
    if len(column) != len(classes):
        msg = f"classes names {len(classes)} columns with only {len(column)} different names"
        raise ValueError(msg)
    codes = np.array([column.get(name, -1) for name in true[kept]], dtype=np.int64)
    return ece(np.asarray(probabilities)[kept], codes, n_bins=n_bins)


def _shares(probabilities: Any) -> np.ndarray:
    shares = np.asarray(probabilities, dtype=np.float64)
    if shares.ndim != 2 or not shares.size:
        msg = f"probabilities must have shape (cells, classes), neither of them 0, found {shares.shape}"
        raise ValueError(msg)
    if not np.isfinite(shares).all() or (shares < 0).any():
        bad = int((~(np.isfinite(shares) & (shares >= 0))).any(axis=1).sum())
        msg = f"{bad} of {len(shares)} rows of probabilities hold negative, NaN or infinite values"
        raise ValueError(msg)
    off = np.abs(shares.sum(axis=1) - 1)
    if (off > _SUM_TOLERANCE).any():
        msg = (
            f"{int((off > _SUM_TOLERANCE).sum())} of {len(shares)} rows of probabilities do not sum to one (the first "
        )
        msg += f"to {shares[off > _SUM_TOLERANCE][0].sum():.3g}); give softmax(logits), not logits"
        raise ValueError(msg)
    return shares

"""What every score asks of its arrays: points that are finite, labels that may be missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from scgpt_tl._slots import UNKNOWN


def numbers(embedding: Any) -> np.ndarray:
    """An embedding as an array of numbers, whatever it is kept in."""
    found = embedding.toarray() if issparse(embedding) else np.asarray(embedding)
    try:
        if found.dtype.kind == "O":
            return found.astype(np.float64)
        return found if found.dtype.kind in "biuf" else found.astype(np.float64, casting="safe")
    except (TypeError, ValueError) as error:
        msg = f"an embedding must hold real numbers, found {found.dtype} ({error})"
        raise ValueError(msg) from error


def points(embedding: Any) -> np.ndarray:
    """An embedding as an array `(n, D)`, refused where it has no such shape or values that are not finite."""
    found = numbers(embedding)
    if found.ndim != 2 or len(found) < 3:
        msg = f"an embedding must have shape (cells, dimensions) with at least 3 cells, found {found.shape}"
        raise ValueError(msg)
    bad = int((~np.isfinite(found).all(axis=1)).sum())
    if bad:
        msg = f"{bad} of {len(found)} cells have NaN or infinite values in their embedding; leave them out"
        raise ValueError(msg)
    return found


#: What missing values become as text, in small letters.
_MISSING = ("", "nan", "<na>", "nat")
#: And what says of a cell that its type is not known. A batch or a condition may be called so.
_NO_TYPE = (UNKNOWN, "none")


def names(labels: Any) -> np.ndarray:
    """Labels `(n,)` as an object array of str; None where one is missing (NaN, None, their text, empty).

    Whole numbers are written alike as int, float or str, so that a column that a missing value has turned into floats
    still names the same classes; blanks around a name are no part of it.
    """
    values = np.asarray(labels, dtype=object)
    if values.ndim != 1:
        msg = f"labels must have shape (cells,), found {values.shape}"
        raise ValueError(msg)
    codes, distinct = pd.factorize(pd.Series(values, dtype=object))
    spelled = np.array([_spelled(name) for name in distinct] + [None], dtype=object)  # the code -1 takes the last
    return spelled[codes]


def _spelled(name: Any) -> str | None:
    whole = isinstance(name, float | np.floating) and float(name).is_integer()
    text = str(int(name) if whole else name).strip()
    return None if text.lower() in _MISSING else text


def types(labels: Any) -> np.ndarray:
    """Names `(n,)` of cell types; None also where the type is said to be unknown."""
    found = names(labels)
    found[[name is not None and name.lower() in _NO_TYPE for name in found]] = None
    return found


def codes(labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Code of each label `(n,)`, -1 where it is missing, and the names `(C,)` in sorted order."""
    return pd.factorize(names(labels), sort=True)


def refuse_unlabelled(codes: np.ndarray) -> None:
    """Refuse codes of labels none of which is known: there is nothing to score."""
    if not (codes >= 0).any():
        msg = f"none of the {len(codes)} cells has a label; is this the right column of .obs?"
        raise ValueError(msg)


def labelled(embedding: Any, labels: Any, *, what: str = "labels") -> tuple[np.ndarray, np.ndarray, int]:
    """Points and label codes of the cells that have a label, and the number that have none."""
    found = points(embedding)
    coded, distinct = codes(labels)
    same_length(len(found), coded, what)
    kept = coded >= 0
    if not 2 <= len(distinct) < kept.sum():
        msg = f"{len(distinct)} distinct {what} on {kept.sum()} labelled cells: at least 2 {what} and more cells"
        msg += f" than {what} are needed; is this the right column of .obs?"
        raise ValueError(msg)
    return found[kept], coded[kept], int((~kept).sum())


def both(embedding: Any, labels: Any, batches: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Points, type codes and batch codes of the cells that have a label and a batch, and the number of the others."""
    found = points(embedding)
    types, _ = codes(labels)
    same_length(len(found), types, "labels")
    same_length(len(found), batches, "batches")
    refuse_unlabelled(types)
    batch = names(batches)
    batch[types < 0] = None
    kept = pd.notna(batch)
    found, coded, n_left_out = labelled(found, batch, what="batches")
    return found, types[kept], coded, n_left_out


def same_length(n_cells: int, values: Any, what: str, where: str = "the embedding") -> None:
    """Refuse `values` that are not one per cell."""
    if len(values) != n_cells:
        msg = f"{n_cells} cells in {where} but {len(values)} {what}"
        raise ValueError(msg)

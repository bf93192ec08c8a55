"""What `.obs` says of the cells of a reference: labels and batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tl.metrics._checks import names, types

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """What `.obs` says of the cells of a reference."""

    labels_key: str | None
    codes: np.ndarray | None
    """(n,) int32, -1: none."""
    classes: tuple[str, ...]
    batch_key: str | None
    batches: np.ndarray | None
    """(n,) int32."""
    batch_names: tuple[str, ...]
    n_cells: int

    @classmethod
    def of(cls, data: AnnData, labels_key: str | None, batch_key: str | None, *, least: int = 2) -> Columns:
        """Read and check; `least` types are needed."""
        codes, classes = (None, ()) if labels_key is None else _labels(data, labels_key, least)
        batches, batch_names = (None, ()) if batch_key is None else _batches(data, batch_key)
        return cls(labels_key, codes, classes, batch_key, batches, batch_names, data.n_obs)

    @property
    def voters(self) -> np.ndarray:
        """(n,) codes; without labels all cells are of one kind."""
        return np.zeros(self.n_cells, np.int32) if self.codes is None else self.codes

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept of each cell beside its embedding and key."""
        held = {"labels": self.codes, "batches": self.batches}
        return {name: values for name, values in held.items() if values is not None}


def types_of(values: Any, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) str names of types, without blanks around them, and (n,) bool where there is none.

    No type: no value, its text ("nan", "<NA>", "None"), an empty text, "unknown"; in letters of any case. Numbers are
    names too where all are whole, 1.0 as "1".

    Raises
    ------
    ValueError
        Numbers with fractions.
    """
    column = pd.Series(np.asarray(values, dtype=object))
    refuse_measurements(column, labels_key, "labels_key", "types", "reference.obs")
    found = types(column)
    missing = pd.isna(found)
    return np.where(missing, "", found).astype(str), missing


def refuse_measurements(column: pd.Series, key: str, argument: str, what: str, place: str) -> None:
    """Refuse numbers with fractions, and say that whole ones are names of `what`."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    floats = kind in ("floating", "mixed-integer-float")
    if kind in ("decimal", "complex") or (floats and (pd.to_numeric(column).dropna() % 1 != 0).any()):
        msg = (
            f"{argument}={key!r} holds numbers with fractions, no names of {what}; if they number {what}, make them "
            f"text first: {place}[{key!r}].astype('Int64').astype(str)"
        )
        raise ValueError(msg)
    if floats or kind in ("integer", "boolean", "mixed-integer"):
        logger.warning("%s=%r holds numbers: they are taken as names of %s", argument, key, what)


def _column(data: AnnData, key: str, argument: str) -> pd.Series:
    """A column of `.obs`, whatever it holds."""
    if key not in data.obs:
        there = ", ".join(map(repr, data.obs)) or "none"
        near = get_close_matches(key, map(str, data.obs), 1)
        msg = f"{argument}={key!r} is not in .obs (there: {there})" + (f"; did you mean {near[0]!r}?" if near else "")
        raise KeyError(msg)
    return pd.Series(np.asarray(data.obs[key], dtype=object))


def _labels(data: AnnData, key: str, least: int) -> tuple[np.ndarray, tuple[str, ...]]:
    text, missing = types_of(_column(data, key, "labels_key"), key)
    classes, codes = np.unique(text[~missing], return_inverse=True)
    if len(classes) < least:
        found = f"one type, {str(classes[0])!r}" if len(classes) else "no type at all"
        msg = (
            f"labels_key={key!r}: the reference has {found}; two or more are needed to tell them apart "
            "(labels_key=None maps to places without labels)"
        )
        raise ValueError(msg)
    if n := int(missing.sum()):
        logger.warning("%s of %s cells have no label in %r: they are kept, and do not vote", f"{n:,}", len(text), key)
    held = np.full(len(text), -1, np.int32)
    held[~missing] = codes
    return held, tuple(classes.tolist())


def _batches(data: AnnData, key: str) -> tuple[np.ndarray, tuple[str, ...]]:
    text = names(_column(data, key, "batch_key"))
    if n := int(pd.isna(text).sum()):
        msg = f"{n:,} cells have no {key!r}; drop them, or name their batch ('unknown')"
        raise ValueError(msg)
    batches, codes = np.unique(text.astype(str), return_inverse=True)
    return codes.astype(np.int32), tuple(batches.tolist())

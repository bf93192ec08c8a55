"""Cells of the CELLxGENE Census, or of any SOMA experiment, read by their numbers while training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._compat import need
from scgpt_tl.engine.study import Source
from scgpt_tl.genes.canonical import canonical_names
from scgpt_tl.genes.match import INDEX, KNOWN_COLUMNS
from scgpt_tl.genes.table import hgnc_table
from scgpt_tl.pp._blocks import Matrix
from scgpt_tl.pp._readers import Rows, build, stack

if TYPE_CHECKING:
    from scipy import sparse

_ROWS = 2048  # cells of one query: some 100 MB while they are sorted
_MEASUREMENT = "RNA"


@dataclass(frozen=True, eq=False)
class Experiment:
    """Which SOMA experiment; opened in each process anew."""

    uri: str
    version: str
    organism: str
    layer: str

    def open(self) -> Opened:
        """For reading."""
        soma = need("tiledbsoma", extra="census")
        if not self.uri:
            root = need("cellxgene_census", extra="census").open_soma(census_version=self.version)
            return Opened(root, root["census_data"][self.organism])
        try:
            root = soma.open(self.uri)
        except soma.SOMAError as error:
            msg = f"uri={self.uri!r} is no SOMA experiment that can be opened: {error}"
            raise ValueError(msg) from error
        return Opened(root, root["census_data"][self.organism] if "census_data" in root else root)


@dataclass(frozen=True)
class Opened:
    """An experiment, and what it lies in: that closes its parts when nothing holds it any more."""

    root: Any
    experiment: Any


@dataclass(frozen=True, eq=False)
class Cells:
    """Some cells of an experiment, as a matrix; can be pickled."""

    experiment: Experiment
    numbers: np.ndarray
    """(n_cells,) int64 `soma_joinid`."""
    genes: np.ndarray
    """(n_vars,) int64 `soma_joinid`, ascending."""

    def __call__(self) -> Matrix:
        """Open it."""
        return Matrix(SomaReader(self.experiment.open(), self), None, None)


class SomaReader:
    """A sparse SOMA array; see `pp._readers.Reader`."""

    def __init__(self, opened: Opened, cells: Cells) -> None:
        self.opened, self.numbers, self.genes = opened, cells.numbers, cells.genes
        self.array = opened.experiment.ms[_MEASUREMENT].X[cells.experiment.layer]
        self.shape = (len(cells.numbers), len(cells.genes))
        self.dtype = np.dtype(self.array.schema.field("soma_data").type.to_pandas_dtype())

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """Rows in the order asked for, a bounded number of them in one query."""
        wanted, inverse = np.unique(self.numbers[rows], return_inverse=True)
        parts = [self._query(wanted[start : start + _ROWS]) for start in range(0, len(wanted), _ROWS)]
        found = stack(parts, (0, self.shape[1]), self.dtype)
        return found if np.array_equal(inverse, np.arange(len(wanted))) else found[inverse]

    def step(self, rows: int) -> int:
        """Several blocks where they are small."""
        return rows * max(1, _ROWS // rows)

    def _query(self, numbers: np.ndarray) -> sparse.csr_matrix:
        """Sorted cells."""
        cells, columns, values = (np.concatenate(parts) for parts in zip(*self._tables(numbers), strict=True))
        row, column = np.searchsorted(numbers, cells), np.searchsorted(self.genes, columns)
        order = np.lexsort((column, row))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(numbers)))])
        return build(values[order], column[order], indptr, n_columns=self.shape[1])

    def _tables(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, self.dtype)
        try:
            for table in self.array.read((numbers, slice(None))).tables():
                yield tuple(table[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data"))
        except need("tiledbsoma").SOMAError as error:
            raise OSError(str(error)) from error


def census_source(
    *,
    value_filter: str | None,
    experiment: Experiment,
    labels_key: str | None,
    batch_key: str | None,
    weight: float,
    name: str,
) -> Source:
    """See `datasets.census`."""
    opened = experiment.open()
    measured = opened.experiment.ms[_MEASUREMENT]
    if experiment.layer not in measured.X:
        msg = f"no layer {experiment.layer!r} in the experiment (there: {', '.join(measured.X)}); give layer="
        raise KeyError(msg)
    cells = _read_obs(opened.experiment.obs, value_filter, [key for key in (labels_key, batch_key) if key is not None])
    var = measured.var.read().concat().to_pandas().sort_values("soma_joinid")
    numbers, genes = (frame["soma_joinid"].to_numpy(np.int64) for frame in (cells, var))
    text = [key for key in ("feature_id", "var_id", *KNOWN_COLUMNS) if key in var]
    columns = {key: var[key].tolist() for key in KNOWN_COLUMNS if key in var}
    names, used = canonical_names(
        {INDEX: var[text[0]].tolist(), **columns}, table=(table := hgnc_table(download=False))
    )
    manifest = {"name": name, "file": _called(experiment), "cells": len(numbers), "genes": len(genes), "weight": weight}
    manifest |= {"sha256": sha256(numbers.tobytes() + "\n".join(names).encode()).hexdigest()}
    manifest |= {"table": Path(table.source).name if table is not None and used else "", "filter": value_filter}
    labels, batches = (None if key is None else _texts(cells[key]) for key in (labels_key, batch_key))
    open_ = Cells(experiment, numbers, genes)
    return Source(name, names, open_, len(numbers), weight, labels, batches, manifest)


def _read_obs(obs: Any, value_filter: str | None, keys: list[str]) -> Any:
    """Numbers and columns of the cells that pass a filter, by number."""
    there = [name for name in obs.keys() if not name.startswith("soma_")]  # noqa: SIM118 (no mapping)
    for key in keys:
        if key not in there:
            msg = f"no column {key!r} in the experiment's obs (there: {', '.join(there)})"
            raise KeyError(msg)
    try:
        cells = obs.read(value_filter=value_filter, column_names=["soma_joinid", *keys]).concat().to_pandas()
    except (need("tiledbsoma").SOMAError, RuntimeError, ValueError, SyntaxError, LookupError) as error:
        text = " ".join(str(error).split())
        msg = f"value_filter={value_filter!r} cannot be read: {text}; columns: {', '.join(there)}"
        raise ValueError(msg) from error
    if len(cells) == 0:
        msg = f"no cell passes value_filter={value_filter!r}"
        raise ValueError(msg)
    return cells.sort_values("soma_joinid")


def _called(experiment: Experiment) -> str:
    return Path(experiment.uri).name if experiment.uri else f"census {experiment.version} {experiment.organism}"


def _texts(column: Any) -> np.ndarray:
    """(n_cells,) object: text, None where a value is missing."""
    text = column.astype(object).astype(str).to_numpy(object)
    text[column.isna().to_numpy()] = None
    return text

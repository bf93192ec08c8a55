"""The data sets of a corpus: `Source` before a vocabulary exists, `Study` as one model reads it.

Neither holds an open file: a matrix opens in the process that reads it, so both can be sent to another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scgpt_tl._random import mix_words, name_keys
from scgpt_tl.pp._blocks import Matrix, open_matrix

if TYPE_CHECKING:
    from scgpt_tl.tokens.tokenize import Tokenizer

_BLOCK = 4096  # rows counted at once


class LazyMatrix:
    """A matrix that each process opens for itself when it first reads.

    Parameters
    ----------
    open_
        Opens it; can be pickled.
    shape
        What it opens to.
    file
        For messages.
    """

    def __init__(self, open_: Callable[[], Matrix], shape: tuple[int, int], file: str = ""):
        self._open, self.shape, self.file = open_, shape, file
        self._opened: tuple[int, Matrix] | None = None

    def take(self, rows: Iterable[int]) -> sparse.csr_matrix:
        """See `Matrix.take`."""
        return self._matrix().take(rows)

    def blocks(self, rows: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """See `Matrix.blocks`."""
        return self._matrix().blocks(rows)

    def close(self) -> None:
        """Let go of the file, if it is one; it opens again when it is read."""
        if self.file:
            self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def _matrix(self) -> Matrix:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked process may not use its parent's handle
            opened = self._open()
            if opened.shape != self.shape:
                msg = f"it holds {opened.shape} cells and genes where there were {self.shape} before"
                raise ValueError(msg)
            self._opened = (os.getpid(), opened)
        return self._opened[1]


@dataclass(frozen=True)
class Source:
    """One data set of a corpus, before a vocabulary exists."""

    name: str
    genes: list[str]
    """(n_vars,) names; "" matches nothing."""
    open: Callable[[], Matrix]
    """(n_cells, n_vars) counts; called once in each process."""
    n_cells: int
    weight: float = 1.0
    """How often an epoch shows each cell, on average."""
    labels: np.ndarray | None = None
    """(n_cells,) str, None where a cell has none."""
    batches: np.ndarray | None = None
    """(n_cells,) str."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """What the data were: file, sha256, cells, genes."""

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)
        told = {"name": self.name, "cells": self.n_cells, "genes": len(self.genes)}
        object.__setattr__(self, "manifest", told | self.manifest)

    @cached_property
    def matrix(self) -> LazyMatrix:
        """The counts, opened when they are read."""
        return LazyMatrix(self.open, (self.n_cells, len(self.genes)), str(self.manifest.get("file") or ""))

    def study(self, tokenizer: Tokenizer) -> Study:
        """The same cells, as tokens of one model; labels and batches get their numbers elsewhere."""
        return Study(self.name, self.matrix, tokenizer, self.weight)

    @cached_property
    def _expressed(self) -> np.ndarray:
        names, gene, columns = np.unique(self.genes, return_inverse=True, return_counts=True)
        counts = np.zeros(len(names), np.int64)
        for block in _whole(self):
            _check_values(self, block)
            counts += np.bincount(_once(block, gene, columns > 1), minlength=len(names))
        self.matrix.close()
        return counts[gene]


@dataclass(frozen=True)
class Study:
    """A data set of a corpus as one model reads it."""

    name: str
    matrix: LazyMatrix | Matrix
    """(n_cells, n_vars) counts; a sparse matrix in memory will do."""
    tokenizer: Tokenizer
    weight: float = 1.0
    """How often an epoch shows each cell, on average."""
    labels: np.ndarray | None = None
    """(n_cells,) int64, -1 where a cell has none."""
    batches: np.ndarray | None = None
    """(n_cells,) int64."""

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)
        if sparse.issparse(self.matrix):
            object.__setattr__(self, "matrix", open_matrix(self.matrix))

    @property
    def n_cells(self) -> int:
        """Rows of the matrix."""
        return self.matrix.shape[0]

    @cached_property
    def keys(self) -> np.ndarray:
        """(n_cells,) uint64, tells rows of all studies apart, equal cells too."""
        return mix_words(np.arange(self.n_cells, dtype=np.uint64), name_keys([self.name])[0])

    def take(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Chosen rows; the file stays open.

        Raises
        ------
        ValueError
            Negative or non-finite values.
        OSError
            The file cannot be read.
        """
        with _named(self):
            counts = self.matrix.take(rows)
        _check_values(self, counts)
        return counts

    def close(self) -> None:
        """Let go of the file; it opens again when it is read."""
        if isinstance(self.matrix, LazyMatrix):
            self.matrix.close()


def expressed(source: Source) -> np.ndarray:
    """(n_vars,) int64 cells that express the gene of each column, in this or another of its columns.

    Reads the matrix through, once.

    Raises
    ------
    ValueError
        Negative or non-finite values.
    OSError
        The file cannot be read.
    """
    return source._expressed  # noqa: SLF001 (its own module)


def _once(block: sparse.csr_matrix, gene: np.ndarray, several: np.ndarray) -> np.ndarray:
    """The gene of each value; one that has several columns occurs once in a cell."""
    found = gene[block.indices]
    if not several.any():
        return found
    places = np.flatnonzero(several[found])
    cells = np.searchsorted(block.indptr, places, side="right") - 1
    _, first = np.unique(cells * len(several) + found[places], return_index=True)
    return np.delete(found, np.delete(places, first))


def wrong_values(counts: sparse.csr_matrix) -> str:
    """What is wrong with values that are neither counts nor logarithms of them; "" where nothing is."""
    if len(counts.data) and not (counts.data.min() >= 0 and np.isfinite(counts.data.max())):  # NaN fails both
        return "holds negative or non-finite values: give counts (scaled data keep theirs in .raw)"
    return ""


def _whole(source: Source) -> Iterator[sparse.csr_matrix]:
    with _named(source):
        for _, block in source.matrix.blocks(_BLOCK):
            yield block


@contextmanager
def _named(data: Source | Study) -> Iterator[None]:
    """Readers' errors, with the name of what was read."""
    try:
        yield
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        msg = f"{_called(data)} cannot be read: {error}. Is the file where it was, whole and unchanged?"
        raise OSError(msg) from error


def _called(data: Source | Study) -> str:
    file = getattr(data.matrix, "file", "")
    return f"study {data.name!r} ({file})" if file else f"study {data.name!r}"


def _check_values(data: Source | Study, counts: sparse.csr_matrix) -> None:
    if wrong := wrong_values(counts):
        msg = f"{_called(data)} {wrong}"
        raise ValueError(msg)


def check_weight(name: str, weight: object) -> None:
    """Refuse what is no weight of a study.

    Raises
    ------
    ValueError
        No number, a negative or an infinite one.
    """
    if not (isinstance(weight, Real) and 0 <= float(weight) < np.inf):
        msg = f"study {name!r} has the weight {weight!r}: give 0 (left out) or more; 1 shows each cell once an epoch"
        raise ValueError(msg)

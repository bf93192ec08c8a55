"""Counts as logarithms of normalised values, a block at a time: what `pp.select_genes` does to a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scgpt_tl.pp._blocks import open_layer

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

TARGET = 1e4  # counts of a cell after normalisation
_ROWS = 1024  # read at a time


def log_blocks(
    adata: AnnData, layer: str | None = None, *, rows: int = _ROWS, pick: csr_matrix | None = None
) -> Iterator[tuple[int, csr_matrix]]:
    """Blocks (first row, float64 CSR) of the logarithms of values normalised to 10,000 a cell.

    Whole numbers are taken for counts; values that are not whole are handed on as they are. A row depends on nothing
    but itself, and what was asked for stays as it was. With `pick`, (n_vars, n) of ones, columns of one gene are summed
    first.
    """
    matrix, counts = open_layer(adata, layer), is_counts(adata, layer)
    for start, block in matrix.blocks(rows):
        own = block.astype(np.float64)  # a copy
        own = own if pick is None else sparse.csr_matrix(own @ pick)
        if counts:
            total = np.asarray(own.sum(axis=1)).ravel()
            # divided first: equal shares of unequal totals stay equal, and tie
            own.data /= np.repeat(np.where(total > 0, total, 1.0), np.diff(own.indptr))
            own.data = np.log1p(own.data * TARGET)
        yield start, own


def is_counts(adata: AnnData, layer: str | None = None) -> bool:
    """Whether all values are whole numbers; reads until one is not."""
    matrix = open_layer(adata, layer)
    return matrix.dtype.kind in "biu" or all(
        bool((block.data == np.rint(block.data)).all()) for _, block in matrix.blocks(_ROWS)
    )

"""Cells of the same content: a cell that is asked about may lie in the reference, under any name, several times.

A cell's key is a hash of its genes and of the order of their values, so that counts, normalised and logarithmic values
of one cell have one key. Arrays in, arrays out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._compat import jit
from scgpt_tl._random import cell_key
from scgpt_tl.pp._sort import argsort

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

#: Key of a cell that is known by nothing: with fewer genes than `TELLING` many cells are alike by chance.
NONE = np.uint64(0)
TELLING = 5


def content_keys(rows: csr_matrix, gene_keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Key of each row, `NONE` where it has too few genes.

    Parameters
    ----------
    rows
        (B, n_vars) without duplicates.
    gene_keys
        (n_vars,) uint64 key of each column's gene.
    known
        (n_vars,) bool: other columns are not looked at.

    Returns
    -------
    uint64 (B,).
    """
    indptr, indices, data = rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data.astype(np.float64)
    return _keys(indptr, indices, data, gene_keys, known)


def as_groups(keys: np.ndarray) -> np.ndarray:
    """(m,) int64 for `neighbors.nearest`: a query does not see rows of its own key; without a key it sees all."""
    return np.where(keys == NONE, -2, keys.view(np.int64))


def seen(groups: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
    """(n,) int64 the same groups of a reference's rows, -1 where a row has no label and is seen by nobody."""
    held = np.asarray(groups).view(np.int64) if groups.dtype == np.uint64 else np.asarray(groups, np.int64)
    return held if codes is None else np.where(codes >= 0, held, -1)


def found_in(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(m,) bool: the cell is among the others."""
    return (keys != NONE) & np.isin(keys, others)


@jit(nogil=True)
def _keys(indptr: Any, indices: Any, data: Any, gene_keys: Any, known: Any) -> Any:
    keys, longest = np.zeros(len(indptr) - 1, np.uint64), 0
    for i in range(len(keys)):
        longest = max(longest, indptr[i + 1] - indptr[i])
    genes, values, ranks = np.empty(longest, np.uint64), np.empty(longest), np.empty(longest)
    for i in range(len(keys)):
        n = 0
        for j in range(indptr[i], indptr[i + 1]):
            if known[indices[j]] and data[j] != 0:
                genes[n], values[n] = gene_keys[indices[j]], data[j]
                n += 1
        if n < TELLING:
            continue
        order, rank = argsort(values[:n]), 0.0
        for j in range(n):
            rank += j == 0 or values[order[j]] > values[order[j - 1]]
            ranks[order[j]] = rank
        keys[i] = cell_key(genes[:n], ranks[:n])
    return keys

"""Spearman's correlation of genes over the cells of each group: what any gene network should be seen beside.

    rows -> genes that are asked for, columns of one gene summed
         -> ranks of each gene within a group, the average where values tie; cells that do not express it tie, too
         -> less the rank of not being expressed: most numbers are zero, and stay so
         -> one product of ranks a block of cells, summed

Twice a rank is a whole number, and so are products and sums of these: below 130,000 cells a group they are exact, and
the same for any order of cells, any blocks and threads. Knows no AnnData and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import sparse

_CELLS = 1024  # made dense at a time


def spearman(
    rows: Iterable[tuple[int, sparse.csr_matrix]],
    columns: np.ndarray,
    groups: np.ndarray,
    n_groups: int,
    *,
    counts: bool = False,
    regulators: np.ndarray | None = None,
) -> np.ndarray:
    """Absolute rank correlations of pairs of genes, group by group.

    Parameters
    ----------
    rows
        (first row, CSR block) of non-negative values in order, as `Matrix.blocks` gives.
    columns
        (n_vars,) int64 which of M genes each column is, -1: none. Columns of one gene are summed.
    groups
        (n_obs,) int64 group of each cell, -1: none.
    n_groups
        G.
    counts
        Values are counts: each is divided by its cell's sum over all columns, or all genes would rise and fall with a
        cell's depth. (A logarithm would not change a rank.)
    regulators
        (R,) int64: only these genes' columns of the result; None is all.

    Returns
    -------
    (G, M, M), or (G, M, R), float32 from 0 to 1. 0 where a gene has the same value in all cells of a group.
    """
    size = int(columns.max(initial=-1)) + 1
    asked = np.arange(size) if regulators is None else regulators
    used = np.flatnonzero(columns >= 0)
    pick = sparse.csr_matrix((np.ones(len(used)), (used, columns[used])), (len(columns), size))
    kept = [_genes(block, pick, counts=counts)[groups[first : first + block.shape[0]] >= 0] for first, block in rows]
    cells = sparse.csr_matrix(sparse.vstack(kept, format="csr") if kept else (0, size), dtype=np.float64)
    codes = groups[groups >= 0]
    found = np.zeros((n_groups, size, len(asked)), np.float32)
    for group in range(n_groups):
        found[group] = _correlations(_ranks(cells[codes == group]), asked)
    return found


def _genes(block: sparse.csr_matrix, pick: sparse.csr_matrix, *, counts: bool) -> sparse.csr_matrix:
    """(n, M) values of genes; counts are summed before they are divided, so that equal shares tie to the last bit."""
    genes = sparse.csr_matrix(block @ pick, dtype=np.float64)
    if counts:
        total = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        genes.data /= np.repeat(total, np.diff(genes.indptr))
    return genes


def _ranks(cells: sparse.csr_matrix) -> sparse.csr_matrix:
    """(n, M) twice the rank of each value within its column, less that of zero."""
    by_gene = sparse.csc_matrix(cells)
    by_gene.eliminate_zeros()
    gene = np.repeat(np.arange(cells.shape[1]), np.diff(by_gene.indptr))
    order = np.lexsort((by_gene.data, gene))  # genes stay in their order
    value = by_gene.data[order]
    starts = np.flatnonzero(np.diff(gene, prepend=-1).astype(bool) | np.diff(value, prepend=np.nan).astype(bool))
    ends = np.append(starts[1:], len(value))
    first = by_gene.indptr[gene]  # of the gene's own values
    run = np.repeat(np.arange(len(starts)), ends - starts)
    # r-th to s-th of those that express the gene, after its zeros: (r + s) + 2 zeros is twice the average rank
    twice = starts[run] + ends[run] + 1 - 2 * first
    zeros = cells.shape[0] - np.diff(by_gene.indptr)
    ranks = np.empty(len(value))
    ranks[order] = twice + 2 * zeros[gene] - (zeros[gene] + 1)
    return sparse.csc_matrix((ranks, by_gene.indices, by_gene.indptr), cells.shape).tocsr()


def _correlations(ranks: sparse.csr_matrix, asked: np.ndarray) -> np.ndarray:
    """(M, R) absolute correlations of columns with those asked for."""
    n, size = ranks.shape
    products, squares = np.zeros((size, len(asked))), np.zeros(size)
    for start in range(0, n, _CELLS):
        dense = ranks[start : start + _CELLS].toarray()
        products += dense.T @ dense[:, asked]
        squares += np.einsum("ij,ij->j", dense, dense)
    sums = np.asarray(ranks.sum(axis=0)).ravel()
    varying = (n * squares - sums**2) > 0
    spread = np.sqrt(np.where(varying, squares - sums**2 / max(n, 1), 1.0))
    rho = (products - np.outer(sums, sums[asked]) / max(n, 1)) / np.outer(spread, spread[asked])
    return np.where(np.outer(varying, varying[asked]), np.clip(np.abs(rho), 0, 1), 0.0)

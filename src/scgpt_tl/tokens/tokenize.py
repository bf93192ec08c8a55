"""Rows of counts become tokens.

    CSR row -> genes of the vocabulary, duplicates summed, sorted by id
            -> binned values (equation (2)), over all of the cell's genes
            -> at most max_length - 1 genes, a deterministic sample of longer cells
            -> `<cls>` in front

One numba kernel does all of it, so that a cell's tokens depend on the cell, the model and the seed alone. It lets go of
the interpreter lock, and `ahead` runs it in a thread while the network computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl._compat import jit
from scgpt_tl._random import Purpose, cell_key, draw, stream_key
from scgpt_tl.pp._quantiles import bin_row
from scgpt_tl.pp._sort import argsort, sort
from scgpt_tl.tokens.batch import CellBatch

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class TokenBlock:
    """Tokens of consecutive rows, as arrays; `batch` makes tensors of any of them."""

    gene_ids: np.ndarray
    """(T,) int64."""
    values: np.ndarray
    """(T,) float32."""
    offsets: np.ndarray
    """(B + 1,) int64."""
    n_genes: np.ndarray
    """(B,) int64, genes of the vocabulary that the cell expresses, before sampling."""
    keys: np.ndarray
    """(B,) uint64, content hash of each cell."""

    @property
    def lengths(self) -> np.ndarray:
        """(B,) tokens, `<cls>` included."""
        return np.diff(self.offsets)

    def batch(self, cells: np.ndarray) -> CellBatch:
        """Some cells of the block, in the order asked for."""
        lengths = self.lengths[cells]
        cu = np.concatenate([[0], np.cumsum(lengths)])
        take = np.arange(cu[-1]) + np.repeat(self.offsets[cells] - cu[:-1], lengths)
        return CellBatch(
            torch.from_numpy(self.gene_ids[take]), torch.from_numpy(self.values[take]), torch.from_numpy(cu)
        )


@dataclass(frozen=True)
class Tokenizer:
    """How rows of one matrix become tokens of one model."""

    column_ids: np.ndarray
    """(n_vars,) int64, vocabulary id of each column; -1: not in the vocabulary."""
    gene_keys: np.ndarray
    """(n_tokens,) uint64, `GeneVocab.keys`."""
    cls_id: int
    cls_value: float = -2.0
    n_bins: int = 51
    spread: bool = True
    """Tied values: spread over the tied bins, or all in the upper one."""
    max_length: int = 1200
    """Tokens of a cell, `<cls>` included."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_length < 2:
            msg = f"max_length={self.max_length} leaves no room for a gene beside <cls>; give 2 or more"
            raise ValueError(msg)

    def __call__(self, rows: csr_matrix, *, epoch: int = 0, sources: np.ndarray | None = None) -> TokenBlock:
        """Tokenise rows.

        Parameters
        ----------
        rows
            (B, n_vars) non-negative and finite.
        epoch
            Training draws a new sample of a long cell's genes each epoch.
        sources
            (B,) uint64 added to the cells' keys, so that training tells apart cells of equal content.
        """
        ids, values, offsets, n_genes, keys = _tokenize(  # one set of types: compiled once
            rows.indptr.astype(np.int64),
            rows.indices.astype(np.int32, copy=False),
            rows.data.astype(np.float64, copy=False),
            self.column_ids,
            self.gene_keys,
            np.zeros(rows.shape[0], np.uint64) if sources is None else sources,
            (self.cls_id, self.cls_value, self.n_bins, self.spread, self.max_length - 1),
            stream_key(self.seed, Purpose.TIES, 0),
            stream_key(self.seed, Purpose.TRUNCATE, epoch),
        )
        return TokenBlock(ids, values, offsets, n_genes, keys)


def ahead(rows: Iterable[tuple[int, csr_matrix]], tokenizer: Tokenizer) -> Iterator[tuple[int, TokenBlock]]:
    """Tokenise blocks (first row, rows) one ahead of the consumer, reading them in the same thread."""
    blocks = iter(rows)

    def following() -> tuple[int, TokenBlock] | None:
        block = next(blocks, None)
        return None if block is None else (block[0], tokenizer(block[1]))

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(following)
        while (block := waiting.result()) is not None:
            waiting = pool.submit(following)
            yield block


@jit()
def _gather(indices: Any, data: Any, column_ids: Any, ids: Any, values: Any) -> Any:
    """One row's genes of the vocabulary into `ids`, `values`: sorted, duplicates summed. Returns how many."""
    n = 0
    ascending = True
    for j in range(len(indices)):
        gene, value = column_ids[indices[j]], data[j]
        if gene < 0 or value == 0:
            continue
        ascending &= n == 0 or gene > ids[n - 1]
        ids[n], values[n] = gene, value
        n += 1
    if ascending:
        return n
    order = argsort(ids[:n])
    ids[:n] = ids[:n][order]
    values[:n] = values[:n][order]
    kept = 0
    start = 0
    while start < n:
        end = start + 1
        while end < n and ids[end] == ids[start]:
            end += 1
        if end - start > 1:  # summed smallest first: the order of columns must not show in the last bit
            sort(values[start:end])
        total = 0.0
        for j in range(start, end):
            total += values[j]
        ids[kept], values[kept] = ids[start], total
        kept += 1
        start = end
    return kept


@jit()
def _keep_sample(ids: Any, bins: Any, n: Any, most: Any, stream: Any, key: Any, gene_keys: Any) -> Any:
    """Leave `most` of n genes, those with the smallest draws, in their order."""
    draws = np.empty(n)
    for j in range(n):
        draws[j] = draw(stream, key, gene_keys[ids[j]])
    limit = draws[argsort(draws)[most]]
    kept = 0
    for j in range(n):
        if draws[j] < limit:
            ids[kept], bins[kept] = ids[j], bins[j]
            kept += 1
    return kept


@jit(nogil=True)
def _tokenize(
    indptr: Any,
    indices: Any,
    data: Any,
    column_ids: Any,
    gene_keys: Any,
    sources: Any,
    options: Any,
    ties: Any,
    sample: Any,
) -> Any:
    cls_id, cls_value, n_bins, spread, most = options
    n_rows = len(indptr) - 1
    roomy_ids = np.empty(indptr[-1] + n_rows, np.int64)  # row i starts at indptr[i] + i: room for every entry and <cls>
    roomy_values = np.empty(len(roomy_ids), np.float32)
    lengths = np.empty(n_rows + 1, np.int64)
    lengths[0] = 0
    n_genes = np.empty(n_rows, np.int64)
    keys = np.empty(n_rows, np.uint64)
    for i in range(n_rows):
        start, end = indptr[i], indptr[i + 1]
        ids, values = np.empty(end - start, np.int64), np.empty(end - start)
        n = _gather(indices[start:end], data[start:end], column_ids, ids, values)
        row_keys = np.empty(n, np.uint64)
        for j in range(n):
            row_keys[j] = gene_keys[ids[j]]
        key = cell_key(row_keys, values[:n])
        bins = np.empty(n, np.int32)
        bin_row(values[:n], row_keys, key, ties, n_bins, spread, np.empty(n), bins)
        n_genes[i] = n
        key += sources[i]
        keys[i] = key
        if n > most:
            n = _keep_sample(ids, bins, n, most, sample, key, gene_keys)
        at = start + i
        roomy_ids[at], roomy_values[at] = cls_id, cls_value
        for j in range(n):
            roomy_ids[at + 1 + j], roomy_values[at + 1 + j] = ids[j], bins[j]
        lengths[i + 1] = n + 1
    offsets = np.cumsum(lengths)
    ids_out = np.empty(offsets[-1], np.int64)
    values_out = np.empty(offsets[-1], np.float32)
    for i in range(n_rows):
        at, a, b = indptr[i] + i, offsets[i], offsets[i + 1]
        ids_out[a:b] = roomy_ids[at : at + b - a]
        values_out[a:b] = roomy_values[at : at + b - a]
    return ids_out, values_out, offsets, n_genes, keys

"""Rows of counts become tokens.

    CSR row -> genes of the vocabulary, duplicates summed, sorted by id
            -> binned values (equation (2)), over all genes that the cell expresses
            -> with `zeros` the other genes of the matrix beside them, in bin 0
            -> at most max_length - 1 genes, a deterministic sample of longer cells
            -> `<cls>` in front

One numba kernel does all of it, so that a cell's tokens depend on the cell, the model and the seed alone. It lets go of
the interpreter lock, and `ahead` runs it in a thread while the network computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
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
    zeros: bool = False
    """Every gene of the matrix is a token, in bin 0 where the cell does not express it (published fine-tuning)."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            msg = f"max_length={self.max_length} leaves no room for a gene beside <cls>; give 2 or more"
            raise ValueError(msg)

    @cached_property
    def genes(self) -> np.ndarray:
        """(M,) int64 vocabulary ids of the matrix's genes, sorted: with `zeros` the tokens of a cell after `<cls>`."""
        return np.unique(self.column_ids[self.column_ids >= 0])

    @cached_property
    def _unexpressed(self) -> np.ndarray:
        """Ids of the genes that are tokens of every cell, (n,) int64."""
        return self.genes if self.zeros else np.empty(0, np.int64)

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
            self._unexpressed,
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


#: Place of the only bit of a word, looked up by the top six bits of its product with a de Bruijn sequence.
_DE_BRUIJN = 0x03F79D71B4CB0A89
_PLACES = np.empty(64, np.int64)
_PLACES[[(_DE_BRUIJN << place) % 2**64 >> 58 for place in range(64)]] = np.arange(64)


@jit()
def _gather(indices: Any, data: Any, column_ids: Any, ids: Any, values: Any, room: Any) -> Any:
    """One row's genes of the vocabulary into `ids`, `values`: sorted, duplicates summed. Returns how many.

    `room`: a zeroed bit and a value for each id of the vocabulary. Marking genes and reading the marks in their order
    takes a fifth of the time of a sort.
    """
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
    marks, places = room
    twice = False
    for j in range(n):
        word, bit = ids[j] >> 6, np.uint64(1) << np.uint64(ids[j] & 63)
        twice |= (marks[word] & bit) != 0
        marks[word] |= bit
        places[ids[j]] = values[j]
    if twice:
        marks[:] = 0
        return _summed(ids, values, n)
    n = 0
    for word in range(len(marks)):
        left = marks[word]
        while left != 0:
            lowest = left & (~left + np.uint64(1))
            gene = (word << 6) + _PLACES[(lowest * np.uint64(_DE_BRUIJN)) >> np.uint64(58)]
            ids[n], values[n] = gene, places[gene]
            n += 1
            left ^= lowest
        marks[word] = 0
    return n


@jit()
def _summed(ids: Any, values: Any, n: Any) -> Any:
    """Sort the first n genes and sum those that come several times. Returns how many are left."""
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
def _limit(draws: Any, most: Any) -> Any:
    """What `np.sort(draws)[most]` gives, for draws from [0, 1): only those of one bucket are sorted."""
    counts = np.zeros(256, np.int64)
    for j in range(len(draws)):
        counts[int(draws[j] * 256)] += 1
    below = bucket = 0
    while below + counts[bucket] <= most:
        below += counts[bucket]
        bucket += 1
    inside = np.empty(counts[bucket])
    n = 0
    for j in range(len(draws)):
        if int(draws[j] * 256) == bucket:
            inside[n] = draws[j]
            n += 1
    sort(inside)
    return inside[most - below]


@jit()
def _write(ids: Any, bins: Any, gene_keys: Any, key: Any, options: Any, sample: Any, out: Any) -> Any:
    """`<cls>`, then the genes, or those with the smallest draws where they are too many. Returns how many tokens."""
    cls_id, cls_value, most = options
    out_ids, out_values = out
    out_ids[0], out_values[0] = cls_id, cls_value
    n = len(ids)
    if n <= most:
        for j in range(n):
            out_ids[1 + j], out_values[1 + j] = ids[j], bins[j]
        return n + 1
    draws = np.empty(n)
    for j in range(n):
        draws[j] = draw(sample, key, gene_keys[ids[j]])
    limit = _limit(draws, most)
    kept = 1
    for j in range(n):
        if draws[j] < limit:
            out_ids[kept], out_values[kept] = ids[j], bins[j]
            kept += 1
    return kept


@jit(nogil=True)
def _tokenize(
    indptr: Any,
    indices: Any,
    data: Any,
    column_ids: Any,
    gene_keys: Any,
    unexpressed: Any,
    sources: Any,
    options: Any,
    ties: Any,
    sample: Any,
) -> Any:
    cls_id, cls_value, n_bins, spread, most = options
    n_rows = len(indptr) - 1
    offsets, longest = np.zeros(n_rows + 1, np.int64), 0  # room for every token; rows close up below
    for i in range(n_rows):
        longest = max(longest, indptr[i + 1] - indptr[i])
        offsets[i + 1] = offsets[i] + 1 + min(max(indptr[i + 1] - indptr[i], len(unexpressed)), most)
    ids_out, values_out = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.float32)
    n_genes, keys = np.empty(n_rows, np.int64), np.empty(n_rows, np.uint64)
    room = np.zeros((len(gene_keys) + 63) >> 6, np.uint64), np.empty(len(gene_keys))
    ids, values, scratch = np.empty(longest, np.int64), np.empty(longest), np.empty(longest)
    row_keys, bins, all_bins = (
        np.empty(longest, np.uint64),
        np.empty(longest, np.int32),
        np.empty(len(unexpressed), np.int32),
    )
    end = 0
    for i in range(n_rows):
        start, stop = indptr[i], indptr[i + 1]
        n = _gather(indices[start:stop], data[start:stop], column_ids, ids, values, room)
        for j in range(n):
            row_keys[j] = gene_keys[ids[j]]
        key = cell_key(row_keys[:n], values[:n])
        bin_row(values[:n], row_keys, key, ties, n_bins, spread, scratch, bins)
        n_genes[i] = n
        key += sources[i]
        keys[i] = key
        at = offsets[i]
        out, how = (ids_out[at:], values_out[at:]), (cls_id, cls_value, most)
        if len(unexpressed):
            j = 0
            for k in range(len(unexpressed)):
                met = j < n and ids[j] == unexpressed[k]
                all_bins[k] = bins[j] if met else 0
                j += met
            n = _write(unexpressed, all_bins, gene_keys, key, how, sample, out)
        else:
            n = _write(ids[:n], bins, gene_keys, key, how, sample, out)
        offsets[i] = end
        for j in range(n):
            ids_out[end + j], values_out[end + j] = out[0][j], out[1][j]
        end += n
    offsets[n_rows] = end
    return ids_out[:end], values_out[:end], offsets, n_genes, keys

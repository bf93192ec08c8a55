"""Ranks of maps (M, M), row by row, then column by column: the kernels under attention-based networks.

Average ranks of n values are kept doubled, 2 x (values below) + (values equal) + 1, whole numbers from 2 to 2 n, so
that sums over heads and cells are exact and the same in any order.

No row is sorted. For few columns each score is compared with its whole row. For more, a row's values are put into two
buckets a value, evenly over their range, and a value is compared with those of its own bucket alone; nearly always
these are among the next four that lie there, which are looked at without a branch. A crowded bucket (an outlier
stretches the range, ties) is sorted once and searched by halves. A column of row ranks holds whole numbers up to 2 M,
and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scgpt_tl._compat import jit
from scgpt_tl.pp._sort import sort

_COUNTED = 50  # columns up to which comparing each with the whole row is faster than putting the row into buckets
_NEAR = 4  # values looked at without a branch
_CROWDED = 32  # values of a bucket above which it is sorted
_SMALLEST = 1e-30  # of a row's range: buckets per unit stay a float32
_LINE = 32  # uint16 of a cache line
_LARGEST = np.iinfo(np.uint16).max // 2

Share = Callable[[Callable[[tuple[int, int]], None], Iterable[tuple[int, int]]], Iterable[None]]


@dataclass
class RankSums:
    """Sums over maps of their ranks within rows, then within columns; memory does not grow with the maps."""

    n_groups: int
    n_genes: int
    """M."""
    columns: np.ndarray | None = None
    """(C,) int64 columns to keep; None: all M."""
    threads: int = 1
    share: Share = map
    """`map`, or a pool's, which does the parts at once."""
    sums: np.ndarray = field(init=False)
    """(n_groups, C, M) int64, doubled; columns first, since a column is added at a time."""
    n_maps: np.ndarray = field(init=False)
    """(n_groups,) int64."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_genes <= _LARGEST:
            msg = f"{self.n_genes:,} genes: maps of 1 to {_LARGEST:,} genes can be ranked; choose fewer"
            raise ValueError(msg)
        kept = np.arange(self.n_genes) if self.columns is None else np.asarray(self.columns, np.int64)
        self._kept = kept
        self.sums = np.zeros((self.n_groups, len(kept), self.n_genes), np.int64)
        self.n_maps = np.zeros(self.n_groups, np.int64)
        # an odd number of cache lines a column: with a power of two all columns would claim the same few
        self._ranks = np.zeros((len(kept), (-(-self.n_genes // _LINE) | 1) * _LINE), np.uint16)

    def add_rows(self, scores: np.ndarray, first: int) -> None:
        """Rank rows `first`, ... of a map, (n, M) float32, finite and below 1e37 in size."""
        kernel = count_rows if len(self._kept) <= _COUNTED else rank_rows
        self._work(lambda part: kernel(scores, self._kept, self._ranks[:, first:], part), len(scores))

    def end_map(self, group: int) -> None:
        """Rank the columns of the map whose rows were all added, and add it to a group."""
        self._work(lambda part: add_columns(self._ranks, self.sums[group], part), len(self._kept))
        self.n_maps[group] += 1

    def mean(self) -> np.ndarray:
        """(n_groups, M, C) float32 mean of rank / M; NaN for a group without a map."""
        found = np.full((self.n_groups, self.n_genes, len(self._kept)), np.nan, np.float32)
        for group in np.flatnonzero(self.n_maps):
            np.divide(self.sums[group].T, 2.0 * self.n_genes * self.n_maps[group], out=found[group])
        return found

    def _work(self, kernel: Callable[[tuple[int, int]], None], n: int) -> None:
        """Parts of whole cache lines, one for each thread."""
        step = max(1, -(-n // (self.threads * _LINE))) * _LINE
        list(self.share(kernel, [(start, min(start + step, n)) for start in range(0, n, step)]))


@jit(nogil=True)
def count_rows(scores: Any, columns: Any, ranks: Any, part: Any) -> None:
    """What `rank_rows` does, for few columns."""
    for i in range(part[0], part[1]):
        row = scores[i]
        for c in range(len(columns)):
            value, rank = row[columns[c]], np.int32(1)
            for j in range(len(row)):
                rank = np.int32(rank + np.int32(row[j] < value) + np.int32(row[j] <= value))
            ranks[c, i] = rank


@jit(fastmath={"nnan", "nsz"})
def _range(row: Any) -> Any:
    """Least and greatest of a row; told that none is NaN, the compiler takes sixteen at a time."""
    low = high = row[0]
    for j in range(len(row)):
        low, high = min(low, row[j]), max(high, row[j])
    return low, high


@jit(nogil=True)
def rank_rows(scores: Any, columns: Any, ranks: Any, part: Any) -> None:
    """Doubled average rank of `columns` (C,) within each of the rows [part[0], part[1]).

    `scores` (n, M) float32; `ranks` (C, n or more) uint16, written.
    """
    n = scores.shape[1]
    n_buckets = 2 * n
    bucket, ends = np.empty(n, np.uint32), np.empty(n_buckets + 2, np.int32)
    held = np.empty(n + _NEAR, np.float32)
    held[n:] = np.inf
    last = np.uint32(n_buckets - 1)
    for i in range(part[0], part[1]):
        row = scores[i]
        low, high = _range(row)
        scale = np.float32(last / max(np.float64(high) - np.float64(low), _SMALLEST))
        for j in range(n):  # rounding keeps the order: a greater value is in no lower bucket
            bucket[j] = min(np.uint32(np.int32((row[j] - low) * scale)), last)
        crowded = _scatter(row, bucket, held, ends)
        if crowded:
            _sort_crowded(held, ends)
        for c in range(len(columns)):
            at = np.uint32(columns[c])
            value, start, end = row[at], ends[bucket[at]], ends[bucket[at] + np.uint32(1)]
            rank = np.int32(2 * start + 1)
            if end - start <= _NEAR:
                for k in range(_NEAR):  # what lies beyond the bucket is greater, and counts for nothing
                    other = held[np.uint32(start + k)]
                    rank = np.int32(rank + np.int32(other < value) + np.int32(other <= value))
            else:
                rank = np.int32(rank + _among(held, start, end, value))
            ranks[c, i] = rank


@jit()
def _scatter(row: Any, bucket: Any, held: Any, ends: Any) -> Any:
    """Values by bucket into `held`; those of bucket b lie in [ends[b], ends[b + 1]). Returns whether one is crowded."""
    ends[:] = 0
    for j in range(len(row)):
        ends[bucket[j] + np.uint32(2)] += 1
    most = ends[0]
    for b in range(2, len(ends)):
        most = max(most, ends[b])
        ends[b] += ends[b - 1]
    for j in range(len(row)):
        b = bucket[j] + np.uint32(1)
        place = ends[b]
        held[np.uint32(place)] = row[j]
        ends[b] = place + 1
    return most > _CROWDED


@jit()
def _sort_crowded(held: Any, ends: Any) -> None:
    for b in range(len(ends) - 1):
        if ends[b + 1] - ends[b] > _CROWDED:
            sort(held[ends[b] : ends[b + 1]])


@jit()
def _among(held: Any, start: Any, end: Any, value: Any) -> Any:
    """2 x (values below) + (values equal) among [start, end) of `held`, a bucket's."""
    if end - start > _CROWDED:
        return _place(held, start, end, value, False) + _place(held, start, end, value, True) - 2 * start
    found = 0
    for k in range(start, end):
        found += held[k] < value
        found += held[k] <= value
    return found


@jit()
def _place(held: Any, start: Any, end: Any, value: Any, after: Any) -> Any:
    """First place in sorted [start, end) whose value is not below `value`; `after`: is above it."""
    while start < end:
        middle = (start + end) // 2
        if held[middle] < value or (after and held[middle] == value):
            start = middle + 1
        else:
            end = middle
    return start


@jit(nogil=True)
def add_columns(ranks: Any, sums: Any, part: Any) -> None:
    """Add to `sums` (C, M) the doubled average ranks within columns [part[0], part[1]) of `ranks` (C, M or more)."""
    n = sums.shape[1]
    table = np.empty(2 * n + 1, np.int32)  # of each row rank that can be: how often, then its rank in the column
    for c in range(part[0], part[1]):
        column, total = ranks[c], sums[c]
        table[:] = 0
        for i in range(n):
            table[column[i]] += 1
        below = np.int32(1)
        for rank in range(len(table)):
            equal = table[rank]
            table[rank] = below + equal
            below += 2 * equal
        for i in range(n):
            total[i] += table[column[i]]

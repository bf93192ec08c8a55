"""Quantile bins of sparse rows: the kernel under `pp.bin_values` and the tokeniser.

One row goes through three steps, none of which sorts it whole:

1. Values are counted into buckets by the leading bits of their float64 pattern, which for positive numbers is monotone.
2. Each edge needs two order statistics; only the buckets that hold one are sorted (`_find_edges`).
3. A value's digit is looked up by its bucket and settled against the few edges that share the bucket (`_find_digits`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from scgpt_tl._compat import jit
from scgpt_tl._random import Purpose, cell_key, draw, stream_key
from scgpt_tl.pp._sort import sort

_MAX_BUCKETS = 4096  # two int32 tables of it stay in the first-level cache
_THREAD_WORTH = 200_000  # non-zeros below which starting threads costs more than it saves


@jit()
def n_buckets(n: Any) -> Any:
    """Buckets for a row of `n` values: a power of two, about two per value."""
    count = 64
    while count < 2 * n and count < _MAX_BUCKETS:
        count *= 2
    return count


@jit()
def _scatter(values: Any, scratch: Any, ends: Any) -> Any:
    """Group `values` by bucket into `scratch`; bucket b ends at `ends[b]`. Returns (lowest pattern, shift)."""
    n = len(values)
    bits = values.view(np.int64)
    low = high = bits[0]
    for i in range(n):
        low = min(low, bits[i])
        high = max(high, bits[i])
    span = np.uint64(high) - np.uint64(low)
    shift: Any = np.uint64(0)
    while (span >> shift) >= np.uint64(len(ends)):
        shift += np.uint64(1)
    ends[:] = 0
    for i in range(n):
        ends[(np.uint64(bits[i]) - np.uint64(low)) >> shift] += 1
    total = 0
    for b in range(len(ends)):
        count = ends[b]
        ends[b] = total
        total += count
    for i in range(n):
        b = (np.uint64(bits[i]) - np.uint64(low)) >> shift
        scratch[ends[b]] = values[i]
        ends[b] += 1
    return np.uint64(low), shift


@jit()
def _sort(part: Any) -> None:
    """Sort a bucket in place. Most hold one value, often many times over, so look before sorting."""
    for i in range(1, len(part)):
        if part[i] < part[i - 1]:
            if len(part) > 32:
                sort(part)
                return
            value = part[i]
            j = i
            while j > 0 and part[j - 1] > value:
                part[j] = part[j - 1]
                j -= 1
            part[j] = value


@jit()
def _find_edges(n: Any, scratch: Any, ends: Any, edges: Any, counts: Any) -> Any:
    """Distinct quantile edges and, per distinct edge j, `counts[j + 1]` = edges at or below it. Returns how many.

    The interpolation is numpy's "linear" to the last bit (two branches, so that it is exact at both ends).
    `len(counts) - 1` edges are asked for.
    """
    n_edges = len(counts) - 1
    step = 1.0 / max(n_edges - 1, 1)
    found = b = 0
    done = -1
    counts[0] = 0
    for k in range(n_edges):
        share = k * step if k < n_edges - 1 or k == 0 else 1.0
        virtual = (n - 1) * share
        left = int(virtual)
        right = min(left + 1, n - 1)
        while ends[b] <= left:
            b += 1
        if b > done:
            _sort(scratch[(ends[b - 1] if b > 0 else 0) : ends[b]])
            done = b
        c = b
        while ends[c] <= right:
            c += 1
        if c > done:
            _sort(scratch[ends[c - 1] : ends[c]])
            done = c
        lower, upper = scratch[left], scratch[right]
        t = virtual - left
        edge = lower + (upper - lower) * t if t < 0.5 else upper - (upper - lower) * (1.0 - t)
        if found == 0 or edge != edges[found - 1]:
            edges[found] = edge
            found += 1
        counts[found] = k + 1
    return found


@jit()
def _fill_first(edges: Any, low: Any, shift: Any, first: Any) -> None:
    """`first[b]` = distinct edges that lie in buckets below b."""
    bits = edges.view(np.uint64)
    b = 0
    for j in range(len(edges)):
        home = min(int((bits[j] - low) >> shift), len(first) - 2)
        while b <= home:
            first[b] = j
            b += 1
    first[b:] = len(edges)


@jit()
def _prepare(values: Any, scratch: Any, ends: Any, first: Any, edges: Any, counts: Any) -> Any:
    """Edges of one row. Returns (whether two edges coincide, lowest pattern, shift, first)."""
    low, shift = _scatter(values, scratch, ends)
    found = _find_edges(len(values), scratch, ends, edges, counts)
    _fill_first(edges[:found], low, shift, first)
    return counts[found] > found, low, shift, first


@jit()
def _find_digits(
    values: Any, gene_keys: Any, cell: Any, stream: Any, edges: Any, counts: Any, spread: Any, grid: Any, out: Any
) -> None:
    """Write the bin of every value: the highest tied bin, or with `spread` any of the tied ones, uniformly."""
    low, shift, first = grid
    bits = values.view(np.uint64)
    for i in range(len(values)):
        x = values[i]
        b = (bits[i] - low) >> shift
        j = first[b]
        stop = first[b + np.uint64(1)]
        while j < stop and edges[j] <= x:
            j += 1
        digit = counts[j]
        if spread and edges[j - 1] == x:
            below = counts[j - 1]
            if digit - below > 1:
                digit = below + 1 + int(draw(stream, cell, gene_keys[i]) * (digit - below))
        out[i] = digit


@jit()
def bin_row(
    values: Any, gene_keys: Any, cell: Any, stream: Any, n_bins: Any, spread: Any, scratch: Any, out: Any
) -> None:
    """Bin the expressed genes of one cell: equation (2) of the preprint, edges as published.

    Parameters
    ----------
    values
        (n,) float64, positive and finite.
    gene_keys
        (n,) uint64, `_random.name_keys` of the genes; read only where ties are spread.
    cell
        `_random.cell_key` of the row; read only where ties are spread.
    stream
        `stream_key(seed, Purpose.TIES, 0)`.
    n_bins
        Bins with the one for zeros: digits are 1 .. n_bins - 1.
    spread
        Spread tied values over the bins they span, or put them into the highest.
    scratch
        (>= n,) float64, overwritten.
    out
        (n,) integer, written.
    """
    n = len(values)
    if n == 0:
        return
    ends, first = np.empty(n_buckets(n), np.int32), np.empty(n_buckets(n) + 1, np.int32)
    edges, counts = np.empty(n_bins - 1, np.float64), np.empty(n_bins, np.int32)
    tied, low, shift, first = _prepare(values, scratch, ends, first, edges, counts)
    _find_digits(values, gene_keys, cell, stream, edges, counts, spread and tied, (low, shift, first), out)


@jit(nogil=True)
def _bin_rows(
    indptr: Any, indices: Any, data: Any, gene_keys: Any, n_bins: Any, spread: Any, stream: Any, rows: Any, out: Any
) -> None:
    """Bin rows [rows[0], rows[1]) of a CSR matrix. Explicit zeros get bin 0 and are no part of the cell."""
    longest = 0
    for row in range(rows[0], rows[1]):
        longest = max(longest, indptr[row + 1] - indptr[row])
    all_values, scratch = np.empty(longest, np.float64), np.empty(longest, np.float64)
    keys, places, digits = np.empty(longest, np.uint64), np.empty(longest, np.int64), np.empty(longest, np.int32)
    ends, first = np.empty(n_buckets(longest), np.int32), np.empty(n_buckets(longest) + 1, np.int32)
    edges, counts = np.empty(n_bins - 1, np.float64), np.empty(n_bins, np.int32)
    for row in range(rows[0], rows[1]):
        n = 0
        for place in range(indptr[row], indptr[row + 1]):
            out[place] = 0
            all_values[n] = data[place]
            places[n] = place
            n += data[place] != 0
        if n == 0:
            continue
        values, size = all_values[:n], n_buckets(n)
        tied, low, shift, head = _prepare(values, scratch, ends[:size], first[: size + 1], edges, counts)
        cell = np.uint64(0)
        if spread and tied:  # hashing a cell costs as much as binning it: only where a draw needs it
            for i in range(n):
                keys[i] = gene_keys[indices[places[i]]]
            cell = cell_key(keys[:n], values)
        _find_digits(values, keys, cell, stream, edges, counts, spread and tied, (low, shift, head), digits)
        for i in range(n):
            out[places[i]] = digits[i]


def _row_parts(indptr: np.ndarray, n_parts: int) -> list[tuple[int, int]]:
    """Split rows into `n_parts` runs of about equal numbers of non-zeros."""
    cuts = np.searchsorted(indptr, np.linspace(indptr[0], indptr[-1], n_parts + 1)[1:-1])
    bounds = [0, *cuts.tolist(), len(indptr) - 1]
    return [(start, stop) for start, stop in pairwise(bounds) if stop > start]


def bin_dtype(n_bins: int) -> np.dtype[Any]:
    """Smallest unsigned type that holds 0 .. n_bins - 1."""
    return np.min_scalar_type(n_bins - 1)


def bin_csr(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    gene_keys: np.ndarray,
    *,
    n_bins: int,
    ties: Literal["spread", "upper"],
    seed: int,
) -> np.ndarray:
    """Bin every row of a CSR matrix by the quantiles of its own non-zeros.

    Parameters
    ----------
    indptr, indices, data
        The matrix, without duplicate entries; values finite and not negative. Any row may start anywhere, any dtype.
    gene_keys
        (n_vars,) uint64, `_random.name_keys` of the columns.
    n_bins
        Bins, with the one for zeros.
    ties
        "spread" draws a tied value's bin uniformly from those it spans; "upper" takes the highest.
    seed
        Of the draws; a draw depends on (seed, content of the cell, gene) and on nothing else.

    Returns
    -------
    (nnz,) unsigned integers, 0 .. n_bins - 1: uint8 up to 256 bins, then uint16, then uint32.

    Notes
    -----
    Rows are shared among `numba.get_num_threads()` plain threads (the kernel lets go of the interpreter lock), so this
    may itself be called from any thread, which numba's own parallel loops do not allow with every threading layer.
    """
    from numba import get_num_threads

    out = np.empty(len(data), bin_dtype(n_bins))
    stream = stream_key(seed, Purpose.TIES, 0)
    n_threads = get_num_threads() if len(data) >= _THREAD_WORTH else 1
    if data.dtype not in (np.float32, np.float64, np.int32, np.int64):  # few compiled versions; these are exact
        data = data.astype(np.float64)

    def work(rows: tuple[int, int]) -> None:
        """Rows from the first to before the last, into `out`."""
        _bin_rows(indptr, indices, data, gene_keys, n_bins, ties == "spread", stream, rows, out)

    parts = _row_parts(indptr, n_threads)
    if len(parts) <= 1:
        for part in parts:
            work(part)
        return out
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(work, parts))
    return out

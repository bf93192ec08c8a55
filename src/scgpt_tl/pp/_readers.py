"""Readers: one class for each way in which a matrix is stored, all with `take(rows) -> CSR`.

A reader hands out rows as they are stored; `_blocks.py` above it cleans and re-cuts them. Nothing here needs anndata,
h5py, zarr or dask to be installed: a file's parts are known by what they can do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from scipy import sparse

logger = logging.getLogger(__name__)

#: What one read may hold, in bytes. Large enough to make few calls into a file, small beside a model.
READ_BYTES = 32 * 2**20
#: What may be read without being asked for, to save a call into the file.
GAP_BYTES = 128 * 2**10
#: Non-zeros gathered by one pass over a file that is compressed by columns (24 bytes each while they are sorted).
CSC_NONZEROS = 6 * 2**20

Rows = slice | np.ndarray


class Reader(Protocol):
    """A stored matrix. `take` gives rows (a slice with step 1, or row numbers in any order) as CSR."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """Rows as they are stored; may share memory with the source."""
        ...

    def step(self, rows: int) -> int:
        """How many rows to read at once where blocks of `rows` are wanted; a multiple of it."""
        ...


class SparseReader:
    """CSR in memory; other sparse layouts are turned into CSR once."""

    def __init__(self, matrix: Any) -> None:
        if matrix.format in ("csr", "csc"):  # scipy looks at the arrays once, when it makes them
            major, minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
            there = min(int(matrix.indptr[-1]), len(matrix.indices), len(matrix.data))
            _check_pointers(matrix.indptr, major, there)
            _check_range(matrix.indices[:there], minor)
        self.matrix = sparse.csr_matrix(matrix)  # no copy of a csr_matrix or csr_array
        self.shape: tuple[int, int] = self.matrix.shape
        self.dtype = self.matrix.dtype

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """See `Reader`."""
        return cut(self.matrix, rows.start, rows.stop) if isinstance(rows, slice) else self.matrix[rows]

    def step(self, rows: int) -> int:
        """See `Reader`."""
        return rows


class DenseReader:
    """numpy, h5py and zarr arrays: anything that gives a dense block for `array[start:stop]`."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = np.dtype(array.dtype)

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """See `Reader`."""
        if not isinstance(rows, slice):
            if isinstance(self.array, np.ndarray):
                return _sparse(self.array[rows])
            return _by_runs(self, rows)
        most = self.step(1)
        starts = range(rows.start, rows.stop, most)
        parts = [_sparse(np.asarray(self.array[a : min(a + most, rows.stop)])) for a in starts]
        return stack(parts, (rows.stop - rows.start, self.shape[1]), self.dtype)

    def step(self, rows: int) -> int:
        """See `Reader`."""
        return rows * max(1, READ_BYTES // max(1, rows * self.shape[1] * self.dtype.itemsize))


class _FileReader:
    """The three arrays of a sparse matrix in a group of an HDF5 or zarr file."""

    def __init__(self, group: Any) -> None:
        shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
        self.shape = (int(shape[0]), int(shape[1]))
        self.indices, self.data = group["indices"], group["data"]
        self.indptr: np.ndarray = np.asarray(group["indptr"][:], dtype=np.int64)
        self.dtype = np.dtype(self.data.dtype)
        stored = min(self.indices.shape[0], self.data.shape[0])
        major = self.shape[int(compressed_format(group) == "csc")]
        _check_pointers(self.indptr, major, stored, f" in {getattr(group, 'name', 'the file')}")

    def mean_nonzeros(self) -> float:
        """Of a row; at least 1."""
        return max(1.0, float(self.indptr[-1]) / max(1, self.shape[0]))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and values between two positions, two calls into the file."""
        return np.asarray(self.indices[start:stop]), np.asarray(self.data[start:stop])


class CsrFileReader(_FileReader):
    """Compressed by rows in a file: one contiguous read for each run of rows."""

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """See `Reader`."""
        if not isinstance(rows, slice):
            unique, inverse = np.unique(rows, return_inverse=True)
            found = self._chosen(unique)
            return found if np.array_equal(inverse, np.arange(len(rows))) else found[inverse]
        indptr = self.indptr[rows.start : rows.stop + 1]
        indices, data = self.read(int(indptr[0]), int(indptr[-1]))
        _check_range(indices, self.shape[1])
        return build(data, indices, indptr - indptr[0], n_columns=self.shape[1])

    def _chosen(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Sorted rows, each read into its place: no second copy of what may be most of memory."""
        sizes = self.indptr[rows + 1] - self.indptr[rows]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        data = np.empty(ends[-1], native(self.dtype))
        indices = np.empty(ends[-1], np.int32 if self.shape[1] < 2**31 else np.int64)
        gap = max(1, int(max(GAP_BYTES, _decoded(self.indices), _decoded(self.data)) / self.row_bytes()))
        for first, last in _spans(rows, self.step(1), gap):
            start, wanted = int(self.indptr[rows[first]]), slice(int(ends[first]), int(ends[last]))
            columns, values = self.read(start, int(self.indptr[rows[last - 1] + 1]))
            if len(columns) > wanted.stop - wanted.start:  # rows between them that nobody asked for
                begins = self.indptr[rows[first:last]] - start - ends[first:last]
                inside = np.repeat(begins, sizes[first:last]) + np.arange(wanted.start, wanted.stop)
                columns, values = columns[inside], values[inside]
            _check_range(columns, self.shape[1])
            indices[wanted], data[wanted] = columns, values
        return build(data, indices, ends, n_columns=self.shape[1])

    def row_bytes(self) -> float:
        """Of a row as it is stored, on average."""
        return self.mean_nonzeros() * (self.dtype.itemsize + self.indices.dtype.itemsize)

    def step(self, rows: int) -> int:
        """See `Reader`."""
        return rows * max(1, int(READ_BYTES / (rows * self.row_bytes())))


class CscFileReader(_FileReader):
    """Compressed by columns in a file: every `take` reads the file through once, keeping the rows asked for."""

    def __init__(self, group: Any) -> None:
        super().__init__(group)
        passes = int(np.ceil(self.indptr[-1] / CSC_NONZEROS))
        if passes > 1:
            logger.warning(
                "%s is compressed by columns (CSC): about %d passes over the file are needed to read it by rows in "
                "bounded memory; write it as CSR to make this one pass",
                getattr(group, "name", "the matrix"),
                passes,
            )

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """See `Reader`."""
        wanted = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        unique, inverse = np.unique(wanted, return_inverse=True)
        place = np.full(self.shape[0], -1, dtype=np.int32)
        place[unique] = np.arange(len(unique), dtype=np.int32)
        parts = list(self._kept(place))
        row, column = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        values = np.concatenate([part[2] for part in parts])
        found = sparse.csr_matrix((values, (row, column)), shape=(len(unique), self.shape[1]))
        return found if isinstance(rows, slice) else found[inverse]

    def _kept(self, place: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(row, column, value) of the entries whose row has a place, a bounded piece of the file at a time."""
        yield np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, native(self.dtype))
        size = READ_BYTES // 16
        for start in range(0, int(self.indptr[-1]), size):
            stop = min(start + size, int(self.indptr[-1]))
            indices, data = self.read(start, stop)
            _check_range(indices, self.shape[0])
            row = place[indices]
            keep = np.flatnonzero(row >= 0)
            column = np.searchsorted(self.indptr, keep + start, side="right") - 1
            yield row[keep], column.astype(np.int32), as_native(data[keep])

    def step(self, rows: int) -> int:
        """See `Reader`."""
        return rows * max(1, int(CSC_NONZEROS / (rows * self.mean_nonzeros())))


class DaskReader:
    """Dask arrays of dense or sparse chunks; `chunks` computes every chunk of rows once."""

    def __init__(self, array: Any) -> None:
        if any(np.isnan(size) for size in array.shape):
            msg = f"the dask array has chunks of unknown size (shape {array.shape}): call compute_chunk_sizes() on it"
            raise ValueError(msg)
        self.array = array
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = np.dtype(array.dtype)

    def take(self, rows: Rows) -> sparse.csr_matrix:
        """See `Reader`."""
        block = self.array[rows].compute()
        return sparse.csr_matrix(block) if sparse.issparse(block) else _sparse(np.asarray(block))

    def step(self, rows: int) -> int:
        """See `Reader`."""
        return rows

    def chunks(self, rows: np.ndarray | None) -> Iterator[sparse.csr_matrix]:
        """All rows, or those chosen, in the pieces in which dask holds them."""
        array = self if rows is None else DaskReader(self.array[rows])
        start = 0
        for size in array.array.chunks[0]:
            yield array.take(slice(start, start + size))
            start += size


def compressed_format(group: Any) -> str:
    """`csr` or `csc` of a group that holds a sparse matrix; "" for any other."""
    kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))
    return str(kind).removesuffix("_matrix").removesuffix("_array")


def build(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, *, n_columns: int) -> sparse.csr_matrix:
    """CSR with int32 indices (one compiled kernel for all sources) and values in the machine's byte order."""
    small = np.int32 if max(n_columns, int(indptr[-1])) < 2**31 else np.int64
    parts = (as_native(data), indices.astype(small, copy=False), indptr.astype(small, copy=False))
    return sparse.csr_matrix(parts, shape=(len(indptr) - 1, n_columns), copy=False)


def cut(matrix: sparse.csr_matrix, start: int, stop: int) -> sparse.csr_matrix:
    """Consecutive rows without copying the values."""
    indptr = matrix.indptr[start : stop + 1]
    inside = slice(int(indptr[0]), int(indptr[-1]))
    return build(matrix.data[inside], matrix.indices[inside], indptr - indptr[0], n_columns=matrix.shape[1])


def stack(parts: list[sparse.csr_matrix], shape: tuple[int, int], dtype: np.dtype[Any]) -> sparse.csr_matrix:
    """Pieces one under the other; an empty matrix where there is none."""
    if not parts:
        return sparse.csr_matrix(shape, dtype=native(dtype))
    return parts[0] if len(parts) == 1 else sparse.csr_matrix(sparse.vstack(parts, format="csr"))


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Kind of number in which values are handed on: the machine's byte order; half floats widen, scipy has none."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def as_native(data: np.ndarray) -> np.ndarray:
    """Values as `native` says; no copy where they are so already."""
    return data.astype(native(data.dtype), copy=False)


def _sparse(block: np.ndarray) -> sparse.csr_matrix:
    """Non-zeros of a dense block (NaN counts as one)."""
    filled = block != 0
    indptr = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    return build(block[filled], np.nonzero(filled)[1], indptr, n_columns=block.shape[1])


def _by_runs(reader: Reader, rows: np.ndarray) -> sparse.csr_matrix:
    """Chosen rows of a file: neighbours are read together, then put in the order asked for."""
    unique, inverse = np.unique(rows, return_inverse=True)
    parts = []
    for first, last in _spans(unique, reader.step(1), 4):
        start = int(unique[first])
        parts.append(reader.take(slice(start, int(unique[last - 1]) + 1))[unique[first:last] - start])
    found = stack(parts, (len(unique), reader.shape[1]), reader.dtype)
    return found if np.array_equal(inverse, np.arange(len(rows))) else found[inverse]


def _decoded(array: Any) -> int:
    """Bytes of a compressed array that come out together: to read two parts of a chunk apart is to decode it twice."""
    if not (getattr(array, "compression", None) or getattr(array, "compressors", None)):  # h5py's name; zarr's
        return 0
    return int(np.prod(array.chunks)) * int(array.dtype.itemsize)


def _spans(rows: np.ndarray, most: int, gap: int) -> Iterator[tuple[int, int]]:
    """Sorted rows as spans [first, last) to read at once: at most `most` rows of the file, gaps of `gap` at most.

    A few rows that nobody asked for cost less than another call into the file.
    """
    breaks = [0, *(np.flatnonzero(np.diff(rows) > gap) + 1).tolist(), len(rows)]
    for first, end in pairwise(breaks):
        while first < end:
            last = first + int(np.searchsorted(rows[first:end], rows[first] + most))
            yield first, last
            first = last


def _check_pointers(indptr: np.ndarray, major: int, stored: int, where: str = "") -> None:
    """Nor is `indptr`: a compiled kernel that follows falling pointers reads outside the arrays."""
    if len(indptr) != major + 1 or indptr[0] != 0 or indptr[-1] != stored:
        msg = (
            f"the sparse matrix{where} is damaged: indptr has {len(indptr)} entries for {major} rows or columns and "
            f"ends at {indptr[-1:]}, {stored} values are stored"
        )
        raise ValueError(msg)
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        before, after = indptr[falls[0] : falls[0] + 2].tolist()
        msg = (
            f"the sparse matrix{where} is damaged: indptr falls from {before} to {after} at entry {falls[0] + 1}, "
            "where each is at least as large as the one before"
        )
        raise ValueError(msg)


def _check_range(indices: np.ndarray, size: int) -> None:
    """Arrays are not trusted: an index outside the matrix would be read out of bounds by a kernel."""
    if not len(indices) or indices.view(f"u{indices.itemsize}").max() < size:  # below zero it is large, unsigned
        return
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= size:
        wrong = least if least < 0 else most
        msg = f"the sparse matrix is damaged: it holds the index {wrong} in a dimension of size {size}"
        raise ValueError(msg)

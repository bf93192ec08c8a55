"""Any matrix that an AnnData can hold, as blocks of sparse rows, in memory that does not grow with the rows.

    X (dense, sparse, HDF5, zarr, dask; a view of any) -> reader (_readers.py): rows as stored, a read's worth at a time
      -> columns of a view -> canonical CSR -> blocks of the size asked for

Which size is asked for, how a file is chunked and which rows a view holds never change what a row contains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scgpt_tl._slots import stored_x
from scgpt_tl.pp._readers import (
    CscFileReader,
    CsrFileReader,
    DaskReader,
    DenseReader,
    Reader,
    Rows,
    SparseReader,
    compressed_format,
    cut,
    native,
    stack,
)

if TYPE_CHECKING:
    from anndata import AnnData


class Matrix:
    """Rows and columns of a stored matrix.

    Values keep their kind of number (half floats widen to float32). Made by `open_matrix` and `open_layer`.
    """

    def __init__(self, reader: Reader, rows: np.ndarray | None, columns: np.ndarray | None) -> None:
        self._reader, self._rows, self._columns = reader, rows, columns
        n_rows = reader.shape[0] if rows is None else len(rows)
        n_columns = reader.shape[1] if columns is None else len(columns)
        self.shape = (n_rows, n_columns)
        self.dtype = native(reader.dtype)

    def blocks(self, rows: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """All rows in their order, `rows` at a time (the last block may be shorter).

        Returns
        -------
        Pairs of the first row's number and a canonical CSR block: sorted int32 indices, no explicit zeros, no
        duplicates. Blocks may share memory with the user's matrix: read them, never write.

        Raises
        ------
        ValueError
            `rows` is smaller than 1, or a file is damaged.
        """
        if rows < 1:
            msg = f"blocks of {rows} rows were asked for; rows must be at least 1"
            raise ValueError(msg)
        return _recut((self._clean(piece) for piece in self._pieces(rows)), rows)

    def after(self, start: int) -> Matrix:
        """The rows from `start` on."""
        rows = np.arange(self.shape[0]) if self._rows is None else self._rows
        return Matrix(self._reader, rows[start:], self._columns) if start else self

    def take(self, rows: Iterable[int]) -> sparse.csr_matrix:
        """Chosen rows, in the order given, canonical as in `blocks`."""
        chosen = rows if isinstance(rows, np.ndarray) else np.fromiter(rows, dtype=np.int64)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= self.shape[0]):
            msg = f"rows {chosen.min()} to {chosen.max()} were asked for, the matrix has rows 0 to {self.shape[0] - 1}"
            raise IndexError(msg)
        return self._clean(self._reader.take(chosen if self._rows is None else self._rows[chosen]))

    def _pieces(self, rows: int) -> Iterator[sparse.csr_matrix]:
        if isinstance(self._reader, DaskReader):  # a chunk is costly to make: each once, however it is cut
            yield from self._reader.chunks(self._rows)
            return
        step = self._reader.step(rows)
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            wanted: Rows = slice(start, stop) if self._rows is None else self._rows[start:stop]
            yield self._reader.take(wanted)

    def _clean(self, piece: sparse.csr_matrix) -> sparse.csr_matrix:
        return _canonical(piece if self._columns is None else piece[:, self._columns], shared=self._columns is None)


class Fingerprint:
    """sha256 of a matrix's values by row, the same however they are stored and cut into blocks."""

    def __init__(self) -> None:
        self._parts = sha256(), sha256(), sha256()

    def add(self, block: sparse.csr_matrix) -> None:
        """The next rows, as `Matrix.blocks` gives them."""
        arrays = (np.diff(block.indptr), np.int64), (block.indices, np.int32), (block.data, np.float64)
        for part, (array, kind) in zip(self._parts, arrays, strict=True):
            part.update(np.ascontiguousarray(array, dtype=kind).data)

    def hexdigest(self, shape: tuple[int, int]) -> str:
        """Of a matrix of this shape, whose rows they were."""
        return sha256(repr(shape).encode() + b"".join(part.digest() for part in self._parts)).hexdigest()


class NoNumbersError(TypeError):
    """A matrix of something else, such as text."""


def open_matrix(x: Any, *, rows: Any = None, columns: Any = None) -> Matrix:
    """Open a matrix for reading by blocks of rows; nothing is read yet but a file's row pointers.

    Parameters
    ----------
    x
        numpy array or matrix, scipy sparse matrix or array of any layout, anndata's sparse dataset, HDF5 or zarr
        array, HDF5 or zarr group with a sparse matrix, dask array of dense or sparse chunks.
    rows, columns
        Anything that indexes one axis (slice, numbers, mask): what a view holds. None is all.

    Raises
    ------
    TypeError
        Another kind of object, or values that are no real numbers.
    ValueError
        Not two-dimensional, or a damaged file.

    Notes
    -----
    Memory is bounded by one read (32 MiB, or a row where that is larger; 150 MiB for a file compressed by columns,
    which takes one pass over the file for every six million non-zeros; one chunk of a dask array). A matrix in memory
    that is sparse but not CSR is turned into CSR once.
    """
    reader = _reader(x)
    if reader.dtype.kind not in "biuf":
        msg = f"the matrix holds {reader.dtype}, expected real numbers (float, integer or bool)"
        raise NoNumbersError(msg)
    return Matrix(reader, _positions(rows, reader.shape[0]), _positions(columns, reader.shape[1]))


def open_layer(adata: AnnData, layer: str | None = None) -> Matrix:
    """Open `.X` or a layer of an AnnData; a view is read through its parent, so that it is never copied.

    Raises
    ------
    KeyError
        No such layer; the message lists those there.
    ValueError
        `layer` is None and there is no `.X`.
    """
    if layer is not None and layer not in adata.layers:
        there = ", ".join(map(repr, adata.layers)) or "none"
        msg = f"layer {layer!r} is not in .layers (there: {there}); give one of these, or layer=None for .X"
        raise KeyError(msg)
    parent, rows, columns = _parent(adata)
    x = stored_x(parent) if layer is None else parent.layers[layer]
    if x is None:
        there = ", ".join(map(repr, adata.layers)) or "none"
        msg = f".X is empty (None); name a layer with layer= (there: {there})"
        raise ValueError(msg)
    return open_matrix(x, rows=rows, columns=columns)


def sources(adata: AnnData) -> set[Path]:
    """Files and stores from which `.X` and the layers are read, as far as they say so (dask does not)."""
    parent = _parent(adata)[0]
    found = {_source(x) for x in (stored_x(parent), *parent.layers.values())}
    return {Path(source) for source in found if source}


def _source(x: Any) -> str:
    part = getattr(x, "group", x)  # of anndata's sparse datasets
    file, store = getattr(part, "file", None), getattr(part, "store", None)  # HDF5's; zarr's
    names = (getattr(file, "filename", ""), getattr(store, "root", ""), getattr(store, "path", ""))
    return next((str(name) for name in names if isinstance(name, (str, Path)) and str(name)), "")


def _parent(adata: AnnData) -> tuple[AnnData, Any, Any]:
    """What a view looks at, and which rows and columns of it; anndata has no public way to ask."""
    parent = getattr(adata, "_adata_ref", None) if adata.is_view else None
    if parent is None:
        return adata, None, None
    return parent, adata._oidx, adata._vidx  # noqa: SLF001


def _reader(x: Any) -> Reader:
    if len(getattr(x, "shape", ())) != 2 and not _is_group(x):
        msg = f"a two-dimensional matrix is needed, not {type(x).__name__} of shape {getattr(x, 'shape', None)}"
        raise (ValueError if hasattr(x, "shape") else TypeError)(msg)
    if sparse.issparse(x):
        return SparseReader(x)
    if isinstance(x, np.ndarray):
        return DenseReader(np.asarray(x))
    group = x if _is_group(x) else getattr(x, "group", None)
    kind = "" if group is None else compressed_format(group)
    if kind in ("csr", "csc"):
        return CsrFileReader(group) if kind == "csr" else CscFileReader(group)
    origin = type(x).__module__.partition(".")[0]
    if origin == "dask":
        return DaskReader(x)
    if origin in ("h5py", "zarr") and hasattr(x, "dtype"):
        return DenseReader(x)
    what = f"{type(x).__module__}.{type(x).__name__}"
    msg = f"{what} is no matrix that can be read here: numpy, scipy.sparse, h5py, zarr or dask"
    raise TypeError(msg)


def _is_group(x: Any) -> bool:
    """A group of an HDF5 or zarr file that holds a sparse matrix."""
    return hasattr(x, "attrs") and hasattr(x, "keys") and "indptr" in x


def _positions(index: Any, size: int) -> np.ndarray | None:
    """Numbers of the chosen rows or columns; None where that is all of them in order."""
    if index is None:
        return None
    chosen = np.atleast_1d(np.arange(size)[index])
    return None if np.array_equal(chosen, np.arange(size)) else chosen


def _canonical(piece: sparse.csr_matrix, *, shared: bool) -> sparse.csr_matrix:
    """Sorted, without duplicates and explicit zeros; copied before it is changed where others may hold it."""
    if not piece.has_canonical_format:
        piece = piece.copy() if shared else piece
        shared = False
        piece.sum_duplicates()
    if np.count_nonzero(piece.data) < len(piece.data):
        piece = piece.copy() if shared else piece
        piece.eliminate_zeros()
    return piece if piece.indices.dtype == np.int32 else cut(piece, 0, piece.shape[0])


def _recut(pieces: Iterable[sparse.csr_matrix], rows: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Pieces of any heights as blocks of one height."""
    start = 0
    held: list[sparse.csr_matrix] = []
    for piece in pieces:
        used = 0
        while used < piece.shape[0]:
            missing = rows - sum(part.shape[0] for part in held)
            whole = piece.shape[0] <= missing and used == 0
            held.append(piece if whole else cut(piece, used, min(used + missing, piece.shape[0])))
            used += held[-1].shape[0]
            if held[-1].shape[0] == missing:
                yield start, _joined(held)
                start, held = start + rows, []
    if held:
        yield start, _joined(held)


def _joined(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix:
    whole = stack(parts, parts[0].shape, parts[0].dtype)
    return whole if len(parts) == 1 else cut(whole, 0, whole.shape[0])

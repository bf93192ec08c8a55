"""Every way of storing a matrix gives the same blocks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from scgpt_tl.pp import _readers
from scgpt_tl.pp._blocks import Fingerprint, Matrix, open_layer, open_matrix

# numpy would rather that nobody used its matrix class; old pickles and some tools still do
pytestmark = [
    pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata's, about files it writes
]


def h5_group(path: Path, matrix: Any) -> Any:
    file = h5py.File(path, "w")
    ad.io.write_elem(file, "X", matrix)
    return file["X"]


def zarr_group(path: Path, matrix: Any) -> Any:
    group = zarr.open_group(path, mode="w")
    ad.io.write_elem(group, "X", matrix)
    return group["X"]


def chunks(dense: np.ndarray) -> tuple[int, int]:
    return (max(1, dense.shape[0] // 3), max(1, dense.shape[1] // 2))


FORMATS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "ndarray": lambda x, _: x,
    "fortran": lambda x, _: np.asfortranarray(x),
    "np.matrix": lambda x, _: np.matrix(x),
    "csr_matrix": lambda x, _: sparse.csr_matrix(x),
    "csc_matrix": lambda x, _: sparse.csc_matrix(x),
    "csr_array": lambda x, _: sparse.csr_array(x),
    "csc_array": lambda x, _: sparse.csc_array(x),
    "coo_matrix": lambda x, _: sparse.coo_matrix(x),
    "int64 indices": lambda x, _: with_int64(sparse.csr_matrix(x)),
    "h5py.Dataset": lambda x, p: h5_group(p / "a.h5", x),
    "h5 csr": lambda x, p: h5_group(p / "b.h5", sparse.csr_matrix(x)),
    "h5 csc": lambda x, p: h5_group(p / "c.h5", sparse.csc_matrix(x)),
    "anndata csr": lambda x, p: ad.io.sparse_dataset(h5_group(p / "d.h5", sparse.csr_matrix(x))),
    "anndata csc": lambda x, p: ad.io.sparse_dataset(h5_group(p / "e.h5", sparse.csc_matrix(x))),
    "zarr.Array": lambda x, p: zarr_group(p / "f.zarr", x),
    "zarr csr": lambda x, p: zarr_group(p / "g.zarr", sparse.csr_matrix(x)),
    "anndata zarr csc": lambda x, p: ad.io.sparse_dataset(zarr_group(p / "h.zarr", sparse.csc_matrix(x))),
    "dask dense": lambda x, _: da.from_array(x, chunks=chunks(x)),
    "dask csr": lambda x, _: da.from_array(x, chunks=(chunks(x)[0], -1)).map_blocks(sparse.csr_matrix),
    "dask csr_array": lambda x, _: da.from_array(x, chunks=(chunks(x)[0], -1)).map_blocks(sparse.csr_array),
}


def with_int64(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def counts(shape: tuple[int, int] = (23, 7), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.poisson(0.6, shape) * (rng.random((shape[0], 1)) > 0.2)).astype(np.float32)


def check(matrix: Matrix, dense: np.ndarray, rows: int) -> None:
    """Blocks are contiguous, of one height, canonical, and hold what the dense matrix holds."""
    at = 0
    for start, block in matrix.blocks(rows):
        assert start == at
        assert block.shape == (min(rows, len(dense) - at), dense.shape[1])
        assert isinstance(block, sparse.csr_matrix)
        assert block.indices.dtype == block.indptr.dtype == np.int32
        assert block.indptr[0] == 0
        assert block.has_canonical_format
        assert np.count_nonzero(block.data) == block.nnz == block.indptr[-1] == len(block.data) == len(block.indices)
        assert block.dtype == matrix.dtype
        np.testing.assert_array_equal(block.toarray(), dense[at : at + rows])
        at += block.shape[0]
    assert at == len(dense)
    assert matrix.shape == dense.shape


@pytest.mark.parametrize("rows", [1, 4, 23, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, rows: int, tmp_path: Path) -> None:
    dense = counts()
    check(open_matrix(FORMATS[name](dense, tmp_path)), dense, rows)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_selected_and_taken(name: str, tmp_path: Path) -> None:
    dense = counts()
    stored = FORMATS[name](dense, tmp_path)
    rows, columns = np.array([22, 3, 3, 0, 9, 10, 8]), np.array([6, 0, 3])
    check(open_matrix(stored, rows=rows, columns=columns), dense[rows][:, columns], 2)
    check(open_matrix(stored, rows=slice(2, 20, 3), columns=dense[0] == 0), dense[2:20:3][:, dense[0] == 0], 4)
    np.testing.assert_array_equal(open_matrix(stored).take([5, 1, 1]).toarray(), dense[[5, 1, 1]])
    np.testing.assert_array_equal(open_matrix(stored, rows=rows).take([1, 0]).toarray(), dense[[3, 22]])
    assert open_matrix(stored).take([]).shape == (0, 7)


@pytest.mark.parametrize("name", FORMATS)
def test_small_reads_change_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readers, "READ_BYTES", 64)
    monkeypatch.setattr(_readers, "GAP_BYTES", 20)
    monkeypatch.setattr(_readers, "CSC_NONZEROS", 10)
    dense = counts()
    stored = FORMATS[name](dense, tmp_path)
    check(open_matrix(stored), dense, 3)
    check(open_matrix(stored, rows=np.arange(22, -1, -1)), dense[::-1], 9)
    check(open_matrix(stored, rows=[20, 1, 2, 9]), dense[[20, 1, 2, 9]], 3)
    check(open_matrix(stored, rows=slice(3, 21, 2)), dense[3:21:2], 5)


@settings(max_examples=60, deadline=None)
@given(
    dense=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.dtype(">f4"), np.float16]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.integers(0, 1),
    ),
    rows=st.integers(1, 12),
    data=st.data(),
)
def test_formats_agree_on_anything(
    dense: np.ndarray, rows: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wanted = data.draw(st.none() | st.lists(st.integers(0, max(0, len(dense) - 1)), max_size=12 * min(1, len(dense))))
    columns = data.draw(st.none() | st.just(np.arange(dense.shape[1])[::-2]))
    wanted = None if wanted is None else np.array(wanted, dtype=int)
    expected = dense if wanted is None else dense[wanted]
    expected = expected if columns is None else expected[:, columns]
    plain = dense.astype(np.float32) if dense.dtype == np.float16 else dense.astype(dense.dtype.newbyteorder("="))
    name = data.draw(st.sampled_from(list(FORMATS)))
    if "dask" in name and 0 in dense.shape:
        return  # dask itself gives up on chunks of no row
    stored = FORMATS[name](
        dense if name in {"ndarray", "h5py.Dataset", "zarr.Array"} else plain, tmp_path_factory.mktemp("x")
    )
    check(open_matrix(stored, rows=wanted, columns=columns), expected, rows)


def test_explicit_zeros_and_duplicates_leave_the_users_matrix_alone() -> None:
    data = np.array([1.0, 2.0, 0.0, 5.0, -5.0, 7.0], dtype=np.float32)
    indices, indptr = np.array([3, 3, 0, 2, 2, 1]), np.array([0, 3, 5, 6])
    messy = sparse.csr_matrix((data, indices, indptr), shape=(3, 4))
    before = [array.copy() for array in (messy.data, messy.indices, messy.indptr)]
    expected = np.array([[0, 0, 0, 3], [0, 0, 0, 0], [0, 7, 0, 0]], dtype=np.float32)
    check(open_matrix(messy), expected, 2)
    check(open_matrix(messy, rows=[2, 0], columns=[3, 1]), expected[[2, 0]][:, [3, 1]], 2)
    for array, old in zip((messy.data, messy.indices, messy.indptr), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_explicit_zeros_alone_leave_the_users_matrix_alone() -> None:
    stored = sparse.csr_matrix((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 1, 2])), shape=(2, 2))
    check(open_matrix(stored), np.array([[0.0, 0.0], [0.0, 1.0]]), 2)
    assert stored.data.tolist() == [0.0, 1.0]
    assert stored.indptr.tolist() == [0, 1, 2]


def test_nan_and_infinity_are_values() -> None:
    dense = np.array([[0, np.nan], [np.inf, 0]])
    for stored in (dense, sparse.csr_matrix(dense), sparse.csc_matrix(dense)):
        check(open_matrix(stored), dense, 2)


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_anndata_and_its_views(kind: str, backed: bool, layer: str | None, tmp_path: Path) -> None:
    dense = counts()
    make = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}[kind]
    adata = ad.AnnData(make(dense if layer is None else 0 * dense), layers={"counts": make(dense)})
    if backed:
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    check(open_layer(adata, layer), dense, 6)
    view = adata[[9, 2, 4, 15], 1:5]
    check(open_layer(view, layer), dense[[9, 2, 4, 15], 1:5], 3)
    again = (view.to_memory() if backed else view)[
        np.array([True, False, True, True])
    ]  # anndata has no backed view of a view
    check(open_layer(again, layer), dense[[9, 4, 15], 1:5], 2)
    check(open_layer(adata[3], layer), dense[[3]], 2)
    assert view.is_view


def test_a_backed_view_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ad.AnnData(sparse.csr_matrix(counts())).write_h5ad(tmp_path / "x.h5ad")
    view = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")[:20]
    monkeypatch.setattr(_readers, "READ_BYTES", 100)
    sizes = []
    read = _readers.CsrFileReader.read
    monkeypatch.setattr(_readers.CsrFileReader, "read", lambda self, a, b: sizes.append(b - a) or read(self, a, b))
    check(open_layer(view), counts()[:20], 2)
    open_layer(view).take(np.arange(20))
    assert max(sizes) < 20


def test_few_calls_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    read = _readers.CsrFileReader.read
    monkeypatch.setattr(_readers.CsrFileReader, "read", lambda self, a, b: calls.append(a) or read(self, a, b))
    dense = counts((500, 7))
    matrix = open_matrix(h5_group(tmp_path / "x.h5", sparse.csr_matrix(dense)))
    check(matrix, dense, 2)
    assert len(calls) == 1
    matrix.take(range(100, 200))
    assert len(calls) == 2


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_rows_between_are_read_where_that_is_cheaper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    """A gap as large as another call is worth, or as a chunk that is decoded whole anyway."""
    calls = []
    read = _readers.CsrFileReader.read
    monkeypatch.setattr(_readers.CsrFileReader, "read", lambda self, a, b: calls.append(a) or read(self, a, b))
    monkeypatch.setattr(_readers, "GAP_BYTES", 1)
    dense, path = counts((500, 7)), tmp_path / "x.h5"
    rows = sparse.csr_matrix(dense)
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": rows.shape})
        group["indptr"] = rows.indptr
        for name in ("indices", "data"):
            group.create_dataset(name, data=getattr(rows, name), chunks=(400,), compression=compression)
    with h5py.File(path) as file:
        matrix = open_matrix(file["X"])
        chosen = np.array([400, 3, 1, 80, 81, 3])
        np.testing.assert_array_equal(matrix.take(chosen).toarray(), dense[chosen])
        assert len(calls) == (4 if compression is None else 2)
        calls.clear()
        monkeypatch.setattr(_readers, "GAP_BYTES", 2**20)
        np.testing.assert_array_equal(matrix.take(chosen).toarray(), dense[chosen])
        assert len(calls) == 1


def test_dask_chunks_are_computed_once() -> None:
    dense, seen = counts((20, 7)), []

    def load(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            seen.append(block_info[0]["chunk-location"])
        return block

    lazy = da.from_array(dense, chunks=(8, 7)).map_blocks(load, dtype=dense.dtype, meta=dense[:0])
    check(open_matrix(lazy), dense, 3)
    assert sorted(seen) == [(0, 0), (1, 0), (2, 0)]


def test_csc_file_says_that_it_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    group = h5_group(tmp_path / "x.h5", sparse.csc_matrix(counts()))
    open_matrix(group)
    assert caplog.text == ""
    monkeypatch.setattr(_readers, "CSC_NONZEROS", 20)
    open_matrix(group)
    assert "passes over the file" in caplog.text
    assert "CSR" in caplog.text


def test_bad_requests() -> None:
    matrix = open_matrix(counts())
    with pytest.raises(ValueError, match="at least 1"):
        matrix.blocks(0)
    with pytest.raises(IndexError, match="rows 0 to 22"):
        matrix.take([23])
    with pytest.raises(IndexError, match="rows -1"):
        matrix.take([-1])


def test_what_is_no_matrix() -> None:
    for nothing in (None, [[1, 2]], "X"):
        with pytest.raises(TypeError, match="two-dimensional matrix is needed"):
            open_matrix(nothing)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        open_matrix(np.zeros(3))
    with pytest.raises(TypeError, match="expected real numbers"):
        open_matrix(np.array([["a"]]))
    with pytest.raises(TypeError, match="complex128"):
        open_matrix(np.zeros((1, 1), dtype=complex))
    lazy = da.from_array(counts(), chunks=(5, 7))
    unknown = lazy[lazy[:, 0] > 0]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        open_matrix(unknown)


def test_layer_or_x_that_is_not_there() -> None:
    adata = ad.AnnData(counts(), layers={"counts": counts()})
    with pytest.raises(KeyError, match=r"layer 'raw' is not in .*'counts'"):
        open_layer(adata, "raw")
    empty = ad.AnnData(shape=(3, 2))
    with pytest.raises(ValueError, match=r"\.X is empty"):
        open_layer(empty)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix])
def test_damaged_files(make: Callable[[np.ndarray], Any], tmp_path: Path) -> None:
    group = h5_group(tmp_path / "x.h5", make(counts()))
    group["indices"][0] = 99
    with pytest.raises(ValueError, match="index 99"):
        list(open_matrix(group).blocks(5))
    with pytest.raises(ValueError, match="index 99"):
        open_matrix(group).take(range(22, -1, -1))
    indptr = group["indptr"][:]
    del group["indptr"]
    group["indptr"] = indptr[:-1]
    with pytest.raises(ValueError, match="is damaged: indptr has"):
        open_matrix(group)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("pointer", [10**6, -4, 2**63 - 1, -(2**63)])
def test_pointers_that_fall(make: Callable[[np.ndarray], Any], pointer: int, tmp_path: Path) -> None:
    """Followed, they would lead outside the arrays."""
    group = h5_group(tmp_path / "x.h5", make(counts()))
    indptr = group["indptr"][:].astype(np.int64)
    indptr[2:4] = pointer
    del group["indptr"]
    group["indptr"] = indptr
    with pytest.raises(ValueError, match=r"is damaged: indptr falls from -?\d+ to -?\d+ at entry \d"):
        open_matrix(group)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array])
def test_damaged_in_memory(make: Callable[[np.ndarray], Any]) -> None:
    """Arrays that were written into after scipy had looked at them."""
    for name, at, value, said in (
        ("indices", 3, 99, "index 99 in a dimension of size"),
        ("indices", 3, -1, "index -1 in a dimension of size"),
        ("indptr", 2, 10**6, "indptr falls from 1000000 to"),
        ("indptr", -1, 10**6, "ends at .1000000., .* values are stored"),
        ("indptr", 0, 1, "is damaged: indptr has"),
    ):
        matrix = make(counts())
        getattr(matrix, name)[at] = value
        with pytest.raises(ValueError, match=said):
            open_matrix(matrix)
    whole = make(counts())
    spare = make((np.append(whole.data, 0), np.append(whole.indices, 99), whole.indptr), shape=whole.shape)
    assert (open_matrix(spare).take(range(23)) != sparse.csr_matrix(counts())).nnz == 0


@pytest.mark.parametrize("index", [-5, 99])
def test_the_index_that_is_outside_is_the_one_told(index: int, tmp_path: Path) -> None:
    group = h5_group(tmp_path / "x.h5", sparse.csr_matrix(counts()))
    group["indices"][1] = index
    with pytest.raises(ValueError, match=f"index {index} in a dimension of size 7"):
        list(open_matrix(group).blocks(5))


def test_rooms_that_must_open_without_anndata() -> None:
    modules = ("pp._blocks", "pp._check", "pp._genes", "pp._features", "genes.match", "genes.table", "genes.bundle")
    absent = ("anndata", "pandas", "torch", "scanpy", "h5py", "zarr", "dask")
    code = f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"
    code += "\n".join(f"import scgpt_tl.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_group_is_read_without_anndata(tmp_path: Path) -> None:
    dense = counts()
    h5_group(tmp_path / "x.h5", sparse.csr_matrix(dense)).file.close()
    code = (
        "import sys; sys.modules['anndata'] = sys.modules['pandas'] = None\n"
        "import h5py\nfrom scgpt_tl.pp._blocks import open_matrix\n"
        f"matrix = open_matrix(h5py.File({str(tmp_path / 'x.h5')!r})['X'])\n"
        "print(sum(block.data.sum() for _, block in matrix.blocks(4)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) == dense.sum()


def test_a_fingerprint_tells_values_and_rows_not_how_they_lie() -> None:
    x = sparse.random(30, 20, 0.3, format="csr", random_state=0)

    def told(matrix: object, rows: int) -> str:
        found = Fingerprint()
        for _, block in open_matrix(matrix).blocks(rows):
            found.add(block)
        return found.hexdigest(open_matrix(matrix).shape)

    assert {told(matrix, rows) for matrix in (x, x.tocsc(), x.toarray()) for rows in (7, 30)} == {told(x, 1)}
    changed = x.copy()
    changed.data[3] += 1
    assert len({told(other, 30) for other in (x, changed, x[::-1], x[:, ::-1], x[:29])}) == 5

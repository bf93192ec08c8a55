"""One data set as it lies: what is read of it, and each way in which it can be unusable."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgpt_tl.tl import _stored
from scgpt_tl.tl._stored import is_store, stored


@pytest.fixture
def cells(toy_cells: Callable[..., ad.AnnData]) -> ad.AnnData:
    adata = toy_cells(30, 12)
    adata.obs["kind"] = pd.Categorical(np.where(np.arange(30) % 3, "T", "B"))
    adata.obs.loc["c4", "kind"] = np.nan
    adata.obs["number"] = np.arange(30.0)
    adata.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(12)]
    adata.layers["other"] = adata.X.copy()
    return adata


def write(adata: ad.AnnData, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # zarr's and anndata's changes to come
        adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


def given(adata: ad.AnnData, kind: str, folder: Path) -> Any:
    """The same cells, handed over in some way."""
    if kind == "memory":
        return adata
    if kind == "view":
        return adata[np.arange(30)[::-1]][::-1]
    if kind == "backed view":
        return ad.read_h5ad(write(adata[::-1].copy(), folder / "x.h5ad"), backed="r")[::-1]
    path = write(adata, folder / ("x.zarr" if kind == "zarr" else "x.h5ad"))
    return ad.read_h5ad(path, backed="r") if kind == "backed" else path


KINDS = ["memory", "view", "h5ad", "zarr", "backed", "backed view"]


@pytest.mark.parametrize("kind", KINDS)
def test_cells_columns_and_names(cells: ad.AnnData, tmp_path: Path, kind: str):
    found = stored(given(cells, kind, tmp_path), "study1")
    assert found.matrix.shape == (30, 12)
    open_ = pickle.loads(pickle.dumps(found.open))
    np.testing.assert_array_equal(open_().take(range(30)).toarray(), cells.X.toarray())
    kinds = found.column("kind")
    assert kinds.dtype == object
    assert kinds.tolist() == [None if i == 4 else "BT"[int(i % 3 > 0)] for i in range(30)]
    assert found.column("number").tolist()[:2] == ["0", "1"]
    assert found.named.var_names.tolist() == cells.var_names.tolist()
    assert found.var["gene_ids"].tolist() == cells.var["gene_ids"].tolist()
    assert found.said == ("study1" if kind in ("memory", "view") else str(found.path)) or kind.startswith("backed")
    assert list(found.var.columns) == ["gene_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_column_lists_those_there(cells: ad.AnnData, tmp_path: Path, kind: str):
    with pytest.raises(KeyError, match=r"no column 'celltype' in \.obs \(there: 'kind', 'number'\)"):
        stored(given(cells, kind, tmp_path), "study1").column("celltype")


@pytest.mark.parametrize("storage", ["csc", "dense"])
def test_other_layouts_on_disk(cells: ad.AnnData, tmp_path: Path, storage: str):
    x = cells.X.toarray()
    cells.X = sparse.csc_matrix(x) if storage == "csc" else x
    for suffix in ("h5ad", "zarr"):
        found = stored(write(cells, tmp_path / f"x.{suffix}"), "a")
        np.testing.assert_array_equal(found.matrix.take([3, 29]).toarray(), x[[3, 29]])


def test_fingerprints(cells: ad.AnnData, tmp_path: Path):
    """Of files: their bytes. Of memory: the values, however they are laid out. Any change shows."""
    path = write(cells, tmp_path / "x.h5ad")
    assert stored(path, "a").sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    parts = np.diff(cells.X.indptr).astype(np.int64), cells.X.indices, cells.X.data.astype(np.float64)
    each = b"".join(hashlib.sha256(part.tobytes()).digest() for part in parts)
    arrays = hashlib.sha256(b"(30, 12)" + each).hexdigest()
    assert stored(cells, "a").sha256() == stored(cells[:], "a").sha256() == arrays
    other = cells.copy()
    other.X = other.X.astype(np.float64).tocsc()
    assert stored(other, "a").sha256() == arrays
    backed = ad.read_h5ad(path, backed="r")
    assert stored(backed, "a").sha256() == arrays
    halves = {stored(backed[rows], "a").sha256() for rows in (slice(0, 15), slice(15, 30))}
    assert len(halves - {arrays}) == 2
    store = write(cells, tmp_path / "x.zarr")
    before = stored(store, "a").sha256()
    assert stored(store, "a").sha256() == before
    store.rename(tmp_path / "renamed.zarr")
    assert stored(tmp_path / "renamed.zarr", "a").sha256() == before
    cells.X.data[3] += 1
    assert stored(cells, "a").sha256() != arrays
    assert stored(write(cells, tmp_path / "y.zarr"), "a").sha256() != before


def test_fingerprints_are_taken_in_blocks(cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch):
    whole = stored(cells, "a").sha256()
    monkeypatch.setattr(_stored, "_BLOCK", 7)
    assert stored(cells, "a").sha256() == whole


def test_what_is_a_store(cells: ad.AnnData, tmp_path: Path):
    write(cells, tmp_path / "x.zarr").rename(tmp_path / "plain")
    (tmp_path / "folder").mkdir()
    assert is_store(tmp_path / "plain")
    assert not is_store(tmp_path / "folder")
    assert not is_store(write(cells, tmp_path / "x.h5ad"))


# ---- what cannot be used


def refused(item: Any, match: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=match):
        stored(item, "study1")


def test_truncated_files(cells: ad.AnnData, tmp_path: Path):
    whole = write(cells, tmp_path / "x.h5ad").read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 600):
        (tmp_path / "x.h5ad").write_bytes(whole[:size])
        refused(
            tmp_path / "x.h5ad", r"x\.h5ad is truncated: .*; copy or download it again, or leave it out with skip_bad"
        )
    (tmp_path / "x.h5ad").write_bytes(b"")
    refused(tmp_path / "x.h5ad", r"x\.h5ad is an empty file \(0 bytes\); copy or download it again")


def test_a_store_that_lost_a_chunk(cells: ad.AnnData, tmp_path: Path):
    """zarr itself would read it as zeros."""
    path = write(cells, tmp_path / "x.zarr")
    (path / "X" / "data" / "0").unlink()
    refused(path, r"x\.zarr is truncated: 1 of 1 chunks of X/data are missing")


def test_files_of_another_kind(cells: ad.AnnData, tmp_path: Path):
    (tmp_path / "text.h5ad").write_text("gene,cell\n" * 100)
    refused(tmp_path / "text.h5ad", r"text\.h5ad is no AnnData: it is neither an HDF5 file nor a zarr store")
    (tmp_path / "no.zarr").mkdir()
    refused(tmp_path / "no.zarr", r"no\.zarr is no AnnData: it is neither an HDF5 file nor a zarr store")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["matrix/data"] = np.eye(3)
    refused(tmp_path / "other.h5ad", r"other\.h5ad is no AnnData with counts in \.X: it lacks X, obs, var; write one")
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.eye(2)
        for name in ("obs", "var"):
            file[name] = np.array([("a",), ("b",)], dtype=[("index", "S1")])
    refused(tmp_path / "old.h5ad", r"its \.obs is older than anndata 0\.7; write one with adata\.write_h5ad")


@pytest.mark.parametrize("kind", ["memory", "view", "h5ad", "zarr"])
@pytest.mark.parametrize("x", [None, complex, str])
def test_x_without_counts(cells: ad.AnnData, tmp_path: Path, kind: str, x: Any):
    """They may be in a layer, and training has no `layer=`."""
    cells.layers["counts"] = cells.X
    cells.X = None if x is None else cells.X.toarray().astype(x)
    said = "study1" if kind in ("memory", "view") else rf"x\.{kind}"
    found = r"(it is empty \(None\)|there is none)" if x is None else "the matrix holds .*, expected real numbers .*"
    cure = r"adata\.X = adata\.layers\['counts'\] \(layers: 'counts', 'other'\)"
    refused(given(cells, kind, tmp_path), rf"{said} has no counts in \.X: {found}; put them there: {cure}")


def test_a_backed_file_without_x(cells: ad.AnnData, tmp_path: Path):
    del cells.X, cells.layers["other"]
    backed = ad.read_h5ad(write(cells, tmp_path / "x.h5ad"), backed="r")
    refused(backed, r"x\.h5ad has no counts in \.X: there is none; put them there: training reads no other place")


@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr"])
def test_a_link_to_nothing(tmp_path: Path, name: str):
    (tmp_path / name).symlink_to(tmp_path / "gone")
    refused(tmp_path / name, r"x\.\w+ is a link to .*gone, which is not there; copy or download it", FileNotFoundError)


def test_a_damaged_matrix_names_the_file(cells: ad.AnnData, tmp_path: Path):
    path = write(cells, tmp_path / "x.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indptr"][-1] += 5
    refused(
        path, r"x\.h5ad cannot be read \(ValueError: the sparse matrix in /X is damaged.*; copy or download it again"
    )
    with h5py.File(path, "r+") as file:
        del file["X/indptr"]
    refused(path, r"x\.h5ad cannot be read \(TypeError: a two-dimensional matrix is needed, not Group")


def test_parts_of_unequal_size(cells: ad.AnnData, tmp_path: Path):
    path = write(cells, tmp_path / "x.h5ad")
    with h5py.File(path, "r+") as file:
        index = file["obs"].attrs["_index"]
        del file[f"obs/{index}"]
        ad.io.write_elem(file["obs"], index, np.array(["a", "b"]))
    refused(path, r"x\.h5ad: \.X holds \(30, 12\) cells and genes, \.obs and \.var \(2, 12\)")


@pytest.mark.skipif(sys.platform == "win32", reason="locks are another matter there")
def test_a_file_that_another_process_writes(tmp_path: Path):
    path = tmp_path / "x.h5ad"
    code = f"import h5py, sys\nwith h5py.File({str(path)!r}, 'w') as f:\n    print(1, flush=True)\n    sys.stdin.read()"
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        writer.stdout.readline()
        refused(path, r"x\.h5ad is locked: another process is writing it; wait until it has closed", OSError)
    finally:
        writer.communicate("")


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
def test_no_cells_and_no_genes(cells: ad.AnnData, tmp_path: Path, kind: str):
    for part, size in ((cells[:0], "0 cells x 12 genes"), (cells[:, :0], "30 cells x 0 genes")):
        (tmp_path / size[:1]).mkdir()
        refused(given(part.copy(), kind, tmp_path / size[:1]), rf"is empty \({size}\): check how it was filtered")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
def test_values_that_are_no_counts(cells: ad.AnnData, tmp_path: Path, kind: str, value: float):
    cells.X.data[5] = value
    item = given(cells, kind, tmp_path)
    said = "study1" if kind == "memory" else rf"x\.{kind}"
    refused(item, rf"{said} holds negative or non-finite values: give counts")


def test_what_is_no_data_set():
    refused(np.eye(3), r"study1 is ndarray; AnnData or a path is expected", TypeError)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are another matter there")
def test_a_file_that_may_not_be_read(cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(cells, tmp_path / "x.h5ad")

    def refuse(_: Path) -> None:
        msg = "Permission denied"
        raise PermissionError(13, msg)

    monkeypatch.setattr(_stored, "_root", refuse)  # whoever runs the tests may read everything
    refused(path, r"x\.h5ad may not be read: .*Permission denied", PermissionError)

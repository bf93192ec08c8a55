from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from scgpt_tl import datasets


def test_pbmc68k_reduced_is_log_values_and_labels():
    adata = datasets.pbmc68k_reduced()
    assert adata.shape == (700, 765)
    assert adata.X.min() == 0
    assert 2 < adata.X.max() < 10
    assert not (adata.X.data == np.floor(adata.X.data)).all()
    assert adata.obs["bulk_labels"].nunique() == 10
    assert adata.obs["bulk_labels"].notna().all()
    assert not adata.obsm


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.DATA_FOLDER, str(tmp_path))
    return tmp_path


def test_the_data_folder_comes_first(folder):
    path = folder / "pbmc3k" / "pbmc3k.h5ad"
    path.parent.mkdir()
    ad.AnnData(np.eye(3, dtype=np.float32)).write_h5ad(path)
    assert datasets.locate("pbmc3k") == path
    assert datasets.pbmc3k().shape == (3, 3)


def test_the_data_folder_may_be_in_the_home_folder(folder, monkeypatch):
    path = folder / "data" / "pbmc3k" / "pbmc3k.h5ad"
    path.parent.mkdir(parents=True)
    path.write_text("")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv(datasets.DATA_FOLDER, "~/data")
    assert datasets.locate("pbmc3k") == path


def test_absent_file_names_source_path_and_variable(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"GSE96583") as error:
        datasets.kang_ctrl12k()
    assert "kang_ctrl12k/kang_ctrl12k.h5ad" in str(error.value)
    assert str(folder) in str(error.value)
    monkeypatch.delenv(datasets.DATA_FOLDER)
    with pytest.raises(FileNotFoundError, match="SCGPT_TL_DATA names"):
        datasets.locate("pbmc3k")


def test_unknown_name():
    with pytest.raises(KeyError, match=r"no file of a data set 'pbmc4k'; there are .*'pbmc3k'.*pbmc68k_reduced"):
        datasets.load("pbmc4k")


def test_load_reads_what_scanpy_brings():
    assert datasets.load("pbmc68k_reduced").shape == (700, 765)


@pytest.mark.parametrize("good", [True, False])
def test_download_is_checked_by_sha256(folder, tmp_path, monkeypatch, good):
    pooch = pytest.importorskip("pooch")
    source = tmp_path / "served" / "some.h5ad"
    source.parent.mkdir()
    source.write_bytes(b"data")

    def fetch(url, output_file, _pooch):
        Path(output_file).write_bytes(source.read_bytes())

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr("pooch.core.choose_downloader", lambda *_, **__: fetch)
    digest = hashlib.sha256(b"data" if good else b"other").hexdigest()
    entry = replace(datasets.REGISTRY["pbmc3k"], url="https://example.org/some.h5ad", sha256=digest)
    monkeypatch.setitem(datasets.REGISTRY, "pbmc3k", entry)
    if good:
        assert datasets.locate("pbmc3k").read_bytes() == b"data"
    else:
        with pytest.raises(ValueError, match="hash"):
            datasets.locate("pbmc3k")


@pytest.mark.data
@pytest.mark.skipif("SCGPT_TL_DATA" not in os.environ, reason="SCGPT_TL_DATA names no folder of real data")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pbmc3k", (2700, 13714)),
        ("pbmc_donor_a", (2896, 13939)),
        ("pbmc_sorted_ref", (2140, 8863)),
        ("kang_ctrl12k", (12261, 1287)),
        ("kang_ifnb2000", (1941, 9015)),
        ("mixology_3protocol", (1394, 889)),
    ],
)
def test_real_sets(name, shape):
    assert getattr(datasets, name)().shape == shape

"""Cells of a SOMA experiment as a study, from a store that is written here."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgpt_tl import datasets
from scgpt_tl._random import name_keys
from scgpt_tl.engine.data import Plan, feed
from scgpt_tl.engine.study import Source, Study, expressed
from scgpt_tl.tl import _census
from scgpt_tl.tl._corpus import open_corpus
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from anndata import AnnData

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # theirs
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def cells(toy) -> AnnData:
    adata = toy(60, 40)
    x = adata.X.toarray()
    x[7] = 0  # a cell without a gene
    adata.X = sparse.csr_matrix(x)
    adata.var["feature_name"] = [f"NAME{i}" for i in range(40)]
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    adata.obs["primary"] = np.arange(60) % 4 > 0
    return adata


@pytest.fixture(scope="module")
def store(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tiledbsoma", reason="the extra 'census' is not installed")
    import tiledbsoma.io

    path = tmp_path_factory.mktemp("soma") / "experiment"
    tiledbsoma.io.from_anndata(str(path), cells, measurement_name="RNA", X_layer_name="raw")
    return path


def counts(source: Source) -> np.ndarray:
    return sparse.vstack([block for _, block in source.matrix.blocks(7)]).toarray()


def test_all_cells_with_their_names(cells: AnnData, store: Path):
    found = datasets.census(uri=store, labels_key="cell_type", batch_key="batch", weight=0.5, name="mine")
    assert isinstance(found, Source)
    assert (found.name, found.n_cells, found.weight) == ("mine", 60, 0.5)
    assert found.genes == cells.var["feature_name"].tolist()
    np.testing.assert_array_equal(counts(found), cells.X.toarray())
    assert found.labels.tolist() == cells.obs["cell_type"].tolist()
    assert found.batches.tolist() == cells.obs["batch"].tolist()
    told = found.manifest
    assert (told["name"], told["file"], told["cells"], told["genes"]) == ("mine", "experiment", 60, 40)
    assert len(told["sha256"]) == 64


def test_cells_that_pass_a_filter(cells: AnnData, store: Path):
    found = datasets.census(uri=store, value_filter="primary == True and batch == 'a'", labels_key="cell_type")
    mask = cells.obs["primary"].to_numpy() & (cells.obs["batch"] == "a").to_numpy()
    assert 5 < mask.sum() < 40
    np.testing.assert_array_equal(counts(found), cells.X.toarray()[mask])
    assert found.labels.tolist() == cells.obs["cell_type"][mask].tolist()
    assert found.manifest["filter"] == "primary == True and batch == 'a'"
    assert found.manifest["sha256"] != datasets.census(uri=store).manifest["sha256"]
    np.testing.assert_array_equal(expressed(found), (cells.X.toarray()[mask] > 0).sum(0))


@pytest.mark.parametrize("rows", [3, 2048])
def test_rows_in_any_order(cells: AnnData, store: Path, monkeypatch: pytest.MonkeyPatch, rows: int):
    monkeypatch.setattr(_census, "_ROWS", rows)
    found = pickle.loads(pickle.dumps(datasets.census(uri=store)))  # to another process
    for chosen in ([5, 2, 2, 59, 7], [7], []):
        np.testing.assert_array_equal(found.matrix.take(chosen).toarray(), cells.X.toarray()[chosen])
    assert found.matrix.take([3]).has_canonical_format


def test_it_feeds_as_the_same_cells_in_memory(cells: AnnData, store: Path):
    """Together with a study of another kind, through `open_corpus`."""
    held = cells.copy()
    (other,) = open_corpus({"other": held})
    soma = datasets.census(uri=store, name="soma")
    corpus = open_corpus([soma, other], weights={"soma": 1.0})
    assert [source.name for source in corpus] == ["soma", "other"]
    tokenizer = Tokenizer(np.arange(40), name_keys(f"g{i}" for i in range(41)), 40, max_length=9)
    studies = [source.study(tokenizer) for source in corpus]
    same = [Study(s.name, sparse.csr_matrix(cells.X), tokenizer) for s in studies]
    options = {"cells": 8, "ratios": (0.5,), "seed": 0, "held_out": 0.1, "training": True, "pool": 32}
    given, expected = (
        [block.gene_ids.tolist() for _, block in feed(Plan(x, **options).epoch(0), x, lambda _, block, __: block)]
        for x in (studies, same)
    )
    assert given == expected


def test_what_cannot_be(store: Path):
    with pytest.raises(ValueError, match="no cell passes value_filter=\"batch == 'z'\""):
        datasets.census(uri=store, value_filter="batch == 'z'")
    with pytest.raises(ValueError, match=r"value_filter='nonsense == 1' cannot be read: .*columns: .*cell_type"):
        datasets.census(uri=store, value_filter="nonsense == 1")
    with pytest.raises(KeyError, match=r"no column 'kind' in the experiment's obs \(there: .*cell_type"):
        datasets.census(uri=store, labels_key="kind")
    with pytest.raises(KeyError, match=r"no layer 'counts' in the experiment \(there: raw\)"):
        datasets.census(uri=store, layer="counts")


def test_the_census_itself_is_opened_by_its_date(cells: AnnData, store: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the network: the package that finds the Census is replaced, the experiment is real."""
    import tiledbsoma

    asked = []

    class Package:
        @staticmethod
        def get_census_version_description(version: str) -> dict[str, str]:
            return {"release_build": "2025-01-30"} if version == "stable" else {}

        @staticmethod
        def open_soma(*, census_version: str) -> dict:
            asked.append(census_version)
            return {"census_data": {"homo_sapiens": tiledbsoma.open(str(store))}}

    monkeypatch.setitem(sys.modules, "cellxgene_census", Package)
    found = datasets.census(value_filter="primary == True")
    np.testing.assert_array_equal(counts(found), cells.X.toarray()[cells.obs["primary"]])
    assert asked == ["2025-01-30"] * 2
    assert found.manifest["file"] == "census 2025-01-30 homo_sapiens"


@pytest.mark.parametrize("package", ["tiledbsoma", "cellxgene_census"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is needed here.*pip install 'scgpt_tl\[census\]'"):
        datasets.census(uri="somewhere" if package == "tiledbsoma" else None)


def test_missing_labels():
    assert _census._texts(pd.Series(["a", None, "b"])).tolist() == ["a", None, "b"]
    assert _census._texts(pd.Series(["a", None], dtype="category")).tolist() == ["a", None]

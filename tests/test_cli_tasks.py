"""`scgpt-tl annotate`: files in, a file out that differs by its slots alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

import scgpt_tl
from scgpt_tl import cli, tl

if TYPE_CHECKING:
    from anndata import AnnData


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> dict[str, Path]:
    """A model, a query and a reference with two types, and a YAML file of options."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("base", "query.h5ad", "query.zarr", "reference.h5ad", "train.yaml")}
    train = scgpt_tl.TrainConfig(epochs=1, cells=16, max_length=60, device="cpu", progress=False)
    tl.scgpt_pretrain(toy_cells(48), out=paths["base"], size="nano", train=train)
    query, reference = toy_cells(20, seed=2), toy_cells(60, seed=1)
    for cells in (query, reference):
        cells.obs["type"] = np.where(np.arange(cells.n_obs) % 2, "odd/one", "even")
    query.uns["kept"], query.layers["kept"] = "yes", query.X.copy()
    query.obsm["kept"], query.raw = np.ones((20, 2)), query.copy()
    query.write_h5ad(paths["query.h5ad"])
    query.write_zarr(paths["query.zarr"])
    reference.write_h5ad(paths["reference.h5ad"])
    paths["train.yaml"].write_text("epochs: 1\nprogress: false\ndevice: cpu\n")
    return paths


def annotate(files: dict[str, Path], out: Path, *more: str, query: str = "query.h5ad", learn: bool = True) -> int:
    given = ["--reference", str(files["reference.h5ad"]), "--labels-key", "type", "--model", str(files["base"])]
    given += ["--method", "probe", "--config", str(files["train.yaml"])]
    return cli.main(["annotate", str(files[query]), *(given if learn else []), "-o", str(out), *more])


def expected(files: dict[str, Path]) -> AnnData:
    query = ad.read_h5ad(files["query.h5ad"])
    reference, train = ad.read_h5ad(files["reference.h5ad"]), {"device": "cpu", "progress": False}
    tl.scgpt_annotate(query, reference=reference, labels_key="type", model=files["base"], method="probe", train=train)
    return query


@pytest.mark.parametrize("query", ["query.h5ad", "query.zarr"])
def test_the_file_has_what_the_function_writes(files: dict[str, Path], tmp_path: Path, query: str, capsys):
    assert annotate(files, tmp_path / "out.h5ad", query=query) == 0
    found, there = ad.read_h5ad(tmp_path / "out.h5ad"), expected(files)
    np.testing.assert_array_equal(found.obsm["scgpt_probabilities"], there.obsm["scgpt_probabilities"])
    assert found.obs["scgpt_pred"].tolist() == there.obs["scgpt_pred"].tolist()
    assert found.uns["scgpt_pred"]["classes"].tolist() == ["even", "odd/one"]
    assert (found.X != there.X).nnz == 0
    assert found.uns["kept"] == "yes"
    assert (found.layers["kept"] != there.X).nnz == 0
    assert (found.raw.X != there.X).nnz == 0
    np.testing.assert_array_equal(found.obsm["kept"], np.ones((20, 2)))
    assert "20 cells, " in capsys.readouterr().out


def test_a_saved_folder_annotates(files: dict[str, Path], tmp_path: Path):
    first, second = tmp_path / "first.h5ad", tmp_path / "second.h5ad"
    assert annotate(files, first, "--save", str(tmp_path / "types"), "--key-added", "mine") == 0
    model = ["--model", str(tmp_path / "types"), "--key-added", "mine"]
    assert annotate(files, second, *model, learn=False) == 0
    found = [ad.read_h5ad(path).obsm["mine_probabilities"] for path in (first, second)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("out.csv", [], "expected a name that ends in .h5ad"),
        ("there.h5ad", [], "there.h5ad exists"),
        ("out.h5ad", ["--labels-key", "typ"], "'typ' is not in reference.obs"),
        ("out.h5ad", ["--method", "prob"], "did you mean 'probe'"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_file(
    files: dict[str, Path], tmp_path: Path, out: str, more: list[str], said: str, capsys
):
    (tmp_path / "there.h5ad").write_text("")
    assert annotate(files, tmp_path / out, *more) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("scgpt-tl: error: ")
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5ad"]


def test_integrate_writes_what_the_function_writes(files: dict[str, Path], tmp_path: Path, capsys):
    cells = ad.read_h5ad(files["reference.h5ad"])
    cells.obs["lab"] = np.where(np.arange(60) % 3, "x", "y")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    given = [str(tmp_path / "cells.h5ad"), "--batch-key", "lab", "--config", str(files["train.yaml"])]
    out, save = tmp_path / "out.h5ad", tmp_path / "learned"
    assert cli.main(["integrate", *given, "--model", str(files["base"]), "-o", str(out), "--save", str(save)]) == 0
    assert "60 cells, 2 batches learned" in capsys.readouterr().out
    found = ad.read_h5ad(out)
    assert sorted(found.obsm) == ["X_scGPT", "X_scGPT_integrated"]
    assert {"scgpt", "scgpt_integrated"} <= set(found.uns)
    assert (found.X != cells.X).nnz == 0
    again = [given[0], "--batch-key", "lab", "--model", str(save), "-o", str(tmp_path / "again.h5ad")]
    assert cli.main(["integrate", *again, "--key-added", "mine"]) == 0
    applied = ad.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_allclose(applied.obsm["mine"], found.obsm["X_scGPT_integrated"], atol=1e-6)
    assert sorted(applied.obsm) == ["mine"]


def test_integrate_says_what_is_wrong(files: dict[str, Path], tmp_path: Path, capsys):
    out = str(tmp_path / "out.h5ad")
    given = ["integrate", str(files["reference.h5ad"]), "--batch-key", "type", "-o", out]
    assert cli.main([*given, "--preset", "papr"]) == 1
    assert "did you mean 'paper'" in capsys.readouterr().err
    assert not Path(out).exists()


def test_of_a_mudata_file_one_modality_is_asked_for(tmp_path: Path, capsys):
    (tmp_path / "both.h5mu").touch()
    assert cli.main(["check", str(tmp_path / "both.h5mu")]) == 1
    assert "is a MuData file, and one modality is read: write it" in capsys.readouterr().err


def test_a_file_of_another_kind_is_named(files: dict[str, Path], tmp_path: Path, capsys):
    (tmp_path / "notes.txt").write_text("no cells")
    assert annotate({**files, "notes": tmp_path / "notes.txt"}, tmp_path / "out.h5ad", query="notes") == 1
    assert "notes.txt cannot be read as an .h5ad file (" in capsys.readouterr().err
    (tmp_path / "out.h5ad").touch()
    assert annotate(files, tmp_path / "out.h5ad") == 1
    assert "exists; choose another name, or give --overwrite to replace it" in capsys.readouterr().err

"""`scgpt-tl grn`: files in, a file out that differs by its slots alone, and its edges."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgpt_tl
from scgpt_tl import cli, get, tl


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> dict[str, Path]:
    """A model, and cells of two conditions."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("base", "cells.h5ad", "cells.zarr", "genes.txt")}
    train = scgpt_tl.TrainConfig(epochs=1, cells=16, max_length=60, device="cpu", progress=False)
    tl.scgpt_pretrain(toy_cells(48), out=paths["base"], size="nano", train=train)
    cells = toy_cells(40, seed=2)
    cells.obs["condition"] = np.where(np.arange(40) % 4 < 2, "ctrl", "stim/1")
    cells.uns["kept"], cells.varm["kept"], cells.varp["kept"] = "yes", np.ones((50, 2)), np.eye(50)
    cells.var["length"] = np.arange(50)
    cells.write_h5ad(paths["cells.h5ad"])
    cells.write_zarr(paths["cells.zarr"])
    paths["genes.txt"].write_text("# genes of interest\nG1\nG2  # and this\n\nG3\nG4\nG5\nG6\n")
    return paths


def grn(files: dict[str, Path], out: Path, *more: str, cells: str = "cells.h5ad") -> int:
    given = ["--model", str(files["base"]), "--device", "cpu", "-o", str(out)]
    return cli.main(["grn", str(files[cells]), *given, *more])


@pytest.mark.parametrize("cells", ["cells.h5ad", "cells.zarr"])
def test_programs_are_what_the_function_writes(files, tmp_path, cells, capsys):
    out, edges = tmp_path / "out.h5ad", tmp_path / "edges.tsv"
    more = ["--n-genes", "0", "--groupby", "condition", "--resolution", "1,2", "--n-neighbors", "5", "--min-genes", "3"]
    assert grn(files, out, *more, "--edges", str(edges), "--n-top", "30", cells=cells) == 0
    there, found = ad.read_h5ad(files["cells.h5ad"]), ad.read_h5ad(out)
    options = {"resolution": [1, 2], "n_neighbors": 5, "min_genes": 3, "groupby": "condition", "device": "cpu"}
    tl.scgpt_grn(there, model=files["base"], genes="all", **options)
    assert (found.varp["scgpt_grn"] != there.varp["scgpt_grn"]).nnz == 0
    np.testing.assert_array_equal(found.obsm["scgpt_program"], there.obsm["scgpt_program"])
    assert found.var["scgpt_program"].astype(str).tolist() == there.var["scgpt_program"].astype(str).tolist()
    assert found.uns["kept"] == "yes"
    assert set(found.var) == {"length", "scgpt_program"}
    assert set(found.varm) == {"kept", "scgpt_program"}
    assert (found.X != there.X).nnz == 0
    written = pd.read_csv(edges, sep="\t")
    pd.testing.assert_frame_equal(written[["source", "target", "rank"]], get.grn_df(there, n_top=30).iloc[:, [0, 1, 3]])
    said = capsys.readouterr().out
    assert "40 cells, 50 genes" in said
    assert f"{there.obsm['scgpt_program'].shape[1]} programs" in said


def test_targets_of_regulators(files, tmp_path):
    out, edges = tmp_path / "out.h5ad", tmp_path / "edges.csv"
    more = ["--method", "coexpression", "--groupby", "condition", "--control", "ctrl", "--regulators", "G2, G1"]
    more += ["--genes-file", str(files["genes.txt"]), "--key-added", "mine"]
    assert grn(files, out, *more, "--edges", str(edges), "--setting", "difference") == 0
    found = ad.read_h5ad(out)
    assert found.varm["mine"].shape == (50, 2, 2)
    assert found.uns["mine"]["genes"].tolist() == ["G1", "G2", "G3", "G4", "G5", "G6"]
    table = pd.read_csv(edges)
    expected = get.grn_df(found, key="mine", setting="difference")
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-5)
    assert set(table["source"]) == {"G1", "G2"}
    again = tmp_path / "again.h5ad"
    pairs = ["--method", "coexpression", "--key-added", "mine", "--n-genes", "8"]
    assert cli.main(["grn", str(out), "--model", str(files["base"]), "-o", str(again), *pairs]) == 0
    replaced = ad.read_h5ad(again)
    assert set(replaced.varm) == {"kept"}
    assert set(replaced.varp) == {"kept", "mine"}
    assert len(replaced.uns["mine"]["genes"]) == 8
    assert "highly_variable" not in replaced.var
    assert "hvg" not in replaced.uns


@pytest.fixture
def asked(monkeypatch):
    """What the function is called with, instead of its work."""
    seen = {}

    def call(adata, **given):
        seen.update(given)
        msg = "stopped here"
        raise RuntimeError(msg)

    monkeypatch.setitem(vars(tl), "scgpt_grn", call)
    return seen


def test_options_reach_the_function(files, tmp_path, asked):
    given = {"attention_layer": 0, "batch_key": "condition", "min_cells": 3, "groupby": "condition", "control": "ctrl"}
    given |= {"effect": "embedding", "key_added": "k", "dtype": "float32", "max_memory": "4GB", "min_genes": 4}
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert grn(files, tmp_path / "out.h5ad", *flags, "--shuffled", "--context", "all", "--method", "knockout") == 1
    assert {name: asked[name] for name in given} == given
    assert (asked["method"], asked["shuffled"], asked["context"], asked["rng"]) == ("knockout", True, True, 0)
    assert len(asked["genes"]) == 50
    assert grn(files, tmp_path / "out.h5ad", "--context", "stim/1", "--n-genes", "5") == 1
    assert asked["context"] == "stim/1"
    assert len(asked["genes"]) == 5


def test_marked_genes_are_left_to_the_function(files, tmp_path, asked):
    cells = ad.read_h5ad(files["cells.h5ad"])
    cells.var["highly_variable"] = np.arange(50) < 9
    cells.write_h5ad(tmp_path / "marked.h5ad")
    assert cli.main(["grn", str(tmp_path / "marked.h5ad"), "-o", str(tmp_path / "out.h5ad")]) == 1
    assert asked["genes"] is None


@pytest.mark.parametrize("method", ["coexpression", "attention"])
def test_all_genes_are_no_choice(files, tmp_path, monkeypatch, capsys, method):
    """What refuses too many genes that nobody chose hears of it, marked or not."""
    monkeypatch.setattr("scgpt_tl.tl._pairwise.MOST_GENES", 20)
    cells = ad.read_h5ad(files["cells.h5ad"])
    cells.var.insert(0, "highly_variable", np.arange(50) < 9)
    cells.write_h5ad(tmp_path / "marked.h5ad")
    for source in (files["cells.h5ad"], tmp_path / "marked.h5ad"):
        given = ["grn", str(source), "--model", str(files["base"]), "-o", str(tmp_path / "out.h5ad"), "--n-genes", "0"]
        assert cli.main([*given, "--method", method]) == 1
        assert "50 genes" in capsys.readouterr().err
    monkeypatch.setattr("scgpt_tl.tl._pairwise.MOST_GENES", 50)
    assert cli.main([*given, "--method", "coexpression"]) == 0
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert len(found.uns["scgpt_grn"]["genes"]) == 50
    assert list(found.var) == list(cells.var)
    assert found.var["highly_variable"].sum() == 9


@pytest.mark.parametrize(
    ("out", "more", "said"),
    [
        ("out.csv", [], "expected a name that ends in .h5ad"),
        ("there.h5ad", [], "there.h5ad exists"),
        ("out.h5ad", ["--edges", "e.gml"], "--edges e.gml: expected a name that ends in .tsv, .csv, .graphml"),
        ("out.h5ad", ["--n-top", "3"], "give --edges FILE"),
        ("out.h5ad", ["--genes-file", "none.txt", "--n-genes", "3"], "give one of them"),
        ("out.h5ad", ["--genes-file", "none.txt"], "no file none.txt"),
        ("out.h5ad", ["--edges", "e.tsv", "--setting", "control"], "give --groupby and --control"),
        ("out.h5ad", ["--edges", "e.tsv", "--n-top", "0"], "at least one edge"),
        ("out.h5ad", ["--method", "attentoin"], "did you mean 'attention'"),
        ("out.h5ad", ["--groupby", "conditions"], "conditions"),
    ],
)
def test_an_error_is_one_line_and_leaves_no_file(files, tmp_path, monkeypatch, out, more, said, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.h5ad").write_text("")
    assert grn(files, tmp_path / out, *more) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("scgpt-tl: error: ")
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["there.h5ad"]


def test_a_file_of_genes_that_names_none(files, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert grn(files, tmp_path / "out.h5ad", "--genes-file", str(tmp_path / "empty.txt")) == 1
    assert "names no gene; expected one a line" in capsys.readouterr().err

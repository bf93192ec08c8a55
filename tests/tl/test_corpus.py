"""Data sets as one corpus: named, weighted, their genes in one language, bad ones refused or left out."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl.engine.study import Source, expressed
from scgpt_tl.genes.table import GeneTable, hgnc_table
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.pp import harmonize_genes
from scgpt_tl.tl import _corpus
from scgpt_tl.tl._corpus import open_corpus

TABLE = GeneTable(
    names={name: ((old,), ()) for name, old in (("A1", "OA"), ("B1", "OB"), ("C1", "OC"), ("D1", "OD"))},
    previous={"OA": ("A1",), "OB": ("B1",), "OC": ("C1",), "OD": ("D1",)},
    alias={},
    ensembl={f"ENSG0000000000{i}": (name,) for i, name in enumerate(("A1", "B1", "C1", "D1"))},
    source="/somewhere/names.tsv",
)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[[GeneTable | None], None]:
    """Which table is at hand: none, unless a test puts one there."""

    def put(found: GeneTable | None) -> None:
        monkeypatch.setattr(
            _corpus, "hgnc_table", lambda *, download: found if not download else pytest.fail("network")
        )

    put(None)
    return put


@pytest.fixture
def make(toy_cells: Callable[..., ad.AnnData]) -> Callable[..., ad.AnnData]:
    """`make(names, n)` -> AnnData with these genes."""

    def build(names: list[str], n: int = 20, **columns: list) -> ad.AnnData:
        adata = toy_cells(n, len(names), seed=n)
        adata.var_names = names
        for column, values in columns.items():
            adata.var[column] = values
        return adata

    return build


def write(adata: ad.AnnData, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # zarr's and anndata's changes to come
        adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


def counts(source: Source) -> np.ndarray:
    return source.matrix.take(range(source.n_cells)).toarray()


# ---- what may be handed over


@pytest.fixture
def folder(toy_cells, tmp_path: Path) -> Path:
    """Three studies in two formats at two depths, and files that are none of them."""
    write(toy_cells(20), tmp_path / "corpus" / "b.h5ad")
    write(toy_cells(30, seed=1), tmp_path / "corpus" / "deeper" / "a.h5ad")
    write(toy_cells(10, seed=2), tmp_path / "corpus" / "deeper" / "c.zarr")
    (tmp_path / "corpus" / "notes.txt").write_text("no data")
    (tmp_path / "corpus" / "._b.h5ad").write_text("what a Mac leaves behind")
    (tmp_path / "corpus" / "deeper" / "c.zarr" / "odd.h5ad").write_text("stores are not entered")
    return tmp_path / "corpus"


def test_a_folder_is_its_files_at_any_depth(folder: Path, toy_cells):
    found = open_corpus(folder)
    assert [s.name for s in found] == ["b", "a", "c"]
    for source, adata in zip(found, (toy_cells(20), toy_cells(30, seed=1), toy_cells(10, seed=2)), strict=True):
        np.testing.assert_array_equal(counts(source), adata.X.toarray())
        assert source.genes == adata.var_names.tolist()
    assert [s.name for s in open_corpus(str(folder))] == ["b", "a", "c"]
    assert [s.name for s in open_corpus(folder / "deeper" / "c.zarr")] == ["c"]


def test_a_folder_names_what_it_has_under_another_spelling_or_not_at_all(folder: Path, toy_cells, caplog):
    write(toy_cells(9), folder / "up.h5ad").rename(folder / "UP.H5AD")
    assert [s.name for s in open_corpus(folder)] == ["UP", "b", "a", "c"]
    (folder / "deeper" / "atlas.h5ad").symlink_to("/gone/atlas.h5ad")
    (folder / "lost.zarr").symlink_to("/gone/lost.zarr")
    with pytest.raises(FileNotFoundError, match=r"atlas\.h5ad is a link to /gone/atlas\.h5ad, which is not there"):
        open_corpus(folder)
    assert [s.name for s in open_corpus(folder, skip_bad=True)] == ["UP", "b", "a", "c"]
    given = [folder / "b.h5ad", folder / "deeper" / "atlas.h5ad", str(folder / "lost.zarr")]
    with pytest.raises(FileNotFoundError, match=r"atlas\.h5ad is a link to"):
        open_corpus(given)
    assert [s.name for s in open_corpus(given, skip_bad=True)] == ["b"]
    for name in ("atlas", "lost"):
        assert any(said.startswith(f"'{name}' is left out: ") for said in caplog.messages)


def test_the_home_folder_is_spelled_as_in_a_shell(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert [s.name for s in open_corpus(["~/b.h5ad", Path("~/deeper")])] == ["b", "a", "c"]


def test_lists_mappings_and_adata(folder: Path, toy_cells):
    adata = toy_cells(15)
    mixed = open_corpus([adata, folder / "b.h5ad", [str(folder / "deeper")], adata[:5]])
    assert [s.name for s in mixed] == ["study1", "b", "a", "c", "study5"]
    named = open_corpus({"x": adata, "y": folder / "b.h5ad", "z": folder / "deeper" / "c.zarr"})
    assert [(s.name, s.n_cells) for s in named] == [("x", 15), ("y", 20), ("z", 10)]
    with pytest.raises(ValueError, match="'y' stands for 2 data sets; a name stands for one"):
        open_corpus({"y": folder / "deeper"})


def test_sources_are_handed_through(folder: Path, toy_cells):
    first = open_corpus(folder)
    again = open_corpus(first)
    assert [(s.name, s.genes, s.manifest) for s in again] == [(s.name, s.genes, s.manifest) for s in first]
    more = open_corpus([*first, toy_cells(9)], weights={"a": 0.5})
    assert [(s.name, s.weight) for s in more] == [("b", 1), ("a", 0.5), ("c", 1), ("study4", 1)]
    assert open_corpus({"new": first[0]})[0].name == "new"


def test_nothing_is_read_whole_and_sources_travel(folder: Path, monkeypatch):
    monkeypatch.setattr(ad, "read_h5ad", lambda *_, **__: pytest.fail("read whole"))
    found = pickle.loads(pickle.dumps(open_corpus(folder)))
    assert [counts(s).shape for s in found] == [(20, 50), (30, 50), (10, 50)]
    assert expressed(found[0]).tolist() == (counts(found[0]) > 0).sum(0).tolist()
    assert len(pickle.dumps(found[0])) < 20_000


def test_a_relative_path_holds_wherever_one_goes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    found = open_corpus(["b.h5ad", "deeper"])
    monkeypatch.chdir(folder.parent)
    assert [counts(s).shape for s in found] == [(20, 50), (30, 50), (10, 50)]


def test_the_manifest_says_what_the_data_were(folder: Path, toy_cells):
    stored, held = open_corpus([folder / "b.h5ad", toy_cells(12)], weights={"b": 2})
    assert {**stored.manifest, "sha256": len(stored.manifest["sha256"])} == {
        "name": "b", "file": "b.h5ad", "sha256": 64, "cells": 20, "genes": 50, "weight": 2.0, "table": "",
    }  # fmt: skip
    assert (held.manifest["file"], held.manifest["cells"], held.manifest["weight"]) == (None, 12, 1.0)
    assert str(folder) not in repr(stored.manifest)


# ---- one language


def test_ids_and_symbols_train_together(make, table):
    """One study carries symbols in a column, one old symbols, one approved ones."""
    table(TABLE)
    corpus = {
        "ids": make([f"ENSG0000000000{i}.4" for i in range(4)], gene_symbols=["OA", "OB", "OC", "OD"]),
        "old": make(["OA", "OB", "C1", "X9"], 21),
        "new": make(["D1", "C1", "B1", "A1"], 22),
    }
    found = {s.name: s for s in open_corpus(corpus)}
    assert found["ids"].genes == ["A1", "B1", "C1", "D1"]
    assert found["old"].genes == ["A1", "B1", "C1", "X9"]
    assert found["new"].genes == ["D1", "C1", "B1", "A1"]
    assert {s.manifest["table"] for s in found.values()} == {"names.tsv"}
    np.testing.assert_array_equal(counts(found["ids"]), corpus["ids"].X.toarray())


def test_without_a_table_the_studies_carry_each_other(make, tmp_path: Path):
    ids = [f"ENSG0000000000{i}" for i in range(3)]
    both = write(make(["A1", "B1", "C1"], gene_ids=ids), tmp_path / "both.h5ad")
    found = open_corpus([both, make([f"{ids[1]}.7", ids[0], "ENSG00000000099"], 21), make(["A1", "OB", "C1"], 22)])
    assert [s.genes for s in found] == [["A1", "B1", "C1"], ["B1", "A1", "ENSG00000000099"], ["A1", "OB", "C1"]]
    assert {s.manifest["table"] for s in found} == {""}


def test_names_about_which_nothing_is_known_are_taken_as_they_are(make, table):
    table(TABLE)
    assert open_corpus(make(["g1", "g2", "OA", "g3", "g4", "g5"]))[0].genes == ["g1", "g2", "OA", "g3", "g4", "g5"]
    assert open_corpus(make(["ENSG00000000042.1", "ENSG00000000043"]))[0].genes == [
        "ENSG00000000042",
        "ENSG00000000043",
    ]


def test_the_network_is_not_asked(make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(_corpus, "hgnc_table", hgnc_table)
    monkeypatch.setattr("scgpt_tl.genes.table.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("scgpt_tl.genes.table._download", lambda *_: pytest.fail("network"))
    monkeypatch.delenv("SCGPT_TL_DATA", raising=False)
    assert open_corpus(make(["OA", "OB"]))[0].genes == ["OA", "OB"]


VOCAB = GeneVocab(["A1", "OB", "C1", "Z1"])


@pytest.mark.parametrize("stored", [False, True])
def test_the_vocabulary_of_a_model(make, table, tmp_path: Path, stored: bool):
    """Its own names, older than the table's or not; "" where it has none."""
    adata = make(["OA", "B1", "ENSG00000000002", "Q1"])
    item = write(adata, tmp_path / "a.h5ad") if stored else adata
    assert open_corpus(make(["A1", "OB", "Q1"]), model_vocab=VOCAB)[0].genes == ["A1", "OB", ""]
    table(TABLE)
    (found,) = open_corpus(item, model_vocab=VOCAB)
    assert found.genes == ["A1", "OB", "C1", ""]
    assert found.manifest["table"] == "names.tsv"
    assert open_corpus(make(["A1", "OB"]), model_vocab=VOCAB)[0].manifest["table"] == ""


@pytest.mark.parametrize("stored", [False, True])
def test_what_harmonize_genes_found_is_kept(make, tmp_path: Path, stored: bool):
    adata = make(["OA", "B1", "Q1"])
    harmonize_genes(adata, VOCAB, table=TABLE)
    item = write(adata, tmp_path / "a.h5ad") if stored else adata
    assert open_corpus(item, model_vocab=VOCAB)[0].genes == ["A1", "OB", ""]
    other = GeneVocab(["B1", "Q1"])  # another vocabulary: it does not hold
    assert open_corpus(item, model_vocab=other)[0].genes == ["", "B1", "Q1"]


def test_a_study_that_the_model_cannot_read(make, caplog):
    bad, good = make([f"Gene{i}" for i in range(30)]), make(["A1", "C1"])
    with pytest.raises(
        ValueError, match=r"study1: 0 of 30 genes are in the model's vocabulary, at least 20% are needed"
    ):
        open_corpus([bad, good], model_vocab=VOCAB)
    assert [s.name for s in open_corpus([bad, good], model_vocab=VOCAB, skip_bad=True)] == ["study2"]
    assert "'study1' is left out: study1: 0 of 30 genes" in caplog.text


def test_studies_without_a_common_gene(make, caplog):
    corpus = {"a": make(["A1", "B1"]), "b": make(["B1", "C1"]), "odd": make(["Q1", "Q2"]), "c": make(["C1", "B1"])}
    with pytest.raises(
        ValueError, match=r"no gene is shared by 'a' \(A1, B1, ...\) and 'odd' \(Q1, Q2, ...\): they must"
    ):
        open_corpus(corpus)
    assert [s.name for s in open_corpus(corpus, skip_bad=True)] == ["a", "b", "c"]
    assert "'odd' is left out: it shares no gene with 'a', 'b', 'c'" in caplog.text


def test_ids_beside_symbols_name_the_cure(make):
    with pytest.raises(
        ValueError, match=r"no gene is shared .*: put HGNC's table at \$SCGPT_TL_DATA/gene_resources/hgnc"
    ):
        open_corpus([make(["ENSG00000000001", "ENSG00000000002"]), make(["A1", "B1"])])


# ---- weights, labels, batches


def test_weights(make, caplog):
    corpus = {"a": make(["A1"]), "b": make(["A1"], 21), "c": make(["A1"], 22)}
    assert [(s.name, s.weight) for s in open_corpus(corpus, weights={"b": 0.25})] == [("a", 1), ("b", 0.25), ("c", 1)]
    assert [s.name for s in open_corpus(corpus, weights={"a": 0})] == ["b", "c"]
    assert "study 'a' has the weight 0 and is left out" in caplog.text
    two = {"atlas": corpus["a"], "b": corpus["b"]}
    with pytest.raises(
        ValueError, match=r"weights names the study 'atls', which the corpus .*; did you mean 'atlas'\?"
    ):
        open_corpus(two, weights={"atls": 1})
    with pytest.raises(ValueError, match=r"weights names the study 'other', which .*not have; there are atlas, b"):
        open_corpus(two, weights={"other": 1})
    for weight in (-1, np.nan, "x", None):
        with pytest.raises(ValueError, match=f"study 'a' has the weight {weight!r}"):
            open_corpus(corpus, weights={"a": weight})
    with pytest.raises(ValueError, match="there are no cells to train on"):
        open_corpus({"a": corpus["a"]}, weights={"a": 0})


def with_obs(adata: ad.AnnData, **columns: Any) -> ad.AnnData:
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


@pytest.mark.parametrize("stored", [False, True])
def test_labels_and_batches(make, tmp_path: Path, caplog, stored: bool):
    kinds = pd.Categorical(["T", "B", None, "T"] * 5)
    adata = with_obs(make(["A1", "B1"]), kind=kinds, lab=[1, 2] * 10)
    item = write(adata, tmp_path / "a.h5ad") if stored else adata
    (one,) = open_corpus(item, labels_key="kind", batch_key="lab")
    assert one.labels.tolist() == ["T", "B", None, "T"] * 5
    assert one.batches.tolist() == ["1", "2"] * 10
    assert f"cells have no label in .obs['kind'] and are shown without one ({one.name}: 5 of 20)" in caplog.text
    assert open_corpus(item)[0].labels is open_corpus(item)[0].batches is None


def test_missing_labels_are_said_once(make, caplog):
    corpus = {n: with_obs(make(["A1"], k), kind=["T", None] * (k // 2)) for n, k in (("a", 20), ("b", 10))}
    open_corpus(corpus, labels_key="kind")
    said = [record.getMessage() for record in caplog.records if "no label" in record.getMessage()]
    assert len(said) == 1
    assert "(a: 10 of 20, b: 5 of 10)" in said[0]
    caplog.clear()
    open_corpus({"a": with_obs(make(["A1"]), kind="T")}, labels_key="kind")
    assert caplog.text == ""


def test_batches_of_several_studies_are_batches_of_their_own(make, caplog):
    corpus = {n: with_obs(make(["A1"]), lab=["1"] * 19 + ["2"]) for n in ("a", "b")}
    found = open_corpus(corpus, batch_key="lab")
    assert [sorted(set(s.batches)) for s in found] == [["a:1", "a:2"], ["b:1", "b:2"]]
    assert "batches of a single cell, from which nothing about them can be learned: a:2, b:2" in caplog.text


def test_cells_without_a_batch(make):
    adata = with_obs(make(["A1"]), lab=pd.Categorical(["1", None] * 10))
    with pytest.raises(ValueError, match=r"study1: 10 cells have no 'lab'; drop them, or name their batch"):
        open_corpus(adata, batch_key="lab")


def test_an_absent_column(make, caplog):
    corpus = {"a": with_obs(make(["A1"]), kind="T"), "b": with_obs(make(["A1"]), other="T")}
    with pytest.raises(KeyError, match=r"b: no column 'kind' in \.obs \(there: 'other'\)"):
        open_corpus(corpus, labels_key="kind")
    assert [s.name for s in open_corpus(corpus, labels_key="kind", skip_bad=True)] == ["a"]
    assert "'b' is left out: b: no column 'kind' in .obs (there: 'other')" in caplog.text


# ---- bad ones


def test_bad_files_stop_it_or_are_left_out(folder: Path, caplog):
    whole = (folder / "b.h5ad").read_bytes()
    (folder / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.h5ad").write_bytes(b"")
    (folder / "text.h5ad").write_text("no data")
    (folder / "no.zarr").mkdir()
    with pytest.raises(ValueError, match=r"cut\.h5ad is truncated"):
        open_corpus(folder)
    found = open_corpus(folder, skip_bad=True)
    assert sorted(s.name for s in found) == ["a", "b", "c"]
    for name, why in (
        ("cut", "is truncated"),
        ("empty", "is an empty"),
        ("text", "is no AnnData"),
        ("no", "is no AnnD"),
    ):
        assert len([r for r in caplog.messages if r.startswith(f"'{name}' is left out: ") and why in r]) == 1
    for path in folder.rglob("[abc].*"):
        path.rename(path.with_name(f".{path.name}"))
    with pytest.raises(ValueError, match="there are no cells to train on; give AnnData, h5ad files, zarr stores"):
        open_corpus(folder, skip_bad=True)


def test_values_deep_in_a_file(make, tmp_path: Path, monkeypatch, caplog):
    """Met by what reads so far; looked for where bad studies are to be left out."""
    monkeypatch.setattr("scgpt_tl.tl._stored._BLOCK", 8)
    adata = make(["A1", "B1"], 40)
    adata.X.data[-1] = -3
    bad = write(adata, tmp_path / "deep.h5ad")
    (found,) = open_corpus(bad)
    with pytest.raises(ValueError, match=r"study 'deep' \(deep\.h5ad\) holds negative or non-finite values"):
        expressed(found)
    assert [s.name for s in open_corpus([bad, make(["A1"])], skip_bad=True)] == ["study2"]
    assert "deep.h5ad holds negative or non-finite values" in caplog.text


def test_what_no_skipping_helps(folder: Path, toy_cells):
    for skip_bad in (False, True):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist; give h5ad files"):
            open_corpus([folder, folder / "nowhere"], skip_bad=skip_bad)
        write(toy_cells(5), folder / "other" / "a.h5ad")
        with pytest.raises(ValueError, match="two files are named 'a': their names tell studies apart, rename one"):
            open_corpus(folder, skip_bad=skip_bad)
        for nothing in ([], {}, folder / "other" / "none"):
            (folder / "other" / "none").mkdir(exist_ok=True)
            with pytest.raises(ValueError, match="there are no cells to train on"):
                open_corpus(nothing, skip_bad=skip_bad)
    with pytest.raises(TypeError, match="study1 is int; AnnData or a path is expected"):
        open_corpus(3)


@pytest.mark.data
def test_real_studies(data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    """Symbols of 2013 and their successors: what the table unites."""
    monkeypatch.setattr(_corpus, "hgnc_table", hgnc_table)
    found = open_corpus([data("pbmc3k/pbmc3k.h5ad"), data("kang_ctrl12k/kang_ctrl12k.h5ad")])
    assert [s.n_cells for s in found] == [2700, 12261]
    assert {s.manifest["table"] for s in found} == {"hgnc_mapping.tsv.gz"}
    shared = set(found[0].genes) & set(found[1].genes)
    assert len(shared) > 1100
    assert "C1orf63" in shared  # all of them call RSRP1 so
    assert {"C11orf48", "SF3B14"} <= shared  # in pbmc3k another column is LBHD1's too
    assert "RSRP1" not in set(found[0].genes) | set(found[1].genes)

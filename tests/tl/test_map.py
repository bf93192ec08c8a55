"""`tl.scgpt_map`: labels and places from a reference; folder or AnnData; the same cells; what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgpt_tl import cli
from scgpt_tl._slots import OWNER
from scgpt_tl.models.model import load_model, with_random_weights
from scgpt_tl.tl._build_reference import build_reference
from scgpt_tl.tl._embed import scgpt_embed
from scgpt_tl.tl._map import scgpt_map
from scgpt_tl.tl._space import Space

MODEL = load_model(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")
GENES = list(MODEL.vocab.genes[:60])


def two_kinds(n: int, *, seed: int = 0, prefix: str = "c", genes: list[str] = GENES) -> ad.AnnData:
    """Cells of two types that express different genes."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 2
    on = np.where(kind[:, None] == np.arange(len(genes))[None] % 2, 0.7, 0.1)
    x = (1 + rng.poisson(4, on.shape)) * (rng.random(on.shape) < on)
    x[:, 0] += x.sum(axis=1) == 0
    obs = pd.DataFrame({"kind": np.array(["odd", "even"])[kind]}, index=[f"{prefix}{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs, pd.DataFrame(index=genes))


def place(query: ad.AnnData, reference: Any, **options: Any) -> Any:
    model = {} if isinstance(reference, (str, Path)) else {"model": MODEL}
    if isinstance(reference, ad.AnnData):
        model |= {"labels_key": "kind"}
    return scgpt_map(query, reference, **(model | {"progress": False, "device": "cpu"} | options))


def state(adata: ad.AnnData) -> tuple[list[str], ...]:
    return tuple(sorted(getattr(adata, slot)) for slot in ("obs", "obsm", "varm", "uns"))


@pytest.fixture
def reference() -> ad.AnnData:
    return two_kinds(60, prefix="r")


@pytest.fixture
def query() -> ad.AnnData:
    return two_kinds(24, seed=1)


@pytest.fixture
def folder(reference: ad.AnnData, tmp_path: Path) -> Path:
    return build_reference(reference, out=tmp_path / "ref", labels_key="kind", model=MODEL, progress=False)


# ---- what is written


def test_slots(query: ad.AnnData, reference: ad.AnnData):
    before = reference.copy()
    assert place(query, reference) is None
    label = query.obs["scgpt_mapped"]
    assert label.cat.categories.tolist() == ["even", "odd", "unknown"]
    known = (label != "unknown").to_numpy()
    assert known.mean() > 0.8
    assert (label[known].astype(str) == query.obs["kind"][known]).all()
    assert query.obs["scgpt_mapped_probability"].dtype == query.obs["scgpt_mapped_distance"].dtype == np.float32
    assert query.obs["scgpt_mapped_probability"].between(0.5, 1).all()
    near = query.obsm["scgpt_mapped_neighbors"]
    assert (near.shape, near.dtype) == ((24, 15), np.int64)
    told = query.uns["scgpt_mapped"]
    assert told[OWNER] == "tl.scgpt_map"
    assert told["classes"].tolist() == ["even", "odd"]
    assert told["threshold"].shape == (2,)
    assert (told["n_unknown"], told["n_same"]) == (int((~known).sum()), 0)
    assert {"k", "index", "weights_sha256", "seed", "n_reference"} <= told["params"].keys()
    assert state(reference) == state(before)


def test_the_space_is_that_of_embed(query: ad.AnnData, reference: ad.AnnData, tmp_path: Path):
    alone = query.copy()
    scgpt_embed(alone, model=MODEL, progress=False, device="cpu")
    scgpt_embed(reference, model=MODEL, progress=False, device="cpu")
    place(query, reference)
    np.testing.assert_array_equal(query.obsm["X_scGPT"], alone.obsm["X_scGPT"])
    np.testing.assert_array_equal(query.varm["scGPT"], alone.varm["scGPT"])
    assert query.uns["scgpt"].keys() == alone.uns["scgpt"].keys()
    assert query.uns["scgpt"]["params"] == alone.uns["scgpt"]["params"]
    far = 1 - alone.obsm["X_scGPT"].astype(np.float64) @ reference.obsm["X_scGPT"].astype(np.float64).T
    near = np.argsort(far, axis=1, kind="stable")[:, :15]
    np.testing.assert_array_equal(query.obsm["scgpt_mapped_neighbors"], near)
    five = np.take_along_axis(far, near, axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose(query.obs["scgpt_mapped_distance"], five, atol=1e-6)
    scgpt_embed(query, model=MODEL, progress=False, device="cpu")  # may be made anew
    joint = ad.concat({"r": reference, "q": query}, label="side")
    assert joint.obsm["X_scGPT"].shape == (84, 64)
    query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    np.testing.assert_array_equal(again.uns["scgpt_mapped"]["threshold"], query.uns["scgpt_mapped"]["threshold"])


def test_a_folder_answers_as_the_cells_do(query: ad.AnnData, reference: ad.AnnData, folder: Path):
    other = query.copy()
    place(query, reference)
    place(other, folder)
    pd.testing.assert_frame_equal(query.obs, other.obs)
    np.testing.assert_array_equal(query.obsm["scgpt_mapped_neighbors"], other.obsm["scgpt_mapped_neighbors"])
    assert other.uns["scgpt_mapped"]["params"]["reference"] == str(folder)
    moved = folder.rename(folder.with_name("elsewhere"))
    third = two_kinds(24, seed=1)
    place(third, str(moved))
    pd.testing.assert_frame_equal(third.obs, other.obs)


def test_a_key_of_ones_own_and_a_copy(query: ad.AnnData, folder: Path):
    query.obsm["X_scGPT"] = np.zeros((24, 2))  # somebody else's
    before = state(query)
    made = place(query, folder, key_added="x", copy=True, k=3)
    assert state(query) == before
    assert {"x", "x_probability", "x_distance"} <= set(made.obs)
    assert (made.obsm["x"].shape, made.obsm["x_neighbors"].shape) == ((24, 64), (24, 3))
    assert "scGPT" not in made.varm
    assert made.obsm["X_scGPT"].shape == (24, 2)
    place(made, folder, key_added="x")  # our own: may be written again


def test_places_without_labels(query: ad.AnnData, reference: ad.AnnData):
    place(query, reference)
    place(query, reference, labels_key=None)
    assert "scgpt_mapped" not in query.obs  # nothing of the run before stands beside this one
    assert "scgpt_mapped_probability" not in query.obs
    assert query.obs["scgpt_mapped_distance"].notna().all()
    assert query.uns["scgpt_mapped"]["classes"].size == 0
    assert query.uns["scgpt_mapped"]["threshold"].shape == (1,)


# ---- who votes


def test_cells_without_a_label_are_in_the_space_and_do_not_vote(query: ad.AnnData, reference: ad.AnnData):
    labels = reference.obs["kind"].astype(object).to_numpy()
    labels[:30] = None
    reference.obs["kind"] = labels
    place(query, reference)
    assert query.obsm["scgpt_mapped_neighbors"].min() >= 30


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x / 7, lambda x: x.log1p()])
def test_a_cell_of_the_reference_does_not_vote_for_itself(reference, folder, caplog, change: Callable[[Any], Any]):
    """Under any name, and however its values were scaled."""
    query = reference[:20].copy()
    query.obs_names = [f"x{i}" for i in range(20)]
    query.X = change(query.X)
    with caplog.at_level(logging.WARNING):
        place(query, folder)
    assert "20 of 20 cells of the query have the content of a cell of the reference" in caplog.text
    assert query.uns["scgpt_mapped"]["n_same"] == 20
    assert not (query.obsm["scgpt_mapped_neighbors"] == np.arange(20)[:, None]).any()
    assert (query.obs["scgpt_mapped_distance"] > 1e-4).all()


@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_nor_does_any_copy_of_it(reference: ad.AnnData, tmp_path: Path, index: str):
    """Names are given twice, and mean nothing."""
    if index == "approximate":
        pytest.importorskip("faiss")
    more = two_kinds(60, seed=4, prefix="r")
    more.X = sparse.vstack([reference.X[:20], more.X[20:]], format="csr")
    folder = build_reference(reference, out=tmp_path / "r", labels_key="kind", model=MODEL, progress=False)
    build_reference(more, out=folder, append=True, progress=False)
    query = reference[:20].copy()
    place(query, folder, index=index)
    near = query.obsm["scgpt_mapped_neighbors"]
    assert not (near % 60 == np.arange(20)[:, None]).any()
    assert (near[:, 0] >= 0).all()
    assert (query.obs["scgpt_mapped_distance"] > 1e-4).all()


def test_a_name_alone_is_no_cell(folder: Path):
    query = two_kinds(24, seed=1, prefix="r")
    place(query, folder)
    assert query.uns["scgpt_mapped"]["n_same"] == 0


def test_cells_of_few_genes_are_alike_by_chance(reference: ad.AnnData):
    x = reference.X.toarray()
    x[:6] = np.arange(60) == 1
    reference.X = sparse.csr_matrix(x)
    query = reference[:6].copy()
    place(query, reference, k=5)
    assert query.uns["scgpt_mapped"]["n_same"] == 0
    assert (query.obs["scgpt_mapped_distance"] < 1e-6).all()


def test_fewer_than_k_are_left_for_a_cell(reference: ad.AnnData):
    few = reference[:16].copy()
    query = few[:3].copy()
    place(query, few, k=16)
    assert (query.obsm["scgpt_mapped_neighbors"][:, 15] == -1).all()
    assert query.obs["scgpt_mapped_distance"].between(0, 2).all()


def test_batches_of_cells_in_memory(query: ad.AnnData, reference: ad.AnnData, tmp_path: Path):
    reference.obs["donor"] = np.repeat(["a", "b"], 30)
    options = {"labels_key": "kind", "batch_key": "donor", "model": MODEL, "progress": False}
    folder = build_reference(reference, out=tmp_path / "r", **options)
    other, plain = query.copy(), query.copy()
    place(query, folder)
    place(other, reference, batch_key="donor")
    place(plain, reference)
    told = [adata.uns["scgpt_mapped"]["threshold"] for adata in (query, other, plain)]
    np.testing.assert_array_equal(told[0], told[1])
    assert not np.array_equal(told[0], told[2])
    refused(plain, folder, "batch_key='x': the reference was built with 'donor'", batch_key="x")


def test_categories_are_those_that_occur(query: ad.AnnData, folder: Path):
    odd = query[query.obs["kind"] == "odd"].copy()
    place(odd, folder)
    assert odd.obs["scgpt_mapped"].cat.categories.tolist() == ["odd", "unknown"]
    assert odd.uns["scgpt_mapped"]["classes"].tolist() == ["even", "odd"]


def test_numbers_are_of_the_type_that_the_reference_has(query, reference, tmp_path: Path, caplog):
    options = {"labels_key": "kind", "model": MODEL, "dtype": "bfloat16", "progress": False}
    half = build_reference(reference, out=tmp_path / "r", **options)
    other = query.copy()
    place(query, half)
    assert query.uns["scgpt_mapped"]["params"]["dtype"] == "bfloat16"
    assert not caplog.records
    place(other, half, dtype="float32")
    assert "dtype='float32': the reference's cells were embedded in bfloat16" in caplog.text


def test_cells_unlike_the_reference_and_empty_ones_are_unknown(reference: ad.AnnData):
    query = two_kinds(10, seed=1)
    x = query.X.toarray()
    x[8] = 0
    x[9] = np.arange(60) < 3  # hardly a cell of either kind
    query.X = sparse.csr_matrix(x)
    place(query, reference)
    assert query.obs["scgpt_mapped"].tolist()[8:] == ["unknown", "unknown"]
    far = query.obs["scgpt_mapped_distance"]
    assert far.iloc[9] > 2 * far.iloc[:8].median()


def test_an_answer_does_not_depend_on_other_queries(query: ad.AnnData, folder: Path):
    part = query[5:9].copy()
    place(query, folder)
    place(part, folder)
    np.testing.assert_array_equal(part.obsm["scgpt_mapped_neighbors"], query.obsm["scgpt_mapped_neighbors"][5:9])
    assert part.obs["scgpt_mapped"].tolist() == query.obs["scgpt_mapped"].tolist()[5:9]


def test_an_index(query: ad.AnnData, folder: Path):
    pytest.importorskip("faiss")
    exact = place(query, folder, copy=True)
    place(query, folder, index="approximate")
    assert query.uns["scgpt_mapped"]["params"]["index"] == "faiss"
    assert (query.obsm["scgpt_mapped_neighbors"] == exact.obsm["scgpt_mapped_neighbors"]).mean() > 0.95


def test_a_query_on_disk(query: ad.AnnData, folder: Path, tmp_path: Path):
    query.write_h5ad(tmp_path / "q.h5ad")
    backed = ad.read_h5ad(tmp_path / "q.h5ad", backed="r")
    place(query, folder)
    place(backed, folder)
    pd.testing.assert_frame_equal(backed.obs, query.obs)


# ---- what is refused, with nothing written


def refused(query: ad.AnnData, reference: Any, says: str, error: type = ValueError, **options: Any) -> None:
    before = state(query)
    with pytest.raises(error, match=says):
        place(query, reference, **options)
    assert state(query) == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"labels_key": "kinds"}, KeyError, "labels_key='kinds' is not in .obs.*did you mean 'kind'"),
        ({"k": 61}, ValueError, "k=61: the reference has 60 cells that can vote.*give 1 to 50"),
        ({"k": 0}, ValueError, "k=0"),
        ({"k": 2.5}, ValueError, "k=2.5"),
        ({"index": "exakt"}, ValueError, "index='exakt' is unknown; did you mean 'exact'"),
        ({"layer": "raw"}, ValueError, "layer 'raw' is not in"),
        ({"label_key": "kind"}, TypeError, "did you mean 'labels_key'"),
        ({"model": "no-such-model"}, FileNotFoundError, "neither a folder nor a known name"),
    ],
)
def test_arguments_that_cannot_work(query, reference, options, error, says):
    refused(query, reference, says, error, **options)


def test_references_that_cannot_be_used(query: ad.AnnData, reference: ad.AnnData, tmp_path: Path):
    refused(query, tmp_path / "absent", "is not there", FileNotFoundError)
    (tmp_path / "x.h5ad").write_text("")
    refused(query, tmp_path / "x.h5ad", r"is a file; read it: anndata\.read_h5ad")
    refused(query, 3, "reference is int", TypeError)
    reference.obs["kind"] = "same"
    refused(query, reference, "one type, 'same'; two or more")
    reference.obs["kind"] = None
    refused(query, reference, "no type at all")


def test_a_query_that_cannot_be_placed(query: ad.AnnData, folder: Path):
    refused(query[:0].copy(), folder, r"the data set is empty \(0 cells")
    other = two_kinds(10, genes=list(MODEL.vocab.genes[60:120]))
    refused(other, folder, r"share 0 genes of the model \(query: 60, reference: 60\)")
    query.X = -query.X
    refused(query, folder, "negative values")
    with pytest.raises(TypeError, match="query is str"):
        place("q.h5ad", folder)  # type: ignore[arg-type]


def test_few_genes_in_common_are_said(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        place(two_kinds(10, seed=1)[:, :25].copy(), folder)
    assert "the query and the reference share 25 genes of the model (query: 25, reference: 60)" in caplog.text


@pytest.mark.parametrize("slot", ["obs", "obsm", "uns", "X_scGPT"])
def test_slots_of_others_are_left(query: ad.AnnData, folder: Path, slot: str):
    if slot == "obs":
        query.obs["scgpt_mapped"] = 1
    elif slot == "obsm":
        query.obsm["scgpt_mapped_neighbors"] = np.zeros((24, 2))
    elif slot == "uns":
        query.uns["scgpt_mapped"] = {"mine": 1}
    else:
        query.obsm["X_scGPT"] = np.zeros((24, 2))
    refused(query, folder, "was not written by tl.scgpt_.*another key_added.*overwrite=True")
    place(query, folder, overwrite=True)
    assert query.obsm["X_scGPT"].shape == (24, 64)


def test_a_reference_of_another_model(query: ad.AnnData, folder: Path):
    refused(query, folder, "model='ckpt-random' is another", model=with_random_weights(MODEL))
    refused(query, folder, "labels_key='x': the reference was built with 'kind'", labels_key="x")
    place(query, folder, model=MODEL, labels_key="kind")
    shutil.rmtree(folder / "model")
    with_random_weights(MODEL).save(folder / "model")
    refused(query, folder, "the model of that name here is another")
    shutil.rmtree(folder / "model")
    refused(query, folder, "model", FileNotFoundError)


def test_a_reference_that_was_edited_or_half_copied(query: ad.AnnData, folder: Path):
    head = folder / "reference.json"
    held = json.loads(head.read_text())
    held["about"]["classes"] = ["odd", "even"]
    text = head.read_text()
    head.write_text(json.dumps(held))
    refused(query, folder, "was changed after it was written")
    head.write_text(text.replace('"version": 2', '"version": 9'))
    refused(query, folder, "a newer release is needed")
    head.write_text(text)
    head.write_text(text.replace('"version": 2', '"version": 1'))
    refused(query, folder, "build the reference again")
    head.write_text(text)
    config = folder / "model" / "config.json"
    text = config.read_text()
    held = json.loads(text)
    held["config"]["cls_value"] = 0.0
    config.write_text(json.dumps(held))
    refused(query, folder, "was changed after the model was saved")
    del held["config_sha256"]  # as in a folder older than this hash
    config.write_text(json.dumps(held))
    refused(query, folder, r"embedded with 'ckpt' \(config .*the model of that name here is another")
    config.write_text(text)
    place(query.copy(), folder)
    (folder / "embedding-000.npy").unlink()
    refused(query, folder, "lacks embedding-000.npy", FileNotFoundError)


def test_an_error_at_the_end_writes_nothing(query: ad.AnnData, folder: Path, monkeypatch: pytest.MonkeyPatch):
    from scgpt_tl.tl import _map as module

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # a first time, and over results that stand there
        before = query.copy()
        for where, name in (module, "search"), (module, "label_votes"), (module.Space, "gene_embeddings"):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, die)
                with pytest.raises(KeyboardInterrupt):
                    place(query, folder, k=3)
            assert state(query) == state(before)
            pd.testing.assert_frame_equal(query.obs, before.obs)
        place(query, folder)


def test_a_reference_that_is_replaced_meanwhile(query, reference, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """What was opened is read to its end."""
    from scgpt_tl.tl import _map as module

    other = query.copy()
    place(other, folder)
    swapped = reference[::-1].copy()
    swapped.obs["kind"] = reference.obs["kind"].to_numpy()
    search = module.search

    def late(*args: Any, **options: Any) -> Any:
        build_reference(swapped, out=folder, labels_key="kind", model=MODEL, overwrite=True, progress=False)
        return search(*args, **options)

    monkeypatch.setattr(module, "search", late)
    place(query, folder)
    pd.testing.assert_frame_equal(query.obs, other.obs)


def test_an_embedding_of_another_model_is_left(query: ad.AnnData, folder: Path, caplog: pytest.LogCaptureFixture):
    scgpt_embed(query, model=with_random_weights(MODEL), groupby="kind", progress=False)
    before = query.copy()
    with caplog.at_level(logging.WARNING):
        place(query, folder)
    assert ".obsm['X_scGPT'] has another weights_sha256 than the reference's cells, and is left" in caplog.text
    np.testing.assert_array_equal(query.obsm["X_scGPT"], before.obsm["X_scGPT"])
    assert query.uns["scgpt"]["params"] == before.uns["scgpt"]["params"]
    assert "scGPT_context" in query.varm
    place(query, folder, overwrite=True)
    assert query.uns["scgpt"]["params"]["weights_sha256"] == MODEL.sha256
    assert "scGPT_context" not in query.varm


def test_contexts_of_the_same_run_stay(query: ad.AnnData, folder: Path):
    scgpt_embed(query, model=MODEL, groupby="kind", progress=False)
    place(query, folder)
    assert query.varm["scGPT_context"].shape == (60, 2, 64)
    assert query.uns["scgpt"]["groups"].tolist() == ["even", "odd"]


def test_what_an_earlier_run_did_not_write_stays(query: ad.AnnData, reference: ad.AnnData, tmp_path: Path):
    place(query, reference)
    query.varm["scGPT_context"] = np.ones((60, 2))
    place(query, reference)
    np.testing.assert_array_equal(query.varm["scGPT_context"], 1)
    place(query, reference, labels_key=None)
    query.obs["scgpt_mapped"] = "mine"
    with pytest.raises(ValueError, match=r"^\.obs\['scgpt_mapped'\] was not written by tl\.scgpt_map"):
        place(query, reference)
    del query.obs["scgpt_mapped"]
    scgpt_embed(query, model=MODEL, out=tmp_path / "e.zarr", progress=False, device="cpu")
    query.obsm["X_scGPT"] = np.ones((24, 2))
    with pytest.raises(ValueError, match=r"^\.obsm\['X_scGPT'\] was not written by tl\.scgpt_embed"):
        place(query, reference, labels_key=None)


def test_a_mudata_is_refused(query: ad.AnnData, folder: Path):
    """It has nearly all attributes of an AnnData."""
    several = SimpleNamespace(mod={"rna": query}, obs=query.obs, obsm={}, varm={}, uns={}, obs_names=query.obs_names)
    several.isbacked = several.is_view = False
    for call in (
        lambda: place(several, folder),
        lambda: place(query, several, model=MODEL),
        lambda: build_reference(several, out=folder.with_name("m")),
        lambda: scgpt_embed(several),
    ):
        with pytest.raises(TypeError, match=r"is SimpleNamespace; AnnData is expected \(.*mdata\['rna'\]"):
            call()


# ---- from the command line


def test_commands(query: ad.AnnData, reference: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = ["--model", str(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt"), "--device", "cpu"]
    for name, adata in (("q", query), ("r", reference), ("more", two_kinds(20, seed=2, prefix="m"))):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    q, r, more, ref = (str(tmp_path / name) for name in ("q.h5ad", "r.h5ad", "more.h5ad", "ref"))
    assert cli.main(["build-reference", r, "-o", ref, "--labels-key", "kind", *model]) == 0
    assert cli.main(["map", q, "--reference", ref, "-o", str(tmp_path / "a.h5ad"), "--device", "cpu"]) == 0
    said = ["--reference", r, "--labels-key", "kind", "-o", str(tmp_path / "b.h5ad"), *model]
    assert cli.main(["map", q, *said]) == 0
    a, b = ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_h5ad(tmp_path / "b.h5ad")
    pd.testing.assert_frame_equal(a.obs, b.obs)
    assert {"X_scGPT", "scgpt_mapped_neighbors"} <= set(a.obsm)
    assert {"scgpt", "scgpt_mapped"} <= set(a.uns)
    assert "scGPT" in a.varm
    assert (a.X != query.X).nnz == 0
    assert cli.main(["build-reference", more, "-o", ref, "--append", "--device", "cpu"]) == 0
    out = str(tmp_path / "c.h5ad")
    assert cli.main(["map", q, "--reference", ref, "-o", out, "--key-added", "x", "--k", "5", "--device", "cpu"]) == 0
    c = ad.read_h5ad(out)
    assert c.obsm["x_neighbors"].shape == (24, 5)
    assert c.uns["x"]["params"]["n_reference"] == 80
    assert "cells, " in capsys.readouterr().out
    assert cli.main(["map", q, "--reference", str(tmp_path / "no"), "-o", str(tmp_path / "d.h5ad")]) == 1
    assert "is not there" in capsys.readouterr().err


def need_nothing(name: str, **_: str) -> None:
    raise ImportError(name)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ("", {"k": 0}, "k=0: the reference has 60 cells"),
        ("", {"k": "15"}, "k='15'"),
        ("", {"index": "approximate"}, "faiss"),
        ("genes", {}, "share 0 genes of the model"),
        ("negative", {}, "reference: .*negative"),
    ],
)
def test_a_reference_is_embedded_when_all_else_is_right(query, reference, change, options, said, monkeypatch):
    if change == "genes":
        reference.var_names = MODEL.vocab.genes[60:120]
    if change == "negative":
        reference.X[0, 0] = -1
    monkeypatch.setattr("scgpt_tl.engine.search.find_spec", lambda _: None)
    monkeypatch.setattr("scgpt_tl.engine.search.need", need_nothing)
    monkeypatch.setattr("scgpt_tl.tl._map.reference_of", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises((ValueError, ImportError), match=said):
        place(query, reference, **options)


@pytest.mark.parametrize("key", ["scgpt_pred", "scgpt", "X_scGPT"])
def test_the_places_of_other_functions_are_refused(query, reference, key):
    with pytest.raises(ValueError, match=f"key_added='{key}' is where tl.scgpt_"):
        place(query, reference, key_added=key)


def test_a_file_that_holds_another_models_embedding_alone(query, reference, tmp_path: Path, capsys):
    """As `tl.scgpt_integrate` leaves it, without an embedding of genes: it stays, and what was mapped is written."""
    params = {"weights_sha256": "others", "seed": 0, "max_length": 9, "unit_norm": True}
    query.obsm["X_scGPT"] = np.ones((24, 3), np.float32)
    query.uns["scgpt"] = {OWNER: "tl.scgpt_embed", "params": params}
    query.write_h5ad(tmp_path / "q.h5ad")
    reference.write_h5ad(tmp_path / "r.h5ad")
    model = str(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")
    given = ["--reference", str(tmp_path / "r.h5ad"), "--labels-key", "kind", "--model", model, "--device", "cpu"]
    assert cli.main(["map", str(tmp_path / "q.h5ad"), *given, "-o", str(tmp_path / "out.h5ad")]) == 0
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert found.obsm["X_scGPT"].shape == (24, 3)
    assert "scgpt_mapped" in found.obs


def test_either_side_is_looked_through_once(query, reference, monkeypatch):
    seen, inner = [], Space.check

    def check(self: Space, adata: ad.AnnData, layer: str | None) -> None:
        seen.append(adata)
        inner(self, adata, layer)

    monkeypatch.setattr(Space, "check", check)
    place(query, reference)
    assert [adata is side for adata, side in zip(seen, (query, reference), strict=True)] == [True, True]

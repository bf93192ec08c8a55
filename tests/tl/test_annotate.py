"""`tl.scgpt_annotate`: what it writes, that a saved folder says the same, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgpt_tl
from scgpt_tl import get
from scgpt_tl.engine import predict
from scgpt_tl.engine.annotate import options_for
from scgpt_tl.engine.annotator import METHODS
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.tl import scgpt_annotate, scgpt_pretrain

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

TRAIN = scgpt_tl.TrainConfig(
    epochs=6, cells=16, max_length=60, learning_rate=2e-3, keep="best", device="cpu", progress=False
)
QUICK = replace(TRAIN, epochs=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> Model:
    out = tmp_path_factory.mktemp("base") / "base"
    return scgpt_pretrain(toy_cells(48), out=out, size="nano", train=replace(TRAIN, epochs=1, keep="last"))


@pytest.fixture(scope="module")
def labelled(toy_cells) -> Callable[..., AnnData]:
    def make(n_obs: int = 60, seed: int = 0) -> AnnData:
        cells = toy_cells(n_obs, seed=seed)
        cells.obs["type"] = np.where(np.arange(n_obs) % 2, "odd/one", "even")
        cells.obs_names = [f"{seed}-{name}" for name in cells.obs_names]
        return cells

    return make


@pytest.fixture(scope="module")
def bundle(base: Model, labelled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a probe has learned, and that tests may copy."""
    folder = tmp_path_factory.mktemp("bundle") / "types"
    options: dict[str, Any] = {"labels_key": "type", "model": base, "method": "probe", "train": QUICK}
    scgpt_annotate(labelled(20, 9), reference=labelled(60, 1), save=folder, **options)
    return folder


def annotate(query: AnnData, reference: AnnData, base: Model, **options: Any) -> Any:
    return scgpt_annotate(
        query,
        reference=reference,
        **({"labels_key": "type", "model": base, "method": "probe", "train": QUICK} | options),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_its_folder_says_the_same(base: Model, labelled, tmp_path: Path, method: str):
    query, reference = labelled(40, 2), labelled(120, 1)
    train = replace(TRAIN, held_out=0.1)
    if method in ("head", "lora"):
        train = replace(train, learning_rate=1e-2, epochs=8)
    before = base.sha256
    assert annotate(query, reference, base, method=method, train=train, save=tmp_path / "types") is None
    assert base.sha256 == before
    called = query.obs["scgpt_pred"]
    assert (called == query.obs["type"]).mean() > 0.9
    assert called.cat.categories.tolist() == ["even", "odd/one", "unknown"]
    shares = query.obsm["scgpt_probabilities"]
    assert (shares.dtype, shares.shape) == (np.float32, (40, 2))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(query.obs["scgpt_probability"], shares.max(1))
    found = query.uns["scgpt_pred"]
    assert found["classes"].tolist() == ["even", "odd/one"]
    assert found["params"]["method"] == method
    assert found["metrics"]["n_cells"] == 12
    known = (called != "unknown").to_numpy()
    np.testing.assert_array_equal(found["classes"][shares.argmax(1)][known], called[known])
    card = (tmp_path / "types" / "MODEL_CARD.md").read_text()
    assert f'method "{method}"' in card
    assert "f1_macro" in card
    again = labelled(40, 2)
    scgpt_annotate(again, model=tmp_path / "types")
    np.testing.assert_array_equal(again.obsm["scgpt_probabilities"], shares)
    assert again.obs["scgpt_pred"].tolist() == called.tolist()
    assert (
        scgpt_tl.get.run_params(again, key="scgpt_pred")
        .astype(str)
        .equals(scgpt_tl.get.run_params(query, key="scgpt_pred").astype(str))
    )
    query.write_h5ad(tmp_path / "query.h5ad")  # a slash in a type is none in a key
    assert ad.read_h5ad(tmp_path / "query.h5ad").uns["scgpt_pred"]["metrics"]["n_cells"] == 12


def test_the_history_of_training_can_be_drawn(base: Model, labelled, tmp_path: Path):
    query = labelled(20, 2)
    annotate(query, labelled(60, 1), base, method="finetune", train=replace(QUICK, epochs=2))
    table = scgpt_tl.get.history_df(query, key="scgpt_pred")
    assert len(table) == 2
    query.write_h5ad(tmp_path / "query.h5ad")
    again = scgpt_tl.get.history_df(ad.read_h5ad(tmp_path / "query.h5ad"), key="scgpt_pred")
    assert again[table.columns].to_numpy() == pytest.approx(table.to_numpy())


def test_no_result_depends_on_neighbours_or_order(bundle: Path, labelled):
    cells = labelled(40, 2)
    scgpt_annotate(cells, model=bundle)
    order = np.random.default_rng(0).permutation(40)
    some = labelled(40, 2)[order[:25]].copy()
    scgpt_annotate(some, model=bundle)
    np.testing.assert_allclose(
        some.obsm["scgpt_probabilities"], cells.obsm["scgpt_probabilities"][order[:25]], atol=1e-5
    )


def test_a_key_of_its_own_a_copy_and_the_model(base: Model, labelled):
    query = labelled(20, 2)
    copy, model = annotate(query, labelled(60, 1), base, key_added="mine", copy=True, return_model=True)
    assert "mine" not in query.obs
    assert {"mine", "mine_probability"} <= set(copy.obs)
    assert "mine_probabilities" in copy.obsm
    assert copy.uns["mine"]["scgpt_tl"] == "tl.scgpt_annotate"
    assert model.labels == ("even", "odd/one")
    again = labelled(20, 2)
    here = scgpt_tl.TrainConfig(device="cpu", progress=False)  # says how to compute, and is heard
    scgpt_annotate(again, model=model, key_added="mine", train=here)
    np.testing.assert_array_equal(again.obsm["mine_probabilities"], copy.obsm["mine_probabilities"])


def test_a_layer_is_read_on_both_sides(base: Model, labelled):
    plain, layered = labelled(20, 2), labelled(20, 2)
    reference = labelled(60, 1)
    annotate(plain, reference, base)
    for cells in (layered, reference):
        cells.layers["counts"] = cells.X.copy()
        cells.X = sparse.csr_matrix(cells.shape, dtype=np.float32)
    annotate(layered, reference, base, layer="counts")
    np.testing.assert_array_equal(layered.obsm["scgpt_probabilities"], plain.obsm["scgpt_probabilities"])
    assert layered.uns["scgpt_pred"]["params"]["layer"] == "counts"


def test_genes_that_it_did_not_learn_from_change_nothing(base: Model, labelled, tmp_path: Path):
    query, narrow = labelled(20, 2), labelled(20, 2)[:, :40].copy()
    annotate(narrow, labelled(60, 1), base, save=tmp_path / "types")
    scgpt_annotate(query, model=tmp_path / "types")
    np.testing.assert_array_equal(query.obsm["scgpt_probabilities"], narrow.obsm["scgpt_probabilities"])
    assert query.uns["scgpt_pred"]["params"]["n_genes"] == 40


def test_files_that_are_read_in_blocks(base: Model, labelled, tmp_path: Path):
    paths = tmp_path / "query.h5ad", tmp_path / "reference.h5ad"
    plain, reference = labelled(20, 2), labelled(60, 1)
    plain.write_h5ad(paths[0])
    reference.write_h5ad(paths[1])
    annotate(plain, reference, base)
    query, reference = (ad.read_h5ad(path, backed="r") for path in paths)
    annotate(query, reference, base)
    np.testing.assert_array_equal(query.obsm["scgpt_probabilities"], plain.obsm["scgpt_probabilities"])
    for cells in (query, reference):
        cells.file.close()


def test_a_cell_without_a_known_gene_is_unknown(bundle: Path, labelled):
    cells = labelled(20, 2)
    cells.X = sparse.csr_matrix(np.where(np.arange(20)[:, None] == 3, 0, cells.X.toarray()))
    scgpt_annotate(cells, model=bundle)
    assert cells.obs["scgpt_pred"].iloc[3] == "unknown"


def test_fine_tuning_starts_from_the_probe(base: Model, labelled):
    """Without a step it says what the probe of the same cells says, up to the temperature."""
    still = replace(QUICK, learning_rate=1e-12)
    called = {}
    for method in ("probe", "finetune"):
        query = labelled(40, 2)
        annotate(query, labelled(120, 1), base, method=method, train=still)
        called[method] = query.obsm["scgpt_probabilities"].argmax(1)
    assert (called["probe"] == called["finetune"]).mean() > 0.9


# ---- saved folders


def test_training_that_was_cut_off_goes_on(base: Model, labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from scgpt_tl.engine.train import _Fit

    how = {"method": "finetune", "train": replace(TRAIN, epochs=2, save_every=1)}
    reference, whole, broken = labelled(60, 1), labelled(20, 2), labelled(20, 2)
    annotate(whole, reference, base, save=tmp_path / "whole", **how)
    step, seen = _Fit._step, []

    def stops(self: Any, *given: Any) -> Any:
        seen.append(0)
        if len(seen) == 6:
            raise MemoryError
        return step(self, *given)

    monkeypatch.setattr(_Fit, "_step", stops)
    with pytest.raises(MemoryError):
        annotate(broken, reference, base, save=tmp_path / "broken", **how)
    assert "scgpt_pred" not in broken.obs
    assert not (tmp_path / "broken").exists()
    at = len(seen)
    annotate(broken, reference, base, save=tmp_path / "broken", **how)
    assert len(seen) < at + 8  # not from the start
    np.testing.assert_array_equal(broken.obsm["scgpt_probabilities"], whole.obsm["scgpt_probabilities"])


def test_the_same_call_loads_what_it_has_made(base: Model, labelled, tmp_path: Path):
    for method in ("finetune", "knn"):
        folder, reference = tmp_path / method, labelled(60, 1)
        annotate(labelled(20, 2), reference, base, method=method, save=folder)
        made = (folder / "config.json").stat().st_mtime_ns
        annotate(labelled(20, 2), reference, base, method=method, save=folder)
        assert (folder / "config.json").stat().st_mtime_ns == made
        with pytest.raises(FileExistsError, match=r"save=.*another model"):
            annotate(labelled(20, 2), labelled(60, 5), base, method=method, save=folder)
        annotate(labelled(20, 2), labelled(60, 5), base, method=method, save=folder, overwrite=True)
        assert (folder / "config.json").stat().st_mtime_ns > made


def test_without_save_nothing_is_left(base: Model, labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    annotate(labelled(20, 2), labelled(60, 1), base, method="finetune")
    assert list(tmp_path.iterdir()) == []

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scgpt_tl.tl._annotate.learn", stop)
    with pytest.raises(KeyboardInterrupt, match="save= names no folder"):
        annotate(labelled(20, 2), labelled(60, 1), base, method="finetune")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("provenance.json", lambda d: d["annotation"].update(threshold=0.9), "was changed after it learned"),
        ("provenance.json", lambda d: d["annotation"].update(temperature=-1), "was changed after it learned"),
        ("provenance.json", lambda d: d["annotation"].pop("seed"), "was changed after it learned"),
        ("provenance.json", lambda d: d["annotation"].update(format=9), "has format 9, this scgpt_tl reads 1"),
        ("provenance.json", lambda d: d.pop("annotation"), "give reference= and labels_key= to learn"),
        ("provenance.json", lambda d: d["annotation"].pop("metrics"), "was changed after it learned"),
        ("provenance.json", lambda d: d["annotation"]["reference"].pop("cells"), "was changed after it learned"),
        ("provenance.json", lambda d: d.pop("base"), "was changed after it learned"),
        ("config.json", lambda d: d["labels"].reverse(), "was changed after the model was saved"),
        ("config.json", lambda d: d["config"].update(ties="upper"), "was changed after the model was saved"),
        ("config.json", lambda d: d["config"].update(n_heads=1), "was changed after the model was saved"),
        ("config.json", lambda d: d["config"].update(cls_value=0.0), "was changed after the model was saved"),
        ("config.json", lambda d: d.update(arrays_sha256="0"), "arrays.safetensors has the sha256"),
    ],
)
def test_a_folder_edited_by_hand(bundle: Path, labelled, tmp_path: Path, file: str, change: Any, said: str):
    import shutil

    folder = Path(shutil.copytree(bundle, tmp_path / "edited"))
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    query = labelled(20, 2)
    with pytest.raises(ValueError, match=said):
        scgpt_annotate(query, model=folder)
    assert list(query.obs) == ["type"]


def test_weights_changed_after_learning(bundle: Path, labelled):
    model = load_model(bundle)
    model.network.backbone.genes.table.weight.data += 1
    with pytest.raises(ValueError, match="was changed after it learned"):
        scgpt_annotate(labelled(20, 2), model=model)


def test_genes_renamed_after_learning(bundle: Path, labelled):
    model = load_model(bundle)
    names = model.vocab.genes
    vocab = GeneVocab([*names[1:], names[0]])
    with pytest.raises(ValueError, match="was changed after it learned"):
        scgpt_annotate(labelled(20, 2), model=replace(model, vocab=vocab))


def test_a_place_that_takes_no_model_is_refused_before_any_work(base: Model, labelled, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for save, said in ((tmp_path / "file", "save=.* is a file"), (tmp_path, "save=.* holds files that are no model")):
        with pytest.raises(FileExistsError, match=said):
            annotate(labelled(20, 2), labelled(60, 1), base, save=save, labels_key="none")


def test_another_unfinished_training_is_told_of_in_our_words(base: Model, labelled, tmp_path: Path):
    folder = tmp_path / "types.training"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "last.ckpt").touch()
    with pytest.raises(ValueError, match="another save=, or overwrite=True to start anew"):
        annotate(labelled(20, 2), labelled(60, 1), base, method="head", save=tmp_path / "types")


def test_a_head_that_learns_alone_has_three_layers(base: Model, labelled):
    model = replace(base, config=replace(base.config, n_layers_cls=1))  # as an annotator that is learned from
    made = annotate(labelled(20, 2), labelled(60, 1), model, method="head", return_model=True)
    assert made.config.n_layers_cls == 3


def test_the_share_held_out_and_the_cells_that_are_counted(base: Model, labelled, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(
        "scgpt_tl.tl._annotate.options_for", lambda *given: (seen.append(given[-1]), options_for(*given))[1]
    )
    reference = labelled(120, 1)
    reference.obs.loc[reference.obs_names[:20], "type"] = "unknown"
    for share, n_cells in ((0.02, 2), (0.1, 10), (0.3, 30), (0.0, None)):
        query = labelled(20, 2)
        annotate(query, reference, base, train=replace(QUICK, held_out=share))
        assert query.uns["scgpt_pred"]["metrics"].get("n_cells") == n_cells
    assert seen == [100] * 4


# ---- bad input


def test_slots_of_others_stay(base: Model, labelled):
    query = labelled(20, 2)
    query.obs["scgpt_pred"] = "mine"
    with pytest.raises(ValueError, match=r"was not written by tl\.scgpt_annotate"):
        annotate(query, labelled(60, 1), base)
    annotate(query, labelled(60, 1), base, overwrite=True)
    annotate(query, labelled(60, 1), base)
    assert query.uns["scgpt_pred"]["classes"].tolist() == ["even", "odd/one"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "finetun"}, ValueError, "did you mean 'finetune'"),
        ({"labels_key": "type"}, ValueError, "labels_key says how to learn"),
        ({"save": "x", "train": replace(QUICK, epochs=3)}, ValueError, r"save, train\.epochs, .* says how to learn"),
        ({"key_added": "X_scGPT"}, ValueError, "where tl.scgpt_embed keeps"),
        ({"key_added": "scgpt"}, ValueError, "where tl.scgpt_embed keeps"),
        ({"method": "knn"}, ValueError, "has learned by 'probe'; leave method out"),
        ({"reference": "folder"}, TypeError, "reference is str"),
    ],
)
def test_arguments_that_do_not_go_together(bundle: Path, labelled, options: dict, error: type, said: str):
    with pytest.raises(error, match=said):
        scgpt_annotate(labelled(20, 2), **({"model": bundle} | options))


def test_a_model_that_tells_no_types(base: Model, labelled):
    with pytest.raises(ValueError, match="tells no cell types: give reference="):
        scgpt_annotate(labelled(20, 2), model=base)


def test_no_cells_and_no_anndata(bundle: Path, base: Model, labelled):
    with pytest.raises(ValueError, match="empty"):
        scgpt_annotate(labelled(20, 2)[:0].copy(), model=bundle)
    with pytest.raises(ValueError, match="empty"):
        annotate(labelled(20, 2)[:0].copy(), labelled(60, 1), base)
    with pytest.raises(TypeError, match="query is dict"):
        scgpt_annotate({}, model=bundle)
    mixed = md.MuData({"rna": labelled(20, 2)})
    with pytest.raises(TypeError, match=r"reference is MuData; .*mdata\['rna'\]"):
        annotate(labelled(20, 2), mixed, base)
    with pytest.raises(TypeError, match="query is MuData"):
        scgpt_annotate(mixed, model=bundle)


def test_values_that_cannot_be_read_say_whose(base: Model, labelled):
    good, bad = labelled(60, 1), labelled(60, 1)
    bad.X = -bad.X
    for query, reference, side in ((bad, good, "query: "), (good, bad, "reference: ")):
        with pytest.raises(ValueError, match=f"^{side}"):
            annotate(query, reference, base)


def test_several_processes_are_refused(base: Model, labelled):
    with pytest.raises(ValueError, match="learns in one process"):
        annotate(labelled(20, 2), labelled(60, 1), base, method="head", train=replace(QUICK, devices=2))


def test_nothing_is_written_when_it_fails_late(bundle: Path, labelled, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("scgpt_tl.engine.annotator.embed_rows", fail)
    query = labelled(20, 2)
    with pytest.raises(RuntimeError):
        scgpt_annotate(query, model=bundle)
    assert list(query.obs) == ["type"]
    assert not query.uns
    assert not query.obsm


def test_options_of_memory_are_heard_while_the_reference_is_embedded(base: Model, labelled, monkeypatch):
    seen, inner = [], predict.embed_rows

    def spied(*given: Any, compute: predict.Compute, **options: Any) -> Any:
        seen.append((compute.max_tokens, compute.max_memory))
        return inner(*given, compute=compute, **options)

    monkeypatch.setattr("scgpt_tl.engine.annotator.embed_rows", spied)
    train = {"max_tokens": 400, "max_memory": "1GB", "device": "cpu", "progress": False}
    annotate(labelled(20, 2), labelled(60, 1), base, method="probe", train=train)
    assert set(seen) == {(400, "1GB")}
    assert len(seen) >= 2


def test_the_name_of_the_default_is_the_default(base: Model, labelled):
    query, named = labelled(20, 2), labelled(20, 2)
    annotate(query, labelled(60, 1), base, method="knn")
    annotate(named, labelled(60, 1), base, method="knn", key_added="scgpt_pred")
    assert [sorted(getattr(named, slot)) for slot in ("obs", "obsm", "uns")] == [
        sorted(getattr(query, slot)) for slot in ("obs", "obsm", "uns")
    ]


def test_read_back_from_zarr(base: Model, labelled, tmp_path: Path):
    query = labelled(20, 2)
    annotate(query, labelled(60, 1), base, method="knn")
    query.write_zarr(tmp_path / "q.zarr")
    pd.testing.assert_frame_equal(get.annotation_df(ad.read_zarr(tmp_path / "q.zarr")), get.annotation_df(query))

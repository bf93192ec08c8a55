"""`tl.scgpt_integrate`: batches brought together, kept, applied, refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
from anndata import ImplicitModificationWarning
from scipy import sparse

import scgpt_tl
from scgpt_tl.models.model import load_model
from scgpt_tl.tl import scgpt_embed, scgpt_finetune, scgpt_integrate, scgpt_pretrain

if TYPE_CHECKING:
    from scgpt_tl.models.model import Model

TRAIN = scgpt_tl.TrainConfig(epochs=2, cells=24, max_length=60, held_out=0.1, device="cpu", progress=False)
PAPER = replace(TRAIN, zeros=True, keep="best", learning_rate=1e-4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> Model:
    out = tmp_path_factory.mktemp("base") / "base"
    return scgpt_pretrain(toy_cells(48), out=out, size="nano", train=replace(TRAIN, epochs=1))


@pytest.fixture
def cells(toy_cells) -> ad.AnnData:
    return batched(toy_cells(72, seed=3))


@pytest.fixture(scope="module", params=["auto", "paper"])
def made(request, tmp_path_factory, toy_cells, base) -> tuple[ad.AnnData, Path]:
    """Integrated cells, and the folder that learned on them."""
    out = tmp_path_factory.mktemp("made") / request.param
    adata = batched(toy_cells(72, seed=3))
    integrate(adata, base, preset=request.param, save=out)
    return adata, out


def batched(adata: ad.AnnData, names: tuple[str, ...] = ("x", "y", "z")) -> ad.AnnData:
    """Two types of cells in batches that differ in depth."""
    adata.obs["lab"] = np.array(names)[np.arange(adata.n_obs) % len(names)]
    adata.obs["type"] = np.where(np.arange(adata.n_obs) % 2, "odd", "even")
    return adata


def integrate(adata: ad.AnnData, model: Model | Path | str, **options):
    """With few epochs, unless it is to be applied."""
    if isinstance(model, scgpt_tl.models.Model) and "integration" not in model.provenance:
        options = {"train": PAPER if options.get("preset") == "paper" else TRAIN} | options
    return scgpt_integrate(adata, **{"model": model, "batch_key": "lab"} | options)


def slots(adata: ad.AnnData) -> tuple[list[str], ...]:
    return tuple(sorted(part) for part in (adata.obs, adata.obsm, adata.varm, adata.uns))


def test_what_is_written(made, base):
    adata, out = made
    assert sorted(adata.obsm) == ["X_scGPT", "X_scGPT_integrated"]
    found = adata.obsm["X_scGPT_integrated"]
    assert found.shape == (72, 64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    told = adata.uns["scgpt_integrated"]
    assert told["batches"].tolist() == ["x", "y", "z"]
    assert sorted(told["genes"]) == sorted(adata.var_names)
    assert told["params"]["preset"] == out.name
    assert told["params"]["base_sha256"] == base.sha256
    assert told["params"]["zeros"] == (out.name == "paper")
    assert len(told["history"]["train"]["loss"]) == 2
    assert {"overlap", "mixing_before", "mixing_after"} == set(told["checks"])
    history = scgpt_tl.get.history_df(adata, key="scgpt_integrated")
    assert "train/gep" in history


def test_the_zero_shot_embedding_is_that_of_embed(made, base):
    adata, _ = made
    expected = adata.copy()
    for key in list(expected.obsm):
        del expected.obsm[key]
    expected.uns.clear()
    scgpt_embed(expected, model=base, progress=False)
    np.testing.assert_allclose(adata.obsm["X_scGPT"], expected.obsm["X_scGPT"], atol=1e-6)
    assert scgpt_tl.get.run_params(adata).loc["params.weights_sha256", "value"] == base.sha256


def test_a_result_goes_through_a_file(made, tmp_path):
    adata, _ = made
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(again.obsm["X_scGPT_integrated"], adata.obsm["X_scGPT_integrated"])
    assert again.uns["scgpt_integrated"]["params"]["preset"] == adata.uns["scgpt_integrated"]["params"]["preset"]


def test_a_folder_embeds_the_same_cells_the_same(made):
    """Whole, some of them, in another order, and with other cells beside."""
    adata, out = made
    expected = adata.obsm["X_scGPT_integrated"]
    for rows in (np.arange(72), np.array([5]), np.arange(72)[::-3]):
        some = ad.AnnData(adata.X[rows], obs=adata.obs.iloc[rows], var=adata.var)
        integrate(some, out)
        np.testing.assert_allclose(some.obsm["X_scGPT_integrated"], expected[rows], atol=1e-5)
        assert "X_scGPT" not in some.obsm  # its model is not at hand


def test_paper_keeps_batches_apart_in_statistics(base, cells, caplog: pytest.LogCaptureFixture):
    model = integrate(cells, base, preset="paper", return_model=True)
    assert "small models have preset='auto'" in caplog.text
    assert model.config.input_norm == "domain"
    assert set(model.provenance["recipe"]["weights"]) == {"gep", "gep_zeros", "gepc", "gepc_zeros", "ecs", "dar"}
    assert model.provenance["train"]["zeros"]
    other = cells.copy()
    other.obs["lab"] = np.roll(other.obs["lab"].to_numpy(), 1)
    integrate(other, model)
    assert np.abs(other.obsm["X_scGPT_integrated"] - cells.obsm["X_scGPT_integrated"]).max() > 1e-4


def test_genes_of_a_batch_alone_are_not_read(base, cells):
    mixed = cells.copy()
    mixed.X = mixed.X.toarray()
    mixed.X[(mixed.obs["lab"] == "x").to_numpy(), :7] = 0
    integrate(mixed, base)
    assert set(mixed.uns["scgpt_integrated"]["genes"]) == set(mixed.var_names[7:])


def test_the_most_variable_genes_are_read(base, cells):
    integrate(cells, base, n_genes=24)
    assert len(cells.uns["scgpt_integrated"]["genes"]) == 24


def test_labels_are_checked_and_teach_nothing(base, cells, caplog):
    plain = cells.copy()
    integrate(plain, base)
    cells.obs.loc[cells.obs_names[:5], "type"] = None
    with caplog.at_level(logging.WARNING):
        integrate(cells, base, labels_key="type")
    np.testing.assert_array_equal(plain.obsm["X_scGPT_integrated"], cells.obsm["X_scGPT_integrated"])
    checks = cells.uns["scgpt_integrated"]["checks"]
    assert {"nmi_before", "nmi_after", "asw_before", "asw_after"} <= set(checks)
    assert "5 of 72 cells have no label in 'type'" in caplog.text


def test_the_same_call_goes_on_where_it_was(base, cells, tmp_path, monkeypatch):
    from scgpt_tl.engine.train import _Fit

    whole = integrate(cells, base, copy=True)
    steps = iter(range(4))

    def step(self, *args):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return taken(self, *args)

    taken = _Fit._step
    train = replace(TRAIN, save_every=1)
    with monkeypatch.context() as patched:
        patched.setattr(_Fit, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            integrate(cells, base, save=tmp_path / "m", train=train)
    assert not cells.obsm
    assert not cells.uns
    (kept,) = tmp_path.glob("m.kin-*.npz")
    groups = kept.read_bytes()
    with pytest.raises(ValueError, match="unfinished run with other"):
        integrate(cells, base, save=tmp_path / "m", train=replace(train, epochs=3))
    assert kept.read_bytes() == groups
    integrate(cells, base, save=tmp_path / "m", train=train)
    np.testing.assert_array_equal(cells.obsm["X_scGPT_integrated"], whole.obsm["X_scGPT_integrated"])
    before = load_model(tmp_path / "m").sha256
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    integrate(cells, base, save=tmp_path / "m", train=train)  # it has ended: nothing is trained
    assert load_model(tmp_path / "m").sha256 == before
    with monkeypatch.context() as patched:
        patched.setattr("scgpt_tl.tl._integrate.zero_shot", pytest.fail)  # it is said before any work
        for options in ({"rng": 1}, {"train": replace(train, epochs=3)}, {"n_genes": 30}):
            with pytest.raises(FileExistsError, match=r"save=.*holds another model, 'm'"):
                integrate(cells, base, **{"save": tmp_path / "m", "train": train} | options)
    (tmp_path / "new.training").mkdir()
    (tmp_path / "new.training" / "run.json").write_text("{}")
    (tmp_path / "new.training" / "last.ckpt").touch()
    with pytest.raises(ValueError, match="another save=, or overwrite=True to start anew"):
        integrate(cells, base, save=tmp_path / "new", train=train)
    base.save(tmp_path / "m", overwrite=True)
    with pytest.raises(FileExistsError, match=r"save=.*holds another model, 'base'"):
        integrate(cells, base, save=tmp_path / "m", train=train)
    integrate(cells, base, save=tmp_path / "m", train=train, overwrite=True)
    assert load_model(tmp_path / "m").sha256 == before


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"batch_key": "labs"}, KeyError, r"batch_key='labs' is not in \.obs; did you mean 'lab'"),
        ({"batch_key": "one"}, ValueError, "has one batch, 'same': two or more"),
        ({"batch_key": "missing"}, ValueError, "3 cells have no batch in 'missing'"),
        ({"batch_key": "measured"}, ValueError, "holds numbers with fractions"),
        ({"batch_key": "barcode"}, ValueError, "has 72 batches for 72 cells: is it the right column"),
        ({"labels_key": "tipe"}, KeyError, r"labels_key='tipe' is not in \.obs; did you mean 'type'"),
        ({"labels_key": "one"}, ValueError, "fewer than two cell types"),
        ({"labels_key": "measured"}, ValueError, "labels_key='measured' holds numbers with fractions"),
        ({"labels_key": "barcode"}, ValueError, "has 72 cell types on 72 cells: there is nothing to check"),
        ({"labels_key": "two"}, ValueError, "has 2 cell types on 2 cells"),
        ({"key_added": "a/b"}, ValueError, r"\.obsm\['a/b'\] cannot be kept.*give another key_added"),
        ({"key_added": "X_scGPT", "overwrite": True}, ValueError, "is where tl.scgpt_embed keeps"),
        ({"preset": "papr"}, ValueError, "preset='papr' is unknown; did you mean 'paper'"),
        ({"new_batches": "adopt"}, ValueError, "new_batches='adopt' is unknown; did you mean 'adapt'"),
        ({"n_genes": 3}, ValueError, "n_genes=3: at least 20"),
        ({"layer": "raw"}, ValueError, "layer 'raw' is not in .layers"),
        ({"train": replace(TRAIN, devices=2)}, ValueError, "integration learns in one process"),
    ],
)
def test_what_cannot_work_is_said_first(base, cells, options, error, said):
    cells.obs["one"] = "same"
    cells.obs["measured"] = np.linspace(0, 1.5, 72)
    cells.obs["barcode"] = cells.obs_names
    cells.obs["two"] = ["a", "b", *[None] * 70]
    cells.obs["missing"] = cells.obs["lab"].astype(object)
    cells.obs.loc[cells.obs_names[:3], "missing"] = None
    before = slots(cells)
    with pytest.raises(error, match=said):
        integrate(cells, base, **options)
    assert slots(cells) == before


def test_numbers_name_batches(base, cells, caplog):
    cells.obs["run"] = np.arange(72) % 2
    with caplog.at_level(logging.WARNING):
        integrate(cells, base, batch_key="run")
    assert "holds numbers: they are taken as names" in caplog.text
    assert cells.uns["scgpt_integrated"]["batches"].tolist() == ["0", "1"]


@pytest.mark.parametrize("preset", ["auto", "paper"])
def test_a_batch_of_one_cell(base, cells, caplog, preset):
    cells.obs["lab"] = ["alone"] + ["x", "y"] * 35 + ["x"]
    with caplog.at_level(logging.WARNING):
        integrate(cells, base, preset=preset)
    assert "batches of a single cell, from which nothing about them can be learned: alone" in caplog.text
    assert np.isfinite(cells.obsm["X_scGPT_integrated"]).all()
    assert len(cells.uns["scgpt_integrated"]["genes"]) == 50


def test_too_few_common_genes(base, cells):
    cells.X = cells.X.toarray()
    cells.X[(cells.obs["lab"] == "x").to_numpy(), :40] = 0
    with pytest.raises(ValueError, match="10 of the model's genes are expressed in every batch"):
        integrate(cells, base)


def test_a_slot_of_another_stays(base, cells):
    cells.obsm["X_scGPT_integrated"] = np.zeros((72, 2))
    with pytest.raises(ValueError, match=r"was not written by tl\.scgpt_integrate: give another key_added"):
        integrate(cells, base)
    integrate(cells, base, key_added="mine")
    assert cells.obsm["mine"].shape == (72, 64)
    assert cells.obsm["X_scGPT_integrated"].shape == (72, 2)
    integrate(cells, base, overwrite=True)
    assert cells.obsm["X_scGPT_integrated"].shape == (72, 64)


def test_what_lies_in_obsm_teaches_nothing(base, cells):
    """An embedding of these weights, but of other cells."""
    expected = integrate(cells, base, copy=True)
    scgpt_embed(cells, model=base, progress=False)
    cells.obsm["X_scGPT"] = stale = np.random.default_rng(0).permutation(cells.obsm["X_scGPT"])
    integrate(cells, base)
    np.testing.assert_array_equal(cells.obsm["X_scGPT_integrated"], expected.obsm["X_scGPT_integrated"])
    assert cells.uns["scgpt_integrated"]["checks"] == expected.uns["scgpt_integrated"]["checks"]
    np.testing.assert_array_equal(cells.obsm["X_scGPT"], stale)


def test_another_zero_shot_embedding_stays(base, cells):
    cells.obsm["X_scGPT"] = np.ones((72, 3))
    integrate(cells, base)
    assert cells.obsm["X_scGPT"].shape == (72, 3)
    assert "scgpt" not in cells.uns


def test_a_model_that_has_learned_takes_no_lesson(made, capsys):
    adata, out = made
    other = "paper" if out.name == "auto" else None
    train = scgpt_tl.TrainConfig(epochs=2, device="cpu", progress=False)
    with pytest.raises(ValueError, match=r"^train.epochs, save says how to learn, and model .* has learned to int"):
        integrate(adata, out, train=train, save=out.parent / "x")
    with pytest.raises(ValueError, match=r"^n_genes says how to learn"):
        integrate(adata, out, n_genes=30)
    if other:
        with pytest.raises(ValueError, match="preset says how to learn"):
            integrate(adata, out, preset=other)
    before = adata.obsm["X_scGPT_integrated"]
    capsys.readouterr()
    again = integrate(adata, out, train=scgpt_tl.TrainConfig(device="cpu", progress=False), copy=True)
    assert capsys.readouterr().err == ""
    np.testing.assert_allclose(again.obsm["X_scGPT_integrated"], before, atol=1e-5)


def test_a_place_that_cannot_be_learned_in_is_said_first(cells, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    for name, said in (("file", "is a file"), ("folder", "holds files that are no model of scgpt_tl")):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match=rf"save='.*{name}' {said}"):
                integrate(cells, "no such model", save=tmp_path / name, overwrite=overwrite)


@pytest.mark.parametrize("preset", ["auto", "paper"])
def test_cells_without_a_gene_are_counted(base, cells, caplog, preset):
    cells.X = cells.X.toarray()
    cells.X[3] = 0
    with caplog.at_level(logging.WARNING):
        integrate(cells, base, preset=preset)
    assert cells.uns["scgpt_integrated"]["n_empty"] == 1
    assert "1 of 72 cells express none of the 50 genes that are read" in caplog.text
    assert np.isfinite(cells.obsm["X_scGPT_integrated"]).all()


def test_models_of_other_tasks(base, cells, tmp_path):
    told = replace(base, provenance={**base.provenance, "annotation": {}})
    with pytest.raises(ValueError, match="tells cell types"):
        integrate(cells, told)
    tuned = scgpt_finetune(
        cells, model=base, out=tmp_path / "m", recipe="integration", batch_key="lab", train=replace(TRAIN, epochs=1)
    )
    with pytest.raises(ValueError, match=r"is no folder that tl\.scgpt_integrate"):
        integrate(cells, tuned, train=None)
    with pytest.raises(ValueError, match=r"use tl\.scgpt_integrate"):
        scgpt_embed(cells, model=tuned, progress=False)


def test_a_changed_folder(made, cells):
    model = load_model(made[1])
    kept = model.provenance["integration"]
    for change, said in (({"genes": kept["genes"][:-1]}, "does not belong to"), ({"format": 9}, "has format 9")):
        changed = replace(model, provenance={**model.provenance, "integration": {**kept, **change}})
        with pytest.raises(ValueError, match=said):
            integrate(cells, changed)
    for change in ({"ties": "upper"}, {"n_bins": 7}, {"cls_value": 1.0}, {"max_length": 9}):
        with pytest.raises(ValueError, match="does not belong to its weights, config"):
            integrate(cells, replace(model, config=replace(model.config, **change)))


def test_few_genes_of_the_model(made, cells):
    with pytest.raises(
        ValueError, match=r"4% of the 50 genes that model .* learned from are in the data, at least 20%"
    ):
        integrate(cells[:, :2].copy(), made[1])


def test_backed_and_views(made, base, cells, tmp_path):
    adata, out = made
    expected = adata.obsm["X_scGPT_integrated"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    options = {"train": PAPER if out.name == "paper" else TRAIN, "preset": out.name}
    integrate(backed, base, **options)
    np.testing.assert_allclose(backed.obsm["X_scGPT_integrated"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="view of a backed object"):
        integrate(backed[:20], out)
    more = ad.concat([cells, cells[:9].copy()], index_unique="-")
    view = more[:72]
    with pytest.warns(ImplicitModificationWarning, match="view"):
        integrate(view, base, **options)
    np.testing.assert_allclose(view.obsm["X_scGPT_integrated"], expected, atol=1e-6)


def test_what_is_no_anndata(base):
    with pytest.raises(TypeError, match="AnnData is expected"):
        integrate(np.zeros((3, 3)), base)


def test_a_gene_in_two_variables_is_learned_from_both(base: Model, cells: ad.AnnData, monkeypatch):
    """As it is embedded: the second column, which one batch alone expresses, would not be chosen by itself."""
    more = cells[:, :5].copy()
    more.X = sparse.csr_matrix(more.X.toarray() * (cells.obs["lab"] == "x").to_numpy()[:, None])
    with pytest.warns(UserWarning, match="not unique"):
        both = ad.concat([cells, more], axis=1, merge="first")
    seen = []

    def stop(lesson, **_):
        seen.append(lesson)
        raise KeyboardInterrupt

    monkeypatch.setattr("scgpt_tl.tl._integrate.learn", stop)
    with pytest.raises(KeyboardInterrupt):
        integrate(both, base)
    genes = seen[0].source.genes
    assert genes[-5:] == genes[:5] == cells.var_names[:5].tolist()

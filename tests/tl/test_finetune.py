"""`tl.scgpt_finetune`: from a model and cells to another model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import scgpt_tl
from scgpt_tl.tl._finetune import FINETUNE, scgpt_finetune
from scgpt_tl.tl._pretrain import scgpt_pretrain

if TYPE_CHECKING:
    from scgpt_tl.models.model import Model

TRAIN = scgpt_tl.TrainConfig(epochs=6, cells=16, max_length=60, held_out=0.1, device="cpu", progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> Model:
    out = tmp_path_factory.mktemp("base") / "base"
    return scgpt_pretrain(toy_cells(48), out=out, size="nano", train=replace(TRAIN, epochs=1))


def labelled(cells):
    cells.obs["type"] = np.where(np.arange(cells.n_obs) % 2, "odd", "even")
    cells.obs["lab"] = np.where(np.arange(cells.n_obs) % 3 == 0, "x", "y")
    return cells


def test_annotation_learns_the_labels(base: Model, tmp_path: Path, toy_cells):
    cells = labelled(toy_cells(96, seed=3))
    before = base.sha256
    model = scgpt_finetune(cells, model=base, out=tmp_path / "m", recipe="annotation", labels_key="type", train=TRAIN)
    assert base.sha256 == before
    assert model.labels == ("even", "odd")
    history = model.provenance["history"]
    assert history[-1]["held_out/cls"] < 0.3 < history[0]["train/cls"]
    assert model.provenance["base"]["sha256"] == before
    assert all(name.startswith("heads.cls.") for name in model.provenance["base"]["fresh"])
    assert "fine-tuned by" in (tmp_path / "m" / "MODEL_CARD.md").read_text()


def test_what_cannot_be_asked_is_told_before_files_are_read(tmp_path):
    for wrong, said in (({"recipe": "maskd"}, "masked"), ({"train": {"epoch": 3}}, "epochs")):
        with pytest.raises(ValueError, match=said):
            scgpt_finetune(tmp_path / "none.h5ad", model="pbmc-mini", out=tmp_path / "m", **wrong)


def test_integration_runs_with_batches_mixed(base: Model, tmp_path: Path, toy_cells):
    cells = labelled(toy_cells(48, seed=4))
    train = replace(TRAIN, epochs=2, zeros=True)
    model = scgpt_finetune(cells, model=base, out=tmp_path / "m", recipe="integration", batch_key="lab", train=train)
    assert model.batches == ("x", "y")
    for name in ("gep", "gep_zeros", "gepc", "gepc_zeros", "ecs", "dar"):
        assert np.isfinite(model.provenance["history"][-1][f"train/{name}"])


def test_more_cells_of_one_kind(base: Model, tmp_path: Path, toy_cells):
    cells = toy_cells(48, seed=5)
    model = scgpt_finetune(cells, model=base, out=tmp_path / "m", train=replace(TRAIN, epochs=2, lora=0))
    assert model.provenance["base"]["fresh"] == []
    assert not torch.equal(
        model.network.state_dict()["backbone.genes.table.weight"],
        base.network.state_dict()["backbone.genes.table.weight"],
    )


def test_cells_without_a_label_are_not_asked_for_one(base: Model, tmp_path: Path, toy_cells, caplog):
    cells = labelled(toy_cells(48, seed=6))
    cells.obs["type"] = cells.obs["type"].astype(object)
    cells.obs.loc[cells.obs_names[:10], "type"] = None
    with caplog.at_level(logging.WARNING):
        model = scgpt_finetune(
            cells,
            model=base,
            out=tmp_path / "m",
            recipe="annotation",
            labels_key="type",
            train=replace(TRAIN, epochs=1),
        )
    assert "10 of 48" in caplog.text
    assert model.labels == ("even", "odd")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "annotation"}, "give labels_key= with two or more"),
        ({"recipe": "integration"}, "give batch_key= with two or more"),
        ({"recipe": "anotation"}, "did you mean 'annotation'"),
        ({"recipe": "annotation", "labels_key": "one"}, r"found \['same'\]: give labels_key="),
    ],
)
def test_what_cannot_work_is_said(base: Model, tmp_path: Path, toy_cells, options: dict, said: str):
    cells = labelled(toy_cells(20))
    cells.obs["one"] = "same"
    with pytest.raises(ValueError, match=said):
        scgpt_finetune(cells, model=base, out=tmp_path / "m", train=TRAIN, **options)
    assert not (tmp_path / "m").exists()


def test_no_known_gene(base: Model, tmp_path: Path, toy_cells):
    cells = toy_cells(20)
    cells.var_names = [f"other{i}" for i in range(cells.n_vars)]
    with pytest.raises(ValueError, match=r"0 of 50 genes are in the model's vocabulary"):
        scgpt_finetune(cells, model=base, out=tmp_path / "m", train=TRAIN)


def test_other_labels_are_another_run(base: Model, tmp_path: Path, toy_cells):
    """Of the same names and the same counts."""
    cells = labelled(toy_cells(24, seed=7))
    options = {"model": base, "out": tmp_path / "m", "recipe": "annotation", "labels_key": "type"}
    short = replace(TRAIN, epochs=1)
    first = scgpt_finetune(cells, train=short, **options)
    assert scgpt_finetune(cells, train=short, **options).sha256 == first.sha256
    cells.obs["type"] = cells.obs["type"].to_numpy()[::-1]
    with pytest.raises(FileExistsError, match="holds another model"):
        scgpt_finetune(cells, train=short, **options)


def test_overwrite_replaces_the_model(base: Model, tmp_path: Path, toy_cells):
    cells, short = toy_cells(24, seed=7), replace(TRAIN, epochs=1)
    first = scgpt_finetune(cells, model=base, out=tmp_path / "m", train=short)
    with pytest.raises(FileExistsError, match="holds another model"):
        scgpt_finetune(cells, model=base, out=tmp_path / "m", train=short, rng=1)
    second = scgpt_finetune(cells, model=base, out=tmp_path / "m", train=short, rng=1, overwrite=True)
    assert (second.provenance["seed"], second.sha256 != first.sha256) == (1, True)


def test_a_model_that_knows_batches_asks_for_them(base: Model, tmp_path: Path, toy_cells):
    cells = labelled(toy_cells(24, seed=8))
    short = replace(TRAIN, epochs=1)
    model = scgpt_finetune(cells, model=base, out=tmp_path / "a", recipe="integration", batch_key="lab", train=short)
    with pytest.raises(ValueError, match="give batch_key="):
        scgpt_finetune(cells, model=model, out=tmp_path / "b", recipe="masked", train=short)
    again = scgpt_finetune(cells, model=model, out=tmp_path / "b", recipe="masked", batch_key="lab", train=short)
    assert again.batches == ("x", "y")
    cells.obs["lab"] = cells.obs["lab"].astype(object)
    cells.obs.loc[cells.obs_names[0], "lab"] = None
    with pytest.raises(ValueError, match="1 cells have no 'lab'"):
        scgpt_finetune(cells, model=model, out=tmp_path / "c", recipe="masked", batch_key="lab", train=short)


def test_the_published_options_are_the_default():
    assert (FINETUNE.learning_rate, FINETUNE.schedule, FINETUNE.decay, FINETUNE.keep) == (1e-4, "epoch", 0.9, "best")

"""An existing model trained on: what it keeps, what starts at random, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.finetune import adapt, finetune
from scgpt_tl.engine.recipes import ANNOTATION, GENERATIVE, INTEGRATION, MASKED
from scgpt_tl.engine.study import Source
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model
from scgpt_tl.pp._blocks import open_matrix


@pytest.fixture(scope="module")
def model() -> Model:
    vocab = GeneVocab([f"G{i}" for i in range(20)])
    torch.manual_seed(0)
    config = ModelConfig(len(vocab), vocab.pad_id, vocab.cls_id, d_model=16, n_heads=2, n_layers=2, d_ff=16)
    return Model(config, vocab, Network(config), name="base")


def kept(model: Model, other: Model) -> set[str]:
    ours = other.network.state_dict()
    return {n for n, x in model.network.state_dict().items() if n in ours and torch.equal(x, ours[n])}


def test_the_same_recipe_keeps_every_weight(model: Model):
    made, fresh = adapt(model, MASKED)
    assert fresh == []
    assert kept(model, made) == set(model.network.state_dict())
    assert made.network is not model.network


def test_generation_adds_the_flag_of_unknown_genes(model: Model):
    made, fresh = adapt(model, GENERATIVE)
    assert fresh == ["backbone.flags.weight"]
    assert made.config.flag_unknown
    assert not model.config.flag_unknown


def test_annotation_adds_a_classifier(model: Model):
    made, fresh = adapt(model, ANNOTATION, labels=["a", "b", "c"])
    assert made.labels == ("a", "b", "c")
    assert made.config.n_classes == 3
    assert all(name.startswith("heads.cls.") for name in fresh)
    assert fresh
    assert made.config.cls_value == 0.0


def test_another_set_of_labels_starts_its_scores_anew(model: Model):
    first, _ = adapt(model, ANNOTATION, labels=["a", "b"])
    same, fresh = adapt(first, ANNOTATION, labels=["a", "b"])
    assert fresh == []
    assert kept(first, same) == set(first.network.state_dict())
    _, fresh = adapt(first, ANNOTATION, labels=["a", "c"])  # as many, of another meaning
    assert fresh == ["heads.cls.out.bias", "heads.cls.out.weight"]


def test_integration_builds_what_batches_need(model: Model):
    made, fresh = adapt(model, INTEGRATION, batches=["x", "y"])
    assert made.batches == ("x", "y")
    assert made.config.input_norm == "domain"
    assert len(made.network.backbone.input_norm.norms) == 2
    assert {n.split(".")[1] for n in fresh} == {"input_norm", "dar", "batches", "gep", "gepc"}
    blocks = {n for n in model.network.state_dict() if n.startswith(("backbone.blocks", "backbone.genes"))}
    assert blocks <= kept(model, made)
    _, fresh = adapt(made, INTEGRATION, batches=["x", "z"])
    assert any(n.startswith("backbone.input_norm.") for n in fresh)
    assert any(n.startswith("heads.batches.table.") for n in fresh)


def test_new_weights_leave_the_users_streams_alone(model: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda *_: pytest.fail("a CUDA stream was seeded"))
    before = torch.get_rng_state()
    adapt(model, ANNOTATION, labels=["a", "b"], seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_new_weights_follow_the_seed(model: Model):
    first, second, third = (adapt(model, ANNOTATION, labels=["a", "b"], seed=s)[0] for s in (0, 0, 1))
    assert kept(first, second) == set(first.network.state_dict())
    assert kept(first, third) != set(first.network.state_dict())
    assert replace(first.config) == third.config


TRAIN = TrainConfig(epochs=2, cells=8, max_length=21, held_out=0.5, keep="best", device="cpu", progress=False)


def source(name: str, rows, **columns) -> Source:
    return Source(name, [f"G{i}" for i in range(20)], lambda: open_matrix(rows), rows.shape[0], **columns)


def test_studies_that_validate_do_not_train(model: Model, toy_rows, tmp_path):
    train = source("a", toy_rows(16, 20, seed=1), labels=np.array(["x", "y"] * 8, object))
    other = source("b", toy_rows(6, 20, seed=2), labels=np.array(["y", "z"] * 3, object))
    made = finetune([train], model=model, out=tmp_path / "m", recipe=ANNOTATION, train=TRAIN, validate=[other])
    assert made.labels == ("x", "y", "z")  # of either
    assert made.provenance["validate"][0]["name"] == "b"
    history = made.provenance["history"]
    assert history[-1]["step"] == 2 * 16 / 8  # all cells train, whatever held_out says
    assert all("held_out/loss" in record for record in history)


def test_other_cells_to_validate_on_are_another_run(model: Model, toy_rows, tmp_path):
    labels = np.array(["x", "y"] * 8, object)
    train, other = (source(name, toy_rows(16, 20, seed=1), labels=labels) for name in "ab")
    how = {"model": model, "out": tmp_path / "m", "recipe": ANNOTATION, "train": TRAIN}
    first = finetune([train], validate=[other], **how)
    assert finetune([train], validate=[other], **how).sha256 == first.sha256
    with pytest.raises(FileExistsError):
        finetune([train], validate=[replace(other, labels=labels[::-1].copy())], **how)


def test_weights_for_other_classes_are_refused(model: Model, toy_rows, tmp_path):
    train = source("a", toy_rows(16, 20, seed=1), labels=np.array(["x", "y"] * 8, object))
    recipe = replace(ANNOTATION, class_weights=(1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="3 class_weights for 2 classes"):
        finetune([train], model=model, out=tmp_path / "m", recipe=recipe, train=TRAIN)


def test_a_run_may_begin_from_weights_of_ones_own(model: Model, toy_rows, tmp_path):
    train = source("a", toy_rows(16, 20, seed=1), labels=np.array(["x", "y"] * 8, object))
    seen = []

    def begin(adapted: Model) -> None:
        seen.append(adapted.labels)
        adapted.network.heads.cls.out.bias.data += 7.0

    options = replace(TRAIN, epochs=1, learning_rate=1e-9)
    how = {"model": model, "recipe": ANNOTATION, "train": options, "begin": begin}
    made = finetune([train], out=tmp_path / "m", **how)
    assert seen == [("x", "y")]
    assert bool((made.network.heads.cls.out.bias > 6).all())
    assert "cls" not in model.config.heads
    finetune([train], out=tmp_path / "m", **how)
    other = replace(train, labels=np.array(["x", "z"] * 8, object))
    with pytest.raises(FileExistsError):
        finetune([other], out=tmp_path / "m", **how)
    assert len(seen) == 1  # no work for a run that has ended, or is refused

"""An existing model trained on: what it keeps, what starts at random, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.finetune import adapt
from scgpt_tl.engine.recipes import ANNOTATION, GENERATIVE, INTEGRATION, MASKED
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model


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


def test_new_weights_follow_the_seed(model: Model):
    first, second, third = (adapt(model, ANNOTATION, labels=["a", "b"], seed=s)[0] for s in (0, 0, 1))
    assert kept(first, second) == set(first.network.state_dict())
    assert kept(first, third) != set(first.network.state_dict())
    assert replace(first.config) == third.config

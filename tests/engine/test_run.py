"""A run as a value; see tests/tl/test_pretrain.py for whole runs."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.passes import Learner
from scgpt_tl.engine.pretrain import _card
from scgpt_tl.engine.recipes import GENERATIVE, INTEGRATION
from scgpt_tl.engine.run import Job, _whole, carry_out, check_out, data_card, tokenizer_for
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model


@pytest.fixture
def job(tmp_path: Path, toy_study) -> Job:
    vocab = GeneVocab([f"G{i}" for i in range(60)])
    config = ModelConfig(len(vocab), vocab.pad_id, vocab.cls_id, d_model=16, n_heads=2, n_layers=1, d_ff=16)
    model = Model(config, vocab, Network(config))
    study = toy_study("a", 12, tokenizer_for(model, vocab.genes, TrainConfig(), 0))
    return Job(model, [study], [], GENERATIVE, TrainConfig(), tmp_path / "m", {"data": [{"name": "a"}]}, _card)


def test_what_makes_two_runs_the_same(job: Job):
    assert json.loads(json.dumps(job.run)) == job.run
    same = (
        replace(job, train=TrainConfig(precision="bf16-mixed", device="cpu", progress=False)),
        replace(job, resume=False),
    )
    assert all(other.run == job.run for other in same)
    others = (
        replace(job, seed=1),
        replace(job, recipe=INTEGRATION),
        replace(job, recipe=replace(GENERATIVE, temperature=0.2)),
        replace(job, train=TrainConfig(epochs=11)),
        replace(job, told={"data": []}),
    )
    assert all(other.run != job.run for other in others)


def test_it_travels_to_another_process(job: Job):
    other = pickle.loads(pickle.dumps(job))
    assert other.run == job.run
    np.testing.assert_array_equal(
        other.studies[0].take(np.arange(5)).toarray(), job.studies[0].take(np.arange(5)).toarray()
    )


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["file", "link", "full", "file/m", "marked"])
def test_a_bad_place_is_refused_before_the_first_step(job: Job, monkeypatch, place: str, overwrite: bool):
    monkeypatch.setattr("scgpt_tl.engine.run.fit", lambda *_: pytest.fail("trained"))
    folder = job.out.parent
    (folder / "file").write_text("precious")
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("precious")
    (folder / "marked.training").touch()
    before = sorted(folder.rglob("*"))
    job = replace(job, out=folder / place, overwrite=overwrite, train=TrainConfig(device="cpu"))
    with pytest.raises((FileExistsError, NotADirectoryError), match=r"; give a|give another") as told:
        carry_out(job)
    with pytest.raises(type(told.value)):
        check_out(str(folder / place))
    assert sorted(folder.rglob("*")) == before


def test_weights_in_shards_are_taken_from_the_checkpoint(job: Job):
    job = replace(job, train=TrainConfig(strategy="fsdp"))
    job.folder.mkdir()
    torch.save({"module": Learner(job.model.network, GENERATIVE).state_dict()}, job.folder / "last.ckpt")
    whole = _whole(job)
    assert whole is not job.model.network
    for name, tensor in job.model.network.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor)
    assert not whole.training


def test_the_card_tells_data_and_losses(job: Job):
    history = [
        {"epoch": 0, "train/loss": 0.5, "held_out/loss": 0.25, "train/gep": 0.75, "held_out/gep": 1},
        {"epoch": 1, "train/loss": 0.125},
    ]
    told = {**job.run, "data": [{"name": "a", "cells": 1200, "genes": 60}], "history": history, "size": "nano"}
    card = data_card(told)
    assert "- a: 1,200 cells, 60 genes" in card
    assert "| epoch | loss | gep |\n| --- | --- | --- |\n| 1 | 0.5000 / 0.2500 | 0.7500 / 1.0000 |" in card
    assert "| 2 | 0.1250 / - | - / - |" in card
    assert "on 1,200 unlabelled cells" in _card("m", told)

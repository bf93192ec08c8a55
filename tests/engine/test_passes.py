"""A step cut into passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgpt_tl._random import name_keys
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine import devices
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.passes import Learner, Work, budget, cut, seed_dropout
from scgpt_tl.engine.recipes import ANNOTATION, GENERATIVE, MASKED, Counts, hide, losses
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from scgpt_tl.tokens.corrupt import Minibatch

KEYS = name_keys(f"gene{i}" for i in range(62))


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return devices.fabric_for(TrainConfig(device="cpu"), Path())


@pytest.fixture(scope="module")
def minibatch(toy_rows) -> Minibatch:
    block = Tokenizer(np.arange(60), KEYS, 60)(toy_rows(10, 60, seed=4))
    return hide(MASKED, block.batch(np.arange(10)), block.keys, KEYS, ratio=0.4, mask_value=-1.0)


def network() -> Network:
    torch.manual_seed(0)
    return Network(ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0))


@pytest.mark.parametrize(
    ("tokens", "at_least", "n"), [(None, 1, 1), (None, 4, 4), (60, 1, None), (1, 1, 10), (None, 99, 10)]
)
def test_cells_are_shared_out_and_no_pass_is_empty(fabric, minibatch, tokens, at_least, n):
    parts = cut(fabric, minibatch, step=7, tokens=tokens, at_least=at_least)
    if n is None:
        assert all(work.minibatch.cells.n_tokens <= tokens for work in parts)
        n = len(parts)
    assert len(parts) == n
    assert all(work.minibatch.n_cells > 0 for work in parts)
    assert torch.equal(torch.cat([work.minibatch.target for work in parts]), minibatch.target)
    assert {work.counts for work in parts} == {Counts.of(minibatch)}
    assert {work.step for work in parts} == {7}
    assert sum(work.share for work in parts) == pytest.approx(1)


def test_a_learner_is_the_losses_of_its_recipe(minibatch):
    net = network()
    expected = losses(net, minibatch, MASKED)
    total, parts = Learner(net, MASKED)(Work(minibatch, Counts.of(minibatch), step=0, share=1.0))
    assert torch.equal(total, expected.total)
    assert set(parts) == set(expected.parts)


def test_dropout_follows_seed_step_and_pass(fabric):
    def drawn(*place: int) -> float:
        seed_dropout(fabric, *place)
        return float(torch.rand(()))

    assert drawn(0, 3, 1) == drawn(0, 3, 1)
    assert len({drawn(*place) for place in ((0, 3, 1), (1, 3, 1), (0, 4, 1), (0, 3, 2))}) == 4


def test_memory_becomes_tokens():
    net, train = network(), TrainConfig(max_memory="1MB")
    assert budget(net, TrainConfig(), MASKED) is None
    assert budget(net, TrainConfig(max_tokens=50), MASKED) == 50
    one = budget(net, train, MASKED)
    assert budget(net, replace(train, max_memory="2MB"), MASKED) in (2 * one, 2 * one + 1)
    assert budget(net, train, GENERATIVE) in (one // 2, one // 2 + 1)  # the cell-prompt pass has a graph of its own
    assert budget(net, replace(train, max_tokens=5), ANNOTATION) == 5
    assert budget(net, replace(train, max_memory=1), MASKED) == 1

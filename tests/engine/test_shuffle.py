"""Shuffled weights: the same entries in other places, the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgpt_tl.engine.shuffle import _permute, shuffled
from scgpt_tl.models.model import load_model

if TYPE_CHECKING:
    from scgpt_tl.core.scgpt import Network


@pytest.fixture
def network(tiny: Path) -> Network:
    return load_model(tiny).network


def test_each_tensor_keeps_its_entries_and_none_its_order(network):
    before = {name: p.clone() for name, p in network.named_parameters()}
    found = shuffled(network, 0)
    assert not found.training
    for name, parameter in found.named_parameters():
        assert torch.equal(network.get_parameter(name), before[name])
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
        if before[name].unique().numel() > 3:
            assert (parameter == before[name]).float().mean() < 0.2
    for name, buffer in found.named_buffers():
        assert torch.equal(buffer, network.get_buffer(name))


def test_the_seed_and_the_name_say_where_entries_go(network):
    first, again, other = (shuffled(network, seed) for seed in (0, 0, 1))
    name = "backbone.blocks.0.up.weight"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    same_shape = "backbone.blocks.1.up.weight"
    with torch.no_grad():
        network.get_parameter(same_shape).copy_(network.get_parameter(name))
    twins = shuffled(network, 0)
    assert not torch.equal(twins.get_parameter(name), twins.get_parameter(same_shape))


def test_types_and_devices_stay(network):
    half = shuffled(network.bfloat16(), 0)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_every_order_comes_up_equally_often():
    seen = np.zeros((4, 4), int)
    for stream in range(4000):
        entries = np.arange(4, dtype=np.float32)
        _permute(entries, np.uint64(stream))
        seen[np.arange(4), entries.astype(int)] += 1
    assert abs(seen - 1000).max() < 120  # four standard deviations

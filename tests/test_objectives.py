"""Objectives beside the published numbers and beside their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scgpt_tl import objectives

GOLDEN = np.load(Path(__file__).parent / "golden" / "modules.npz")
KEEP_NO_CELL = {"pert", "pert_adapt"}
TAGS = sorted({name.split("/")[1] for name in GOLDEN.files if name.endswith("/loss_ecs")} - KEEP_NO_CELL)


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


@pytest.fixture
def loss_input() -> dict[str, torch.Tensor]:
    return {name: golden(f"loss/{name}") for name in ("in", "target", "mask", "prob")}


def test_masked_mse_is_the_published_one(loss_input):
    found = objectives.masked_mse(loss_input["in"], loss_input["target"], loss_input["mask"])
    torch.testing.assert_close(found, golden("loss/mse"))


def test_zero_likelihood_is_the_published_one(loss_input):
    found = objectives.zero_likelihood(loss_input["prob"], loss_input["target"], loss_input["mask"])
    torch.testing.assert_close(found, golden("loss/nlb"))


def test_relative_error_is_the_published_one(loss_input):
    found = objectives.relative_error(loss_input["in"], loss_input["target"], loss_input["mask"])
    torch.testing.assert_close(found, golden("loss/mre"))


@pytest.mark.parametrize("tag", TAGS)
def test_elastic_similarity_is_the_published_one(tag: str):
    threshold = 0.8 if tag == "batch_dab" else 0.3
    found = objectives.elastic_similarity(golden(f"out/{tag}/cell_emb"), threshold)
    torch.testing.assert_close(found, golden(f"out/{tag}/loss_ecs"))


def test_contrast_is_the_published_one():
    """In eval mode the published two dropout passes are one and the same."""
    cell = golden("out/plain/cell_emb")
    torch.testing.assert_close(objectives.contrast(cell, cell), golden("out/plain/loss_cce"))


def test_masked_mse_by_hand():
    predicted, target = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([3.0, 5.5, 9.0])
    mask = torch.tensor([True, True, False])
    assert float(objectives.masked_mse(predicted, target, mask)) == (4 + 0.25) / 2
    assert float(objectives.masked_mse(predicted, target, ~mask & mask)) == 0


def test_zero_likelihood_by_hand_and_without_infinities():
    p, target = torch.tensor([0.8, 0.3, 0.0, 1.0]), torch.tensor([4.0, 0.0, 0.0, 2.0])
    everything = torch.ones(4, dtype=torch.bool)
    expected = -(np.log(0.8) + np.log(0.7)) / 4
    assert float(objectives.zero_likelihood(p, target, everything)) == pytest.approx(expected)
    worst = objectives.zero_likelihood(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([True]))
    assert torch.isfinite(worst)
    assert worst > 80


def test_elastic_similarity_by_hand():
    """Cosines 1 (twice), 0 and the diagonal, which counts as 0; negative ones too."""
    cell = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    off = 1 - 0.6**2
    assert float(objectives.elastic_similarity(cell)) == pytest.approx((2 * (1 - 0.4**2) + 7 * off) / 9)
    assert float(objectives.elastic_similarity(torch.tensor([[1.0], [-1.0]]))) == pytest.approx(off)


def test_contrast_by_hand():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    expected = -np.log(np.exp(1 / 0.5) / (np.exp(1 / 0.5) + 1))
    assert float(objectives.contrast(first, second)) == pytest.approx(expected)
    assert float(objectives.contrast(first, second.flip(0))) == pytest.approx(expected + 2)
    assert float(objectives.contrast(first[:1], second[:1])) == 0  # one cell has no other to be told from


def test_view_contrast_leaves_the_common_part_out():
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    found = objectives.view_contrast(first, second)
    torch.testing.assert_close(found, objectives.view_contrast(first + 100, second + 100), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, objectives.view_contrast(second, first))
    mean = torch.cat([first, second]).mean(0)
    ways = [objectives.contrast(a - mean, b - mean, 0.1) for a, b in ((first, second), (second, first))]
    torch.testing.assert_close(found, sum(ways) / 2)
    assert float(objectives.view_contrast(first[:1], second[:1])) == 0

"""Generative losses: which are asked, how they weigh, where gradients flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgpt_tl import objectives
from scgpt_tl._random import name_keys
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.recipes import GENERATIVE, GENERATIVE_CONTRAST, Recipe, losses
from scgpt_tl.tokens.corrupt import generative_split
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scgpt_tl.tokens.batch import CellBatch

KEYS = name_keys(f"gene{i}" for i in range(62))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    config = ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0, flag_unknown=True)
    return Network(config).eval()


@pytest.fixture(scope="module")
def batch(toy_rows: Callable[..., object]) -> Callable[..., CellBatch]:
    block = Tokenizer(np.arange(60), KEYS, 60)(toy_rows(6, 60, seed=4))

    def make(*, complement: bool = False) -> CellBatch:
        return generative_split(block.batch(np.arange(6)), block.keys, KEYS, ratio=0.5, complement=complement)

    return make


@torch.no_grad()
def test_each_objective_is_what_it_says(network, batch):
    cells = batch(complement=True)
    found = losses(network, cells, GENERATIVE_CONTRAST).parts
    encoded = network.backbone.encode(cells)
    hidden = ~cells.known
    target = cells.values[hidden] / 50

    def mse(prediction: torch.Tensor) -> torch.Tensor:
        return ((prediction[hidden] / 50 - target) ** 2).mean()

    torch.testing.assert_close(found["gep"], mse(network.heads.gene_expression(encoded, cells).value))
    genes = network.backbone.genes(cells.gene_ids)
    torch.testing.assert_close(found["gepc"], mse(network.heads.cell_expression(encoded, cells, genes).value))
    prompted = network.backbone.encode(cells, cell_prompt=encoded.cell)
    torch.testing.assert_close(found["prompt"], mse(network.heads.gene_expression(prompted, cells).value))
    views = objectives.view_contrast(encoded.cell[:6], encoded.cell[6:], GENERATIVE_CONTRAST.temperature)
    torch.testing.assert_close(found["contrast"], views)


@torch.no_grad()
def test_the_total_is_the_weighted_sum(network, batch):
    weights = {"gep": 2.0, "gepc": 0.5, "prompt": 3.0, "contrast": 0.25}
    found = losses(network, batch(complement=True), replace(GENERATIVE_CONTRAST, weights=weights))
    assert set(found.parts) == set(weights)
    assert float(found.total) == pytest.approx(sum(weights[name] * float(part) for name, part in found.parts.items()))


@torch.no_grad()
def test_what_weighs_nothing_is_not_computed(network, batch):
    found = losses(network, batch(), Recipe("some", {"gep": 1.0, "gepc": 0.0}))
    assert set(found.parts) == {"gep"}
    assert set(losses(network, batch(), GENERATIVE).parts) == {"gep", "gepc", "prompt"}


@torch.no_grad()
def test_hidden_values_are_not_seen(network, batch):
    """Changing them changes the targets, and no prediction."""
    cells = batch()
    shown = torch.where(cells.known, cells.values, torch.full_like(cells.values, 17))
    outputs = [
        network.heads.gene_expression(network.backbone.encode(c), c).value
        for c in (cells, replace(cells, values=shown))
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert not torch.equal(shown, cells.values)


@pytest.mark.parametrize("detach", [True, False])
def test_gradients_through_the_prompt(network, batch, detach: bool):
    """The prompt takes the place of `<cls>`'s own row, which hears of the pass through the prompt alone."""
    network.zero_grad()
    losses(network, batch(), Recipe("prompt", {"prompt": 1.0}, detach_prompt=detach)).total.backward()
    heard = network.backbone.genes.table.weight.grad[60].abs().sum() > 0
    network.zero_grad()
    assert bool(heard) is not detach


def test_two_views_are_for_the_contrast():
    assert GENERATIVE_CONTRAST.two_views
    assert not GENERATIVE.two_views
    assert not Recipe("none", {"contrast": 0.0}).two_views


def test_a_batch_without_unknown_genes_is_an_error(network, batch):
    with pytest.raises(ValueError, match=r"needs a batch with unknown genes; see tokens\.corrupt\.generative_split"):
        losses(network, replace(batch(), known=None), GENERATIVE)

"""Recipes: which are asked, how they weigh, where gradients flow."""

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
from scgpt_tl.engine.recipes import (
    ANNOTATION,
    GENERATIVE,
    GENERATIVE_CONTRAST,
    INTEGRATION,
    MASKED,
    OBJECTIVES,
    Counts,
    Recipe,
    hide,
    losses,
    recipe_named,
)
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scgpt_tl.tokens.corrupt import Minibatch

KEYS = name_keys(f"gene{i}" for i in range(62))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    config = ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0, flag_unknown=True)
    return Network(config).eval()


@pytest.fixture(scope="module")
def batch(toy_rows: Callable[..., object]) -> Callable[..., Minibatch]:
    block = Tokenizer(np.arange(60), KEYS, 60)(toy_rows(6, 60, seed=4))

    def make(recipe: Recipe = GENERATIVE) -> Minibatch:
        cells = replace(block.batch(np.arange(6)), label=torch.tensor([0, 1, 2, 0, -1, 1]), batch=torch.arange(6) % 2)
        return hide(recipe, cells, block.keys, KEYS, ratio=0.5, mask_value=-1.0)

    return make


@torch.no_grad()
def test_each_generative_objective_is_what_it_says(network, batch):
    made = batch(GENERATIVE_CONTRAST)
    cells, hidden = made.cells, made.hidden
    found = losses(network, made, GENERATIVE_CONTRAST).parts
    encoded = network.backbone.encode(cells)
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


@pytest.fixture(scope="module")
def supervised() -> Network:
    torch.manual_seed(1)
    options = {"n_classes": 3, "n_batches": 2, "heads": ("gep", "gepc", "cls", "dar"), **INTEGRATION.network}
    return Network(ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0, **options)).eval()


@torch.no_grad()
def test_each_supervised_objective_is_what_it_says(supervised, batch):
    every = Recipe(
        "every", dict.fromkeys(OBJECTIVES.keys() - {"prompt", "contrast"}, 1.0), corruption="mask", in_bins=True
    )
    made = batch(every)
    cells, hidden = made.cells, made.hidden
    found = losses(supervised, made, every).parts
    encoded, heads = supervised.backbone.encode(cells), supervised.heads
    token, cell = (
        heads.gene_expression(encoded, cells),
        heads.cell_expression(encoded, cells, supervised.backbone.genes(cells.gene_ids)),
    )
    for name, told in (("gep", token), ("gepc", cell)):
        error = (told.value - made.target)[hidden].square().mean()
        torch.testing.assert_close(found[name], error)
        p = told.nonzero[hidden]
        expected = -torch.where(made.target[hidden] > 0, p, 1 - p).log().mean()
        torch.testing.assert_close(found[f"{name}_zeros"], expected)
    torch.testing.assert_close(found["ecs"], objectives.elastic_similarity(encoded.cell, 0.6))
    torch.testing.assert_close(found["cce"], objectives.contrast(encoded.cell, encoded.cell))
    known = cells.label >= 0
    scores = heads.cls(encoded.cell)[known].log_softmax(-1)
    torch.testing.assert_close(found["cls"], -scores[torch.arange(5), cells.label[known]].mean())
    scores = heads.dar(encoded.cell).log_softmax(-1)
    torch.testing.assert_close(found["dar"], -scores[torch.arange(6), cells.batch].mean())


@torch.no_grad()
def test_the_total_is_the_weighted_sum(network, batch):
    weights = {"gep": 2.0, "gepc": 0.5, "prompt": 3.0, "contrast": 0.25}
    recipe = replace(GENERATIVE_CONTRAST, weights=weights)
    found = losses(network, batch(recipe), recipe)
    assert set(found.parts) == set(weights)
    assert float(found.total) == pytest.approx(sum(weights[name] * float(part) for name, part in found.parts.items()))


@torch.no_grad()
def test_what_weighs_nothing_is_not_computed(network, batch):
    found = losses(network, batch(), Recipe("some", {"gep": 1.0, "gepc": 0.0}))
    assert set(found.parts) == {"gep"}
    assert set(losses(network, batch(), GENERATIVE).parts) == {"gep", "gepc", "prompt"}
    late = replace(GENERATIVE, prompt_after=3)
    assert set(losses(network, batch(), late, step=2).parts) == {"gep", "gepc"}
    assert set(losses(network, batch(), late, step=3).parts) == {"gep", "gepc", "prompt"}


@pytest.mark.parametrize("recipe", [GENERATIVE, GENERATIVE_CONTRAST])
def test_sums_of_parts_over_one_count_are_the_whole(network, batch, recipe: Recipe):
    """Whatever is no comparison of cells; those are means over the parts."""
    made = batch(recipe)
    counts = Counts.of(made)
    whole = losses(network, made, recipe).parts
    pieces = [made.take(torch.tensor(cells)) for cells in ([4, 0], [1], [2, 3, 5])]
    parts = [losses(network, piece, recipe, counts=counts, share=1 / 3).parts for piece in pieces]
    for name in ("gep", "gepc", "prompt"):
        torch.testing.assert_close(sum(part[name] for part in parts), whole[name])
    if "contrast" in whole:
        alone = [losses(network, piece, recipe).parts["contrast"] for piece in pieces]
        torch.testing.assert_close(sum(part["contrast"] for part in parts), sum(alone) / 3)


@torch.no_grad()
@pytest.mark.parametrize("recipe", [GENERATIVE, MASKED])
def test_hidden_values_are_not_seen(network, batch, recipe: Recipe):
    """Changing them changes the targets, and no prediction."""
    made = batch(recipe)
    shown = torch.where(made.hidden, torch.full_like(made.target, 17), made.target)
    other = replace(made, target=shown)
    if recipe.corruption == "generative":
        other = replace(other, cells=replace(made.cells, values=shown))
    outputs = [network.heads.gene_expression(network.backbone.encode(m.cells), m.cells).value for m in (made, other)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert not torch.equal(losses(network, made, recipe).total, losses(network, other, recipe).total)


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


def test_a_recipe_knows_what_it_needs():
    assert GENERATIVE.heads == ("gep", "gepc")
    assert ANNOTATION.heads == ("cls",)
    assert (ANNOTATION.needs_labels, ANNOTATION.needs_batches) == (True, False)
    assert (INTEGRATION.needs_labels, INTEGRATION.needs_batches) == (False, True)


@torch.no_grad()
@pytest.mark.parametrize("recipe", [GENERATIVE_CONTRAST, replace(MASKED, weights={"gep": 1.0, "ecs": 1.0})])
def test_a_muted_minibatch_adds_nothing_and_is_not_compared(network, batch, recipe: Recipe):
    """It is a process without a cell of its own; the others' cells are gathered as ever."""
    made = batch(recipe)
    others = torch.randn(5, 16)
    counts = Counts(10.0, 0.0, 0.0)
    assert Counts.of(made.mute()) == Counts(0.0, 0.0, 0.0)
    found = losses(network, made.mute(), recipe, counts=counts, gather=lambda x: torch.cat([x, others])).parts
    for name in {"gep", "gepc", "prompt"} & set(found):
        assert float(found[name]) == 0
    if "ecs" in found:
        torch.testing.assert_close(found["ecs"], objectives.elastic_similarity(others))
    else:
        torch.testing.assert_close(found["contrast"], objectives.view_contrast(others, others))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"gep": 1.0}, "ratios": (40,)}, "shares from 0 to 1"),
        ({"weights": {"gep": 1.0}, "corruption": "none"}, "hides nothing and asks for gep"),
        ({"weights": {"contrast": 1.0}, "corruption": "mask"}, "'contrast' needs corruption='generative'"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(options: dict, said: str):
    with pytest.raises(ValueError, match=said):
        Recipe("odd", **options)


def test_recipes_by_name():
    assert recipe_named("masked") is MASKED
    assert recipe_named(MASKED) is MASKED
    with pytest.raises(ValueError, match="'integrate' is unknown; did you mean 'integration'"):
        recipe_named("integrate")


def test_an_objective_that_is_not_there():
    with pytest.raises(ValueError, match="asks for 'gpe'; there are gep, gep_zeros"):
        Recipe("typo", {"gpe": 1.0})


def test_labels_that_are_not_given(supervised, batch):
    made = batch(ANNOTATION)
    bare = replace(made, cells=replace(made.cells, label=None))
    with pytest.raises(ValueError, match=r"needs CellBatch\.label"):
        losses(supervised, bare, ANNOTATION)


def test_zero_probabilities_need_their_head(network, batch):
    with pytest.raises(ValueError, match="zero_probability=True"):
        losses(network, batch(MASKED), replace(MASKED, weights={"gep_zeros": 1.0}))


@torch.no_grad()
def test_classes_weigh_as_the_recipe_says(network, batch):
    torch.manual_seed(1)
    other = Network(replace(network.config, heads=("gep", "gepc", "cls"), n_classes=3)).eval()
    made, weights = batch(ANNOTATION), (1.0, 2.0, 0.5)
    label = made.cells.label
    scores = other.heads.cls(other.backbone.encode(made.cells).cell)
    each = -scores.log_softmax(1)[label >= 0, label[label >= 0]]
    own = torch.tensor(weights)[label[label >= 0]]
    found = losses(other, made, replace(ANNOTATION, class_weights=weights)).parts["cls"]
    torch.testing.assert_close(found, (each * own).sum() / 5)
    torch.testing.assert_close(losses(other, made, ANNOTATION).parts["cls"], each.mean())


def test_weights_of_classes_are_positive():
    with pytest.raises(ValueError, match="they are positive numbers"):
        replace(ANNOTATION, class_weights=(1.0, 0.0))

"""What learns: parts that are frozen, low-rank adapters, and what is left of them in the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.layers import Linear
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.config import PARTS
from scgpt_tl.engine.recipes import RECIPES, Recipe, hide, losses
from scgpt_tl.engine.tune import adapters, freeze, leave_out, merged
from scgpt_tl.tokens.batch import CellBatch, cumulative

SHAPE = {"n_tokens": 40, "pad_id": 37, "cls_id": 38, "d_model": 32, "n_heads": 4, "n_layers": 3, "d_ff": 48}
FULL = {"n_conditions": 3, "n_batches": 2, "n_modalities": 2, "batch_in_heads": True, "input_norm": "batch"}
PRODUCTS = ("attn.qkv", "attn.out", "up", "down")


def network(**options) -> Network:
    torch.manual_seed(0)
    return Network(ModelConfig(**(SHAPE | {"flag_unknown": True} | options)))


def cells() -> CellBatch:
    """Four cells, a third of their genes unknown."""
    rng = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9, 4, 14, 5])
    offsets = cumulative(lengths)
    ids = torch.randint(0, 37, (32,), generator=rng)
    values = torch.randint(1, 51, (32,), generator=rng).float()
    ids[offsets[:-1]], values[offsets[:-1]] = 38, -2.0
    batch = CellBatch(ids, values, offsets)
    place = torch.arange(32) - offsets[batch.cell_index]
    return replace(batch, known=place < (batch.lengths * 2 // 3)[batch.cell_index])


def loss(net: Network) -> torch.Tensor:
    batch = cells()
    encoded = net.backbone.encode(batch)
    guess = net.heads.gene_expression(encoded, batch).value
    guess = guess + net.heads.cell_expression(encoded, batch, net.backbone.genes(batch.gene_ids)).value
    return (guess - batch.values)[~batch.known].square().mean()


def step(net: Network, n: int = 2) -> None:
    """Optimiser steps; after the first one B is no longer zero, so that A learns in the second."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(n):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()


def learning(net: Network) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def classes(net: Network) -> dict[str, type]:
    return {name: type(module) for name, module in net.named_modules()}


def encoded(net: Network, **options) -> torch.Tensor:
    with torch.no_grad():
        return net.eval().backbone.encode(cells(), **options).cell


# ---- freezing

BEGINNINGS = {
    "genes": ("backbone.genes.",),
    "values": ("backbone.values.", "backbone.flags."),
    "embeddings": (
        *("backbone.genes.", "backbone.values.", "backbone.flags.", "backbone.conditions."),
        *("heads.batches.", "heads.modalities."),
    ),
    "layers": ("backbone.blocks.",),
    "layers:1": ("backbone.blocks.0.",),
    "layers:2": ("backbone.blocks.0.", "backbone.blocks.1."),
    "heads": ("heads.gep.", "heads.gepc."),
}


@pytest.mark.parametrize("part", BEGINNINGS)
def test_a_frozen_part_is_all_that_is_frozen(part: str):
    net = network(**FULL)
    names = learning(net)
    freeze(net, [part])
    assert names - learning(net) == {name for name in names if name.startswith(BEGINNINGS[part])}


def test_every_part_is_tried():
    assert set(PARTS) <= set(BEGINNINGS)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_all_that_learns_gets_a_gradient(recipe: Recipe):
    """Several processes wait for the gradient of each number that learns: what a recipe never asks must be frozen."""
    options = {"heads": ("gep", "gepc", "cls", "dar"), "n_classes": 2, "n_conditions": 3, "n_batches": 2}
    options |= {"n_modalities": 2, "batch_in_heads": True, "zero_probability": True, "input_norm": "domain"}
    net = network(**options | recipe.network)
    leave_out(net, recipe)
    batch = replace(cells(), known=None, label=torch.tensor([0, 1, 1, 0]), batch=torch.tensor([0, 1, 0, 1]))
    batch = replace(batch, modality=torch.zeros(32, dtype=torch.int64))
    keys = np.arange(4, dtype=np.uint64)
    made = hide(recipe, batch, keys, np.arange(40, dtype=np.uint64), ratio=0.5, mask_value=-1.0)
    losses(net, made, recipe, step=5000).total.backward()
    without = {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    assert {name.split(".")[1] for name in learning(net) if name.startswith("heads.")} >= set(recipe.heads)


def test_frozen_numbers_stay_and_the_others_move():
    net = network()
    before = deepcopy(net.state_dict())
    freeze(net, ("embeddings", "layers:2"))
    step(net)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(("backbone.blocks.2.", "heads."))}


def test_no_parts_freeze_nothing():
    net = network()
    freeze(net, ())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["gene"], "no part 'gene'; did you mean 'genes'"),
        (["layer:2"], "no part 'layer:2'; did you mean 'layers:6'"),
        (["xyz"], "there are genes, values, embeddings, layers, heads, layers:6"),
        (["genes:2"], "no part 'genes:2'"),
        (["layers:4"], "layers:1 .the first. to layers:3"),
        (["layers:0"], "layers:1 .the first. to layers:3"),
        (["layers:-1"], "layers:1 .the first. to layers:3"),
        (["layers:two"], "layers:1 .the first. to layers:3"),
        (["embeddings", "layers", "heads"], "nothing is left to learn"),
    ],
)
def test_parts_that_are_refused(parts: list[str], says: str):
    with pytest.raises(ValueError, match=says):
        freeze(network(), parts)


# ---- adapters


def test_adapters_of_rank_0_are_none():
    net = network()
    before = classes(net)
    with adapters(net, 0):
        assert classes(net) == before


def test_adapters_learn_in_place_of_the_blocks():
    """4 products a block; heads and what belongs to the data learn as they did."""
    net = network(**FULL)
    with adapters(net, 4):
        low = {f"backbone.blocks.{i}.{p}.lora_{s}.default.weight" for i in range(3) for p in PRODUCTS for s in "AB"}
        own = ("heads.", "backbone.conditions.", "backbone.flags.", "backbone.input_norm.")
        assert learning(net) == low | {name for name in dict(net.named_parameters()) if name.startswith(own)}
        sizes = [p.numel() for name, p in net.named_parameters() if name in low]
        # rank x (in + out) of qkv, out, up, down
        assert sum(sizes) == 3 * 4 * ((32 + 96) + (32 + 32) + (32 + 48) + (48 + 32))


def test_a_fresh_adapter_changes_nothing():
    net = network()
    before = encoded(net)
    with adapters(net, 4):
        torch.testing.assert_close(encoded(net), before, atol=0, rtol=0)


def test_in_the_end_weights_are_base_plus_delta():
    """The product is written out here with einsum, from the names in the state."""
    net = network()
    before = deepcopy(net.state_dict())
    built = classes(net)
    with adapters(net, 4):
        step(net)
        state = deepcopy(net.state_dict())
        inside = encoded(net)
    after = net.state_dict()
    assert list(after) == list(before)
    assert classes(net) == built
    assert type(net.backbone.blocks[0].attn.qkv) is Linear
    assert all(p.requires_grad for p in net.parameters())
    assert not hasattr(net.backbone.blocks, "peft_config")
    torch.testing.assert_close(encoded(net), inside, atol=1e-5, rtol=1e-5)
    for name, value in after.items():
        path, _, kind = name.rpartition(".")
        if path.endswith(PRODUCTS) and kind == "weight":
            low_a, low_b = (state[f"{path}.lora_{s}.default.weight"] for s in "AB")
            low = torch.einsum("or,ri->oi", low_b, low_a)
            torch.testing.assert_close(value, before[name] + 2 * low, atol=1e-6, rtol=0)
            assert (value - before[name]).abs().max() > 1e-4
        elif name.startswith(("heads.", "backbone.flags.")):
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("published", [False, True])
def test_projecting_some_tokens_only_sees_the_adapters(published: bool):
    """`cell_only` projects the query of `<cls>` alone, from rows of the weight."""
    net = network(unknown_skips_projection=published)
    with adapters(net, 4):
        step(net)
        torch.testing.assert_close(encoded(net, cell_only=True), encoded(net), atol=2e-6, rtol=2e-6)
        net.backbone.encode(cells(), cell_only=True).cell.square().sum().backward()
        last = net.backbone.blocks[-1].attn.qkv
        assert last.lora_A["default"].weight.grad.abs().max() > 0
        assert last.lora_B["default"].weight.grad.abs().max() > 0


def test_gradients_of_the_adapters_are_those_of_the_weights():
    """dL/dA = 2 B' G and dL/dB = 2 G A', with G the gradient of the merged weight."""
    net = network().eval()
    with adapters(net, 4):
        step(net.eval())
        net.zero_grad()
        loss(net).backward()
        found = {
            name: (m.lora_A["default"].weight, m.lora_B["default"].weight)
            for name, m in net.named_modules()
            if hasattr(m, "lora_A")
        }
        found = {name: (a, b, a.grad.clone(), b.grad.clone()) for name, (a, b) in found.items()}
    assert len(found) == 12
    net.zero_grad()
    loss(net).backward()
    for name, (a, b, grad_a, grad_b) in found.items():
        whole = net.get_submodule(name).weight.grad
        torch.testing.assert_close(grad_a, 2 * b.T @ whole, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(grad_b, 2 * whole @ a.T, rtol=1e-3, atol=1e-4)


def test_blocks_that_are_computed_again_give_the_same_gradients():
    found = []
    for recompute in (False, True):
        net = network(dropout=0.3)
        with adapters(net, 4):
            torch.manual_seed(5)
            step(net, 1)
            net.zero_grad()
            net.backbone.recompute = recompute
            loss(net).backward()
            found.append({name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, msg=name)


def test_a_state_with_adapters_loads_into_a_network_prepared_anew():
    first, second = network(), network()
    with adapters(first, 4):
        step(first)
        state = deepcopy(first.state_dict())
        with adapters(second, 4):
            second.load_state_dict(state, strict=True)
            assert torch.equal(encoded(second), encoded(first))
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_adapters_follow_the_seed_and_leave_the_global_stream():
    states = []
    for seed in (0, 0, 1):
        net = network()
        torch.manual_seed(len(states))
        stream = torch.get_rng_state()
        with adapters(net, 4, seed=seed):
            states.append(deepcopy(net.state_dict()))
        assert torch.equal(torch.get_rng_state(), stream)
    name = "backbone.blocks.1.up.lora_A.default.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_frozen_layers_get_no_adapter():
    net = network()
    freeze(net, ("layers:2", "heads"))
    with adapters(net, 2):
        assert {name.split(".")[2] for name in learning(net) if "lora_" in name} == {"2"}
        assert not any(name.startswith("heads.") for name in learning(net))
    assert {name.split(".")[2] for name in learning(net) if "blocks" in name} == {"2"}
    freeze(net, ("layers",))
    with pytest.raises(ValueError, match="leave layers out of freeze, or set lora=0"), adapters(net, 2):
        pass


def test_an_error_inside_is_the_error_outside():
    net = network()
    with pytest.raises(KeyboardInterrupt), adapters(net, 2):
        raise KeyboardInterrupt
    assert merged(net) is net
    assert list(net.state_dict()) == list(network().state_dict())


def test_adapters_that_are_no_numbers_are_not_merged():
    net = network()
    with pytest.raises(ValueError, match="NaN"), adapters(net, 2):
        net.backbone.blocks[0].up.lora_B["default"].weight.data.fill_(torch.nan)


def test_without_peft_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'scgpt_tl\[lora\]'"), adapters(network(), 2):
        pass


@pytest.mark.gpu
def test_merging_on_cuda(torch_threads: Callable[[int], None]):
    net = network()
    with adapters(net, 4):
        net.cuda()
        with torch.autocast("cuda", torch.bfloat16):
            weight = net.backbone.blocks[0].attn.qkv.weight
        assert weight.device.type == "cuda"
    assert type(net.backbone.blocks[0].attn.qkv) is Linear

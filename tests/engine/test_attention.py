"""Rank-normalised attention beside the definition: every map stored, ranked by scipy, averaged at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from scgpt_tl.core.attention import plain
from scgpt_tl.core.scgpt import Network, ScGPT
from scgpt_tl.engine import attention
from scgpt_tl.engine.attention import attention_scores
from scgpt_tl.engine.predict import Compute
from scgpt_tl.models.model import load_model
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scipy import sparse

    from scgpt_tl.models.model import Model

QUIET = Compute(device="cpu", progress=False)
N, M = 13, 24
GROUPS = np.array([0, 2, 0, -1, 2, 2, 0, 3, 0, -1, 2, 0, 3])


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    """Columns are no vocabulary's order, one is unknown and one is not chosen."""
    columns = np.random.default_rng(3).permutation(200)[: M + 2]
    columns[[4, 9]] = -1
    return Tokenizer(columns, model.vocab.keys, model.config.cls_id, zeros=True)


@pytest.fixture(scope="module")
def rows(toy_rows: Callable[..., sparse.csr_matrix]) -> sparse.csr_matrix:
    return toy_rows(N, M + 2)


def run(
    backbone: ScGPT, rows: sparse.csr_matrix, tokenizer: Tokenizer, *, block: int = 5, **options: Any
) -> np.ndarray:
    options = {"compute": QUIET, "groups": GROUPS, "n_groups": 4} | options
    blocks = ((start, rows[start : start + block]) for start in range(0, rows.shape[0], block))
    return attention_scores(backbone, blocks, tokenizer, total=rows.shape[0], **options)


@torch.no_grad()
def stored(
    backbone: ScGPT, rows: sparse.csr_matrix, tokenizer: Tokenizer, layer: int, batches: np.ndarray | None = None
) -> np.ndarray:
    """(N, H, M, M) every ranked map; each cell alone, attention written out, queries and keys from the weights."""
    found, d, heads = [], backbone.config.d_model, backbone.config.n_heads
    for i in range(rows.shape[0]):
        batch = tokenizer(rows[i]).batch(np.array([0]))
        assert batch.gene_ids.tolist() == [tokenizer.cls_id, *tokenizer.genes.tolist()]
        if batches is not None:
            batch = replace(batch, batch=torch.from_numpy(batches[[i]]))
        before = f"layer.{layer - 1}"
        x = backbone.encode(batch, capture=(before,)).captured[before] if layer else backbone.embed(batch)
        block = backbone.blocks[layer]
        x = (x if block.post else block.norm1(x)).double()
        weight, bias = block.attn.qkv.weight.double(), block.attn.qkv.bias.double()
        q, k = (x @ weight[: 2 * d].T + bias[: 2 * d]).view(-1, 2, heads, d // heads).unbind(1)
        maps = torch.einsum("qhe,khe->hqk", q, k)[:, 1:, 1:].numpy()
        found.append(rankdata(rankdata(maps, axis=2) / M, axis=1) / M)
    return np.array(found)


def mean(maps: np.ndarray) -> np.ndarray:
    """Over heads, then over the cells of each group; nobody is in group 1."""
    by_cell = maps.mean(1)
    return np.array([by_cell[g == GROUPS].mean(0) if g != 1 else np.full((M, M), np.nan) for g in range(4)])


@pytest.fixture
def written_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """No fused attention anywhere."""
    for block in model.backbone.blocks:
        monkeypatch.setattr(block.attn, "attend", lambda q, k, v, layout, dropout: plain(q, k, v, layout))
    return model


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("fused", [True, False])
def test_scores_are_those_of_the_definition(model, rows, tokenizer, layer, fused, request):
    found = run(model.backbone, rows, tokenizer, layer=layer) if fused else None
    request.getfixturevalue("written_out")
    found = run(model.backbone, rows, tokenizer, layer=layer) if found is None else found
    expected = mean(stored(model.backbone, rows, tokenizer, layer % 2))
    assert found.dtype == np.float32
    assert found.shape == (4, M, M)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_published_pre_norm_is_read_after_its_norm(model, rows, tokenizer):
    torch.manual_seed(0)
    backbone = Network(replace(model.config, norm_scheme="published_pre")).eval().backbone
    for norm in (block.norm1 for block in backbone.blocks):
        norm.weight.data.normal_()
    np.testing.assert_allclose(run(backbone, rows, tokenizer), mean(stored(backbone, rows, tokenizer, 1)), atol=1e-6)


def test_regulators_are_columns_of_the_whole(model, rows, tokenizer):
    chosen = np.array([7, 0, M - 1])
    found = run(model.backbone, rows, tokenizer, regulators=chosen)
    assert found.shape == (4, M, 3)
    np.testing.assert_allclose(found, run(model.backbone, rows, tokenizer)[:, :, chosen], atol=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 60, 10**6])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_minibatches_and_blocks_change_nothing(model, rows, tokenizer, max_tokens: int, block: int):
    expected = run(model.backbone, rows, tokenizer)
    found = run(model.backbone, rows, tokenizer, block=block, compute=replace(QUIET, max_tokens=max_tokens))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("room", [25, 60, 100])
def test_out_of_memory_halves_the_minibatch_and_is_said_once(model, rows, tokenizer, room: int, monkeypatch, caplog):
    """A cell has 25 tokens; what was added before memory ran out is not added again."""
    expected, inner, asked = run(model.backbone, rows, tokenizer), ScGPT.queries_and_keys, []

    def narrow(self, batch, *rest, **options):
        asked.append(batch.n_tokens)
        if batch.n_tokens > room:
            raise torch.OutOfMemoryError
        return inner(self, batch, *rest, **options)

    monkeypatch.setattr(ScGPT, "queries_and_keys", narrow)
    found = run(model.backbone, rows, tokenizer, compute=replace(QUIET, max_tokens=400), block=6)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [record.message for record in caplog.records] == [
        "out of memory with 400 tokens: going on with half as many; max_memory= avoids this"
    ]
    assert asked[-1] <= 100  # what held is kept
    room = 24
    with pytest.raises(torch.OutOfMemoryError):
        run(model.backbone, rows, tokenizer)


def test_the_order_of_cells_changes_nothing(model, rows, tokenizer):
    order = np.random.default_rng(0).permutation(N)
    found = run(model.backbone, rows[order], tokenizer, groups=GROUPS[order])
    np.testing.assert_allclose(found, run(model.backbone, rows, tokenizer), atol=1e-6)


def test_threads_and_parts_of_maps_change_nothing(model, rows, tokenizer, torch_threads, monkeypatch):
    expected = run(model.backbone, rows, tokenizer)
    torch_threads(2)
    np.testing.assert_allclose(run(model.backbone, rows, tokenizer), expected, atol=1e-6)
    monkeypatch.setattr(attention, "_SCORES", 5 * M)  # five rows of a map at a time
    np.testing.assert_allclose(run(model.backbone, rows, tokenizer), expected, atol=1e-6)


def test_low_precision_is_near_and_ranks_stay_exact(model, rows, tokenizer):
    expected = run(model.backbone, rows, tokenizer)
    found = run(model.backbone, rows, tokenizer, compute=replace(QUIET, dtype="bfloat16"))
    assert 0 < np.nanmax(np.abs(found - expected)) < 0.3
    np.testing.assert_allclose(found[0].mean(), (M + 1) / (2 * M), atol=1e-6)  # of all ranks of a column


@pytest.mark.gpu
def test_a_gpu_ranks_alike(model, rows, tokenizer):
    here = run(model.backbone, rows, tokenizer)
    for dtype, atol in (("float32", 0.02), ("bfloat16", 0.2)):  # a near tie may fall the other way
        there = run(model.backbone, rows, tokenizer, compute=Compute(device="cuda", dtype=dtype, progress=False))
        np.testing.assert_allclose(there, here, atol=atol)
        assert next(model.backbone.parameters()).device.type == "cpu"


def test_each_cell_is_normalised_by_its_own_batch(model, rows, tokenizer):
    config = replace(model.config, input_norm="domain", n_batches=3)
    network = Network(config).eval()
    network.load_state_dict(network.state_dict() | model.network.state_dict())
    generator = torch.Generator().manual_seed(0)
    for norm in network.backbone.input_norm.norms:
        norm.running_mean.copy_(torch.randn(config.d_model, generator=generator))
    codes = np.arange(N) * 7 % 3
    expected = mean(stored(network.backbone, rows, tokenizer, 1, codes))
    np.testing.assert_allclose(run(network.backbone, rows, tokenizer, batches=codes), expected, atol=1e-6)
    with pytest.raises(ValueError, match="batches= must say which batch each row is of"):
        run(network.backbone, rows, tokenizer)


def test_no_cells_at_all(model, rows, tokenizer):
    found = run(model.backbone, rows, tokenizer, groups=np.full(N, -1), n_groups=1)
    assert np.isnan(found).all()
    assert run(model.backbone, rows[:0], tokenizer, groups=GROUPS[:0], n_groups=2).shape == (2, M, M)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layer": 2}, "layer=2: this network has 2 attention layers, 0 to 1, or from the last one -1 to -2"),
        ({"layer": -3}, "layer=-3"),
        ({"groups": GROUPS[:5]}, r"groups int64 \(5,\); 13 int64 from -1 to 3"),
        ({"batches": np.zeros(N, np.int32)}, "batches int32"),
    ],
)
def test_what_cannot_be_is_refused(model, rows, tokenizer, wrong: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        run(model.backbone, rows, tokenizer, **wrong)


def test_weights_that_are_not_numbers_are_refused(model, rows, tokenizer):
    network = Network(model.config).eval()
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        network.backbone.blocks[1].attn.qkv.bias[3] = torch.nan
    with pytest.raises(ValueError, match="attention scores of up to nan: this network's weights are not fit"):
        run(network.backbone, rows, tokenizer)

"""Inference in bounded memory: minibatches, options, running sums, too little memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.predict import Compute, Contexts, Seen, embed_rows, minibatches, token_bytes
from scgpt_tl.models.model import load_model
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scipy import sparse

    from scgpt_tl.models.model import Model

QUIET = Compute(device="cpu", progress=False)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return Tokenizer(np.arange(60), model.vocab.keys, model.config.cls_id)


@pytest.fixture(scope="module")
def rows(toy_rows: Callable[..., sparse.csr_matrix]) -> sparse.csr_matrix:
    return toy_rows(23, 60)


def run(model: Model, rows: sparse.csr_matrix, tokenizer: Tokenizer, *, block: int = 10, **options):
    """Embeddings and what was met."""
    options = {"compute": QUIET} | options
    out = np.full((rows.shape[0], model.config.d_model), np.nan, np.float32)
    blocks = ((start, rows[start : start + block]) for start in range(0, rows.shape[0], block))
    return out, embed_rows(model.backbone, blocks, tokenizer, out, total=rows.shape[0], **options)


@torch.no_grad()
def one_by_one(model: Model, rows: sparse.csr_matrix, tokenizer: Tokenizer) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Each cell alone through `encode`, without tables or `cell_only`."""
    found = [model.backbone.encode(tokenizer(rows[i]).batch(np.array([0]))) for i in range(rows.shape[0])]
    return torch.cat([e.cell for e in found]).numpy(), [e.tokens for e in found]


def test_embeddings_are_those_of_cells_alone(model, rows, tokenizer):
    expected, _ = one_by_one(model, rows, tokenizer)
    found, seen = run(model, rows, tokenizer, unit_norm=False)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    unit, _ = run(model, rows, tokenizer)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert seen == Seen(n_cells=23, n_tokens=rows.nnz + 23)


def test_what_was_met_is_counted_on_top_of_what_was_there(model, rows, tokenizer):
    some = rows.tolil()
    some[3] = 0
    seen = Seen(n_cells=5, n_empty=1, n_tokens=50)
    _, after = run(model, some.tocsr(), replace(tokenizer, max_length=12), seen=seen)
    long = int((some.getnnz(axis=1) > 11).sum())
    assert after is seen
    assert (seen.n_cells, seen.n_empty, seen.n_sampled, seen.halved) == (28, 2, long, 0)
    assert 0 < long < 23


def test_the_sum_is_up_to_date_when_a_block_is_written(model, rows, tokenizer):
    met, seen = [], Seen()

    class Out:
        def __setitem__(self, at: slice, values: np.ndarray) -> None:
            met.append((at.start, at.stop, values.shape, seen.n_cells))

    blocks = ((start, rows[start : start + 10]) for start in (0, 10, 20))
    embed_rows(model.backbone, blocks, tokenizer, Out(), compute=QUIET, total=23, seen=seen)
    assert met == [(0, 10, (10, 64), 10), (10, 20, (10, 64), 20), (20, 23, (3, 64), 23)]


@pytest.mark.parametrize("max_tokens", [1, 37, 200, 10**6])
def test_any_budget_gives_the_same(model, rows, tokenizer, max_tokens: int):
    expected, _ = run(model, rows, tokenizer)
    found, _ = run(model, rows, tokenizer, compute=replace(QUIET, max_tokens=max_tokens))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bfloat16_is_near(model, rows, tokenizer):
    expected, _ = run(model, rows, tokenizer)
    found, _ = run(model, rows, tokenizer, compute=replace(QUIET, dtype="bfloat16"))
    cosine = (found * expected).sum(1)
    assert cosine.min() > 0.99
    assert not np.array_equal(found, expected)
    assert found.dtype == np.float32


def test_minibatches_hold_every_cell_once_within_the_budget():
    lengths = np.array([5, 9, 1, 30, 5, 2, 9])
    found = list(minibatches(lengths, 10))
    assert sorted(np.concatenate(found).tolist()) == list(range(7))
    assert found[0].tolist() == [3]  # longer than the budget: alone
    assert all(lengths[cells].sum() <= 10 for cells in found[1:])
    ordered = lengths[np.concatenate(found)]
    assert (np.diff(ordered) <= 0).all()  # cells of like length together
    assert list(minibatches(np.array([], int), 10)) == []


class Narrow(torch.nn.Module):
    """A backbone that has room for a number of tokens only."""

    def __init__(self, backbone: torch.nn.Module, room: int):
        super().__init__()
        self.inner, self.config, self.room, self.asked = backbone, backbone.config, room, []

    def tables(self):
        return self.inner.tables()

    def encode(self, batch, **options):
        self.asked.append(batch.n_tokens)
        if batch.n_tokens > self.room:
            raise torch.OutOfMemoryError
        return self.inner.encode(batch, **options)


def test_out_of_memory_halves_the_minibatch_and_is_said_once(model, rows, tokenizer, caplog):
    expected, _ = run(model, rows, tokenizer)
    backbone = Narrow(model.backbone, 60)
    out, seen = np.empty_like(expected), Seen()
    blocks = ((start, rows[start : start + 10]) for start in (0, 10, 20))
    with caplog.at_level(logging.WARNING):
        embed_rows(backbone, blocks, tokenizer, out, compute=replace(QUIET, max_tokens=400), total=23, seen=seen)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert seen.halved > 0
    assert [r.message for r in caplog.records] == [
        "out of memory with 400 tokens: going on with half as many; max_memory= avoids this"
    ]
    assert max(backbone.asked[-3:]) <= 100  # what held is kept


def test_a_single_cell_that_does_not_fit_is_an_error(model, rows, tokenizer):
    with pytest.raises(torch.OutOfMemoryError):
        embed_rows(Narrow(model.backbone, 5), iter([(0, rows)]), tokenizer, np.empty((23, 64)), compute=QUIET, total=23)


def test_contexts_are_means_over_the_cells_that_express_a_gene(model, rows, tokenizer):
    groups = np.arange(23) % 3 - 1  # -1: no group
    genes = np.array([2, 5, 7, 59])
    contexts = Contexts(groups, genes, 64)
    run(model, rows, tokenizer, contexts=contexts, compute=replace(QUIET, max_tokens=100))
    _, tokens = one_by_one(model, rows, tokenizer)
    expected = np.full((2, 4, 64), np.nan, np.float32)
    for g in range(2):
        for k, gene in enumerate(genes):
            mine = []
            for i in np.flatnonzero(groups == g):
                ids = tokenizer(rows[i]).gene_ids
                mine += [tokens[i][j].numpy() for j in np.flatnonzero(ids == gene)]
            if mine:
                expected[g, k] = np.mean(mine, axis=0)
    np.testing.assert_allclose(contexts.mean(), expected, atol=1e-5, rtol=1e-5)


def test_contexts_without_any_group(model, rows, tokenizer):
    contexts = Contexts(np.full(23, -1), np.array([2, 5]), 64)
    run(model, rows, tokenizer, contexts=contexts)
    assert contexts.mean().shape == (0, 2, 64)


def test_asking_for_contexts_does_not_change_the_cells(model, rows, tokenizer):
    expected, _ = run(model, rows, tokenizer)
    found, _ = run(model, rows, tokenizer, contexts=Contexts(np.zeros(23, int), np.arange(60), 64))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_max_memory_sets_the_tokens(model):
    each = token_bytes(model.backbone)
    cpu = torch.device("cpu")
    assert Compute(max_memory=each * 50).tokens(model.backbone, cpu) == 50
    assert Compute(max_memory=1).tokens(model.backbone, cpu) == 1
    assert Compute(max_memory=each, max_tokens=7).tokens(model.backbone, cpu) == 7
    assert Compute().tokens(model.backbone, cpu) == 3072
    assert Compute().tokens(model.backbone, torch.device("cuda")) == 131_072


def test_auto_follows_the_device():
    assert Compute().torch_dtype(torch.device("cpu")) == torch.float32
    assert Compute().torch_dtype(torch.device("cuda")) == torch.bfloat16
    assert Compute(dtype="float16").torch_dtype(torch.device("cpu")) == torch.float16
    assert Compute(device="cpu").torch_device() == torch.device("cpu")


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="dtype='half'; give 'auto', 'float32'"):
        Compute(dtype="half")
    with pytest.raises(ValueError, match="max_tokens=0; give 1 or more"):
        Compute(max_tokens=0)
    with pytest.raises(ValueError, match="max_memory='lots'"):
        Compute(max_memory="lots")
    with pytest.raises(ValueError, match="device='tpu9' is not a device"):
        Compute(device="tpu9").torch_device()


@pytest.mark.parametrize("device", ["meta", "xpu", "hpu"])
def test_devices_that_torch_knows_and_this_machine_has_not(device: str):
    with pytest.raises(ValueError, match=f"device='{device}': no usable device here; device='auto' or 'cpu' computes"):
        Compute(device=device).torch_device()


def test_one_cuda_device_is_no_second(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Compute(device="cuda:0").torch_device() == torch.device("cuda:0")
    with pytest.raises(ValueError, match="device='cuda:1': no usable CUDA device here"):
        Compute(device="cuda:1").torch_device()


def test_no_cuda_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Compute().torch_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="device='cuda:0': no usable CUDA device here; device='auto' or 'cpu'"):
        Compute(device="cuda:0").torch_device()


def test_unknown_options_name_the_nearest():
    with pytest.raises(TypeError, match="unexpected argument 'max_token'; did you mean 'max_tokens'"):
        Compute.of({"max_token": 3})
    with pytest.raises(TypeError, match="unexpected argument 'layr'; did you mean 'layer'"):
        Compute.of({"layr": "x"}, beside=("layer", "out"))
    with pytest.raises(TypeError, match="unexpected argument 'zzz'; there are device, dtype,"):
        Compute.of({"zzz": 3})
    assert Compute.of({"device": "cpu", "progress": False}) == QUIET


@pytest.fixture(scope="module")
def per_batch(model: Model) -> Model:
    """The tiny model with three batches, each with statistics of its own."""
    config = replace(model.config, input_norm="domain", n_batches=3)
    network = Network(config).eval()
    network.load_state_dict(network.state_dict() | model.network.state_dict())
    generator = torch.Generator().manual_seed(0)
    for norm in network.backbone.input_norm.norms:
        norm.running_mean.copy_(torch.randn(config.d_model, generator=generator))
        norm.running_var.copy_(0.5 + torch.rand(config.d_model, generator=generator))
    return replace(model, config=config, network=network, batches=("a", "b", "c"))


@pytest.mark.parametrize("max_tokens", [1, 90, 10**6])
def test_each_cell_is_normalised_by_its_own_batch(per_batch, rows, tokenizer, max_tokens: int):
    """Whatever cells are beside it: each alone through `encode` is the oracle."""
    codes = np.arange(23) * 7 % 3
    with torch.no_grad():
        expected = torch.cat(
            [
                per_batch.backbone.encode(
                    replace(tokenizer(rows[i]).batch(np.array([0])), batch=torch.tensor([codes[i]]))
                ).cell
                for i in range(23)
            ]
        ).numpy()
    how = {"unit_norm": False, "batches": codes, "compute": replace(QUIET, max_tokens=max_tokens)}
    found, _ = run(per_batch, rows, tokenizer, **how)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    other, _ = run(per_batch, rows, tokenizer, **how | {"batches": (codes + 1) % 3})
    assert np.abs(other - expected).max(1).min() > 1e-3


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        (None, "batches= must say which batch each row is of"),
        (np.zeros(22, np.int64), r"batches int64 \(22,\); 23 int64 numbers from 0 to 2"),
        (np.zeros(23, np.int32), r"batches int32"),
        (np.full(23, -1), "from 0 to 2"),
        (np.full(23, 3), "from 0 to 2"),
    ],
)
def test_batches_that_are_none(per_batch, rows, tokenizer, batches, said: str):
    with pytest.raises(ValueError, match=said):
        run(per_batch, rows, tokenizer, batches=batches)

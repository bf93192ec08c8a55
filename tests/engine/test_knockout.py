"""Knock-outs beside the same thing done one cell and one gene at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import sparse

from scgpt_tl.core.scgpt import Network, ScGPT
from scgpt_tl.engine.knockout import knockout_scores
from scgpt_tl.engine.predict import Compute
from scgpt_tl.models.model import load_model
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scgpt_tl.models.model import Model

QUIET = Compute(device="cpu", progress=False)
N, M = 11, 18
GROUPS = np.array([0, 2, 0, -1, 2, 2, 0, 2, 0, 0, 2])
CHOSEN = np.array([5, 0, 17, 9])


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    columns = np.random.default_rng(3).permutation(200)[:M]
    return Tokenizer(columns, model.vocab.keys, model.config.cls_id, zeros=True)


@pytest.fixture(scope="module")
def rows(toy_rows: Callable[..., sparse.csr_matrix], tokenizer: Tokenizer) -> sparse.csr_matrix:
    """Nobody of group 2 expresses the second regulator, cell 6 expresses none."""
    x = toy_rows(N, M, density=0.4).toarray()
    columns = np.searchsorted(np.sort(tokenizer.column_ids), tokenizer.column_ids)  # place of each column's gene
    x[np.ix_(GROUPS == 2, columns == 0)] = 0
    x[np.ix_([6], np.isin(columns, CHOSEN))] = 0
    return sparse.csr_matrix(x)


def run(
    network: Network, rows: sparse.csr_matrix, tokenizer: Tokenizer, *, block: int = 4, **options: Any
) -> np.ndarray:
    options = {
        "compute": QUIET,
        "groups": GROUPS,
        "n_groups": 3,
        "regulators": CHOSEN,
        "effect": "prediction",
    } | options
    blocks = ((start, rows[start : start + block]) for start in range(0, rows.shape[0], block))
    return knockout_scores(network, blocks, tokenizer, total=rows.shape[0], **options)[0]


@torch.no_grad()
def one_by_one(
    network: Network, rows: sparse.csr_matrix, tokenizer: Tokenizer, effect: str, batches: np.ndarray | None = None
) -> np.ndarray:
    """(3, M, R)."""
    changes: dict[tuple[int, int], list[np.ndarray]] = {}
    for i in np.flatnonzero(GROUPS >= 0):
        batch = tokenizer(rows[i]).batch(np.array([0]))
        if batches is not None:
            batch = replace(batch, batch=torch.from_numpy(batches[[i]]))
        before = network.backbone.encode(batch)
        for r, place in enumerate(CHOSEN):
            token = batch.gene_ids.tolist().index(int(tokenizer.genes[place]))
            if batch.values[token] == 0:
                continue
            values = batch.values.clone()
            values[token] = 0
            out = replace(batch, values=values)
            after = network.backbone.encode(out)
            if effect == "prediction":
                told = [network.heads.gene_expression(e, b).value for e, b in ((before, batch), (after, out))]
                change = (told[1] - told[0]).abs()
            else:
                change = 1 - torch.cosine_similarity(before.tokens.double(), after.tokens.double())
            changes.setdefault((int(GROUPS[i]), r), []).append(change[1:].numpy())
    found = np.full((3, M, len(CHOSEN)), np.nan)
    for (group, r), several in changes.items():
        found[group, :, r] = np.mean(several, axis=0)
    return found


@pytest.mark.parametrize("effect", ["prediction", "embedding"])
@pytest.mark.parametrize("room", [1, 2, 3])
def test_out_of_memory_halves_the_minibatch(model, rows, tokenizer, effect, room, monkeypatch, caplog):
    """Room is told in cells; a cell and its knock-outs may then lie in several minibatches."""
    expected, inner = run(model.network, rows, tokenizer, effect=effect), ScGPT.encode

    def narrow(self, batch, *rest, **options):
        if batch.n_cells > room:
            raise torch.OutOfMemoryError
        return inner(self, batch, *rest, **options)

    monkeypatch.setattr(ScGPT, "encode", narrow)
    found = run(model.network, rows, tokenizer, effect=effect)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-4)
    assert [record.message.partition(" with")[0] for record in caplog.records] == ["out of memory"]


@pytest.mark.parametrize("effect", ["prediction", "embedding"])
@pytest.mark.parametrize("max_tokens", [1, 3 * (M + 1), 7 * (M + 1), 10**6])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_scores_are_those_of_cells_and_genes_one_by_one(model, rows, tokenizer, effect, max_tokens, block):
    expected = one_by_one(model.network, rows, tokenizer, effect)
    compute = replace(QUIET, max_tokens=max_tokens)
    found = run(model.network, rows, tokenizer, effect=effect, compute=compute, block=block)
    assert found.dtype == np.float32
    assert np.nanmin(expected.max(1)) > 1e-3  # something moves
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-4)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2, :, 1]).all()
    assert np.isfinite(found[0]).all()


def test_the_cells_that_express_a_regulator_are_counted(model, rows, tokenizer):
    blocks = ((start, rows[start : start + 4]) for start in range(0, N, 4))
    how = {"groups": GROUPS, "n_groups": 3, "regulators": CHOSEN, "effect": "embedding", "compute": QUIET}
    _, found = knockout_scores(model.network, blocks, tokenizer, total=N, **how)
    columns = np.argsort(tokenizer.column_ids)[CHOSEN]
    expressed = rows.toarray()[:, columns] > 0
    np.testing.assert_array_equal(found, [expressed[group == GROUPS].sum(axis=0) for group in range(3)])
    assert found.dtype == np.int64


def test_a_change_near_nothing_keeps_its_digits(model, rows, tokenizer):
    """1 - cosine in float32 would be a multiple of 6e-8."""
    network = Network(model.config).eval()
    network.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        network.backbone.values.norm.weight *= 1e-3  # values hardly matter
    expected = one_by_one(network, rows, tokenizer, "embedding")
    found = run(network, rows, tokenizer, effect="embedding")
    others = np.delete(np.arange(M), CHOSEN)
    assert np.nanmedian(expected[:, others]) < 6e-8
    np.testing.assert_allclose(found[:, others], expected[:, others], rtol=0.1, atol=1e-13)


def test_each_cell_is_run_with_its_own_batch(model, rows, tokenizer):
    config = replace(model.config, input_norm="domain", n_batches=3, batch_in_heads=True)
    torch.manual_seed(0)
    network = Network(config).eval()
    for norm in network.backbone.input_norm.norms:
        norm.running_mean.normal_()
    codes = np.arange(N) * 7 % 3
    expected = one_by_one(network, rows, tokenizer, "prediction", codes)
    np.testing.assert_allclose(run(network, rows, tokenizer, batches=codes), expected, atol=2e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="batches= must say which batch each row is of"):
        run(network, rows, tokenizer)


@pytest.mark.gpu
@pytest.mark.parametrize("effect", ["prediction", "embedding"])
def test_a_gpu_moves_alike(model, rows, tokenizer, effect: str):
    here = run(model.network, rows, tokenizer, effect=effect)
    there = run(model.network, rows, tokenizer, effect=effect, compute=Compute(device="cuda", progress=False))
    np.testing.assert_allclose(there, here, atol=1e-4, rtol=1e-2)


def test_auto_is_never_half_precision(model, rows, tokenizer, monkeypatch):
    monkeypatch.setattr(Compute, "torch_dtype", lambda self, device: seen.append(self.dtype) or torch.float32)
    seen: list[str] = []
    run(model.network, rows, tokenizer)
    run(model.network, rows, tokenizer, compute=replace(QUIET, dtype="bfloat16"))
    assert seen == ["float32", "bfloat16"]


def test_a_network_without_the_head(model, rows, tokenizer):
    network = Network(replace(model.config, heads=("gepc",))).eval()
    with pytest.raises(ValueError, match="reads the head 'gep', and this network has gepc: take effect='embedding'"):
        run(network, rows, tokenizer)
    assert np.isfinite(run(network, rows, tokenizer, effect="embedding")[0]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"effect": "both"}, "effect='both'; give 'prediction' or 'embedding'"),
        ({"regulators": np.array([M])}, "among the genes"),
        ({"groups": GROUPS[1:]}, "11 int64 from -1 to 2"),
    ],
)
def test_what_cannot_be_is_refused(model, rows, tokenizer, wrong: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        run(model.network, rows, tokenizer, **wrong)


def test_no_cells_at_all(model, rows, tokenizer):
    assert np.isnan(run(model.network, rows, tokenizer, groups=np.full(N, -1))).all()

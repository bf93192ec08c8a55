"""Heads against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.heads import AffineHead, CellExpressionHead, ClassHead, ExpressionHead, Heads, ReverseGradient
from scgpt_tl.core.scgpt import Encoded
from scgpt_tl.tokens.batch import CellBatch

BATCH = CellBatch(
    torch.tensor([9, 0, 1, 9, 2]),
    torch.tensor([-2.0, 4.0, 0.0, -2.0, 6.0]),
    torch.tensor([0, 3, 5]),
    batch=torch.tensor([0, 2]),
    modality=torch.tensor([0, 0, 1, 0, 1]),
)
ENCODED = Encoded(torch.randn(2, 8), torch.randn(5, 8))


def heads(**options) -> Heads:
    sizes = {"n_tokens": 10, "pad_id": 8, "cls_id": 9, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8}
    return Heads(ModelConfig(**(sizes | options))).eval()


def test_gep_is_a_value_and_a_probability_per_token():
    told = ExpressionHead(8, 8, zero_probability=True)(torch.randn(5, 8))
    assert told.value.shape == told.nonzero.shape == (5,)
    assert ((told.nonzero > 0) & (told.nonzero < 1)).all()
    assert ExpressionHead(8, 8)(torch.randn(5, 8)).nonzero is None


@pytest.mark.parametrize("head", ["gep", "gepc"])
def test_a_sure_probability_is_not_rounded_to_1_in_half_precision(head: str):
    """Whose logarithm of the rest would be infinite."""
    made = ExpressionHead(8, 8, zero_probability=True)
    x = torch.randn(5, 8).abs() + 0.5
    if head == "gepc":
        made = CellExpressionHead(8, 8, zero_probability=True)
        torch.nn.init.constant_(made.nonzero.weight, 0.0)
        torch.nn.init.constant_(made.nonzero.bias, 1.0)
        asked = (torch.ones(2, 8, dtype=torch.bfloat16), x, BATCH.cell_index)  # a score of 8
    else:
        torch.nn.init.constant_(made.nonzero[-1].bias, 8.0)
        torch.nn.init.zeros_(made.nonzero[-1].weight)
        asked = (x,)
    with torch.autocast("cpu", torch.bfloat16):
        told = made(*asked).nonzero
    assert told.dtype == torch.float32
    torch.testing.assert_close(told, torch.full((5,), 8.0).sigmoid())
    assert (told < 1).all()


def test_gepc_is_equation_12():
    """q = sigmoid(W1 e_gene); the value is (W2 q) . h_cell."""
    head = CellExpressionHead(8, 8, zero_probability=True)
    cell, genes, owner = torch.randn(2, 8), torch.randn(5, 8), BATCH.cell_index
    told = head(cell, genes, owner)
    for t in range(5):
        query = torch.sigmoid(head.query.weight @ genes[t] + head.query.bias)
        torch.testing.assert_close(told.value[t], (head.bilinear.weight @ query) @ cell[owner[t]])
        expected = torch.sigmoid((head.nonzero.weight @ query + head.nonzero.bias) @ cell[owner[t]])
        torch.testing.assert_close(told.nonzero[t], expected)


def test_an_unknown_gepc_style_is_named():
    with pytest.raises(ValueError, match="'dot'; there are 'inner product'"):
        CellExpressionHead(8, 8, style="dot")


def test_class_head_has_the_layers_it_is_asked_for():
    assert len(ClassHead(8, 3, 1).body) == 0
    assert len(ClassHead(8, 3, 4).body) == 9
    assert isinstance(ClassHead(8, 3, leaky=True).body[1], torch.nn.LeakyReLU)
    assert ClassHead(8, 3)(torch.randn(4, 8)).shape == (4, 3)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_reversed_gradient(scale: float):
    x = torch.randn(4, 8, requires_grad=True)
    out = ReverseGradient.apply(x, scale)
    assert torch.equal(out, x)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(x.grad, torch.full_like(x, -scale))


def test_the_offset_adapts_to_the_mean_of_the_cells_nonzero_values():
    head = AffineHead(8, adaptive=True)
    x, values = torch.randn(5, 8), torch.tensor([3.0, 5.0, 0.0, 0.0, 6.0])
    slope, offset = head.slope(x).squeeze(-1).relu(), head.offset(x).squeeze(-1).relu()
    mean = torch.tensor([4.0, 4.0, 4.0, 6.0, 6.0])
    torch.testing.assert_close(head(x, values, BATCH).value, slope * values + offset * mean)
    empty = head(x, torch.zeros(5), BATCH).value
    assert torch.equal(empty, torch.zeros(5))


def test_plain_affine_head():
    head = AffineHead(8)
    x, values = torch.randn(5, 8), torch.rand(5)
    expected = head.slope(x).squeeze(-1) * values + head.offset(x).squeeze(-1)
    torch.testing.assert_close(head(x, values, BATCH).value, expected)


def test_batch_and_modality_join_the_heads_inputs():
    both = heads(batch_in_heads=True, n_batches=3, n_modalities=2, context_in_queries=True)
    context = both.batches(BATCH.batch)[BATCH.cell_index] + both.modalities(BATCH.modality)
    expected = both.gep(torch.cat([ENCODED.tokens, context], -1)).value
    torch.testing.assert_close(both.gene_expression(ENCODED, BATCH).value, expected)
    genes = torch.randn(5, 8)
    cell = torch.cat([ENCODED.cell, context[[0, 3]]], -1)
    expected = both.gepc(cell, torch.cat([genes, context], -1), BATCH.cell_index).value
    torch.testing.assert_close(both.cell_expression(ENCODED, BATCH, genes).value, expected)
    other = replace(BATCH, batch=torch.tensor([1, 2]))
    moved = both.gene_expression(ENCODED, other).value != both.gene_expression(ENCODED, BATCH).value
    assert moved.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("options", "lost"), [({"batch_in_heads": True, "n_batches": 3}, "batch"), ({"n_modalities": 2}, "modality")]
)
def test_heads_name_what_the_batch_lacks(options: dict, lost: str):
    with pytest.raises(ValueError, match=f"need CellBatch.{lost}"):
        heads(**options).gene_expression(ENCODED, replace(BATCH, **{lost: None}))


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match="unknown head 'mlm'; there are gep, gepc, cls, dar, perturb"):
        heads(heads=("mlm",))


def test_domain_scores_are_behind_the_reversal():
    dar = heads(heads=("dar",), n_batches=3)
    cell = torch.randn(2, 8, requires_grad=True)
    dar.domain(Encoded(cell, None)).sum().backward()
    straight = cell.detach().clone().requires_grad_()
    dar.dar(straight).sum().backward()
    torch.testing.assert_close(cell.grad, -straight.grad)


@pytest.mark.parametrize("at", [[1], [4, 0, 2], []])
@pytest.mark.parametrize("joined", [False, True])
def test_heads_asked_at_some_positions_tell_what_they_tell_of_all(joined: bool, at: list[int]):
    options = {"batch_in_heads": True, "n_batches": 3, "n_modalities": 2, "context_in_queries": True} if joined else {}
    net, index, genes = heads(zero_probability=True, **options), torch.tensor(at, dtype=torch.long), torch.randn(5, 8)
    everywhere = net.gene_expression(ENCODED, BATCH), net.cell_expression(ENCODED, BATCH, genes)
    asked = (
        net.gene_expression(ENCODED, BATCH, at=index),
        net.cell_expression(ENCODED, BATCH, genes[index], at=index),
    )
    for all_of_them, some in zip(everywhere, asked, strict=True):
        torch.testing.assert_close(some.value, all_of_them.value[index])
        torch.testing.assert_close(some.nonzero, all_of_them.nonzero[index])

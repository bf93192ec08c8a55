"""Objectives beside the published numbers and beside their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_tl import objectives
from scgpt_tl.core.heads import ClassHead, ReverseGradient
from scgpt_tl.models._names import to_ours

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


def test_gradient_of_dar_is_the_published_one():
    """`grad_in`: mean cross-entropy with the batches 0, 1, 2, 0, 1, 2, behind the gradient reversal."""
    head = ClassHead(64, 3, leaky=True)
    prefix = "sd/dab/"
    names = [n for n in GOLDEN.files if n.startswith(prefix)]
    head.load_state_dict(
        {
            to_ours(f"grad_reverse_discriminator.{n.removeprefix(prefix)}").removeprefix("heads.dar."): golden(n)
            for n in names
        },
        strict=True,
    )
    cell = golden("model/gen_cell_emb").clone().requires_grad_()
    objectives.classification(head(ReverseGradient.apply(cell, 1.0)), torch.arange(6) % 3).backward()
    torch.testing.assert_close(cell.grad, golden("out/dab/grad_in"), atol=1e-8, rtol=1e-5)


def test_gradients_of_the_published_losses_by_hand(loss_input):
    """At the published inputs: 2 (x - t) m / n, and -1 / p or 1 / (1 - p) over n."""
    predicted, prob = (loss_input[name].clone().requires_grad_() for name in ("in", "prob"))
    target, mask = loss_input["target"], loss_input["mask"]
    n = mask.sum()
    objectives.masked_mse(predicted, target, mask).backward()
    torch.testing.assert_close(predicted.grad, 2 * (loss_input["in"] - target) * mask / n)
    objectives.zero_likelihood(prob, target, mask).backward()
    p = loss_input["prob"]
    torch.testing.assert_close(prob.grad, torch.where(target > 0, -1 / p, 1 / (1 - p)) * mask / n)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    cell, other = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scores = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    label, weight = torch.tensor([0, 2, -1, 1, 2]), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    check = torch.autograd.gradcheck
    for threshold in objectives.ECS_THRESHOLDS.values():
        assert check(lambda x, beta=threshold: objectives.elastic_similarity(x, beta), (cell,))
    assert check(objectives.contrast, (cell, other))
    assert check(objectives.view_contrast, (cell, other))
    assert check(lambda x: objectives.classification(x, label), (scores,))
    assert check(lambda x: objectives.classification(x, label, weight=weight), (scores,))


def test_classification_by_hand():
    scores, label = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), torch.tensor([0, 0, -1])
    each = [float(np.log1p(np.exp(-2))), float(np.log1p(np.exp(1)))]
    assert float(objectives.classification(scores, label)) == pytest.approx(sum(each) / 2)
    for count in (10, 0.25):  # a count of weights may be below 1
        assert float(objectives.classification(scores, label, count=count)) == pytest.approx(sum(each) / count)
    weight, label = torch.tensor([0.5, 2.0]), torch.tensor([0, 1, -1])
    each[1] = float(np.log1p(np.exp(-1)))
    expected = (0.5 * each[0] + 2 * each[1]) / 2.5
    assert float(objectives.classification(scores, label, weight=weight)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [None, 0.0])
def test_nothing_asked_is_no_loss(count):
    x = torch.randn(4, 3, requires_grad=True)
    nothing = torch.zeros(4, 3, dtype=torch.bool)
    found = (
        objectives.masked_mse(x, x.detach() + 1, nothing, count=count),
        objectives.zero_likelihood(x.sigmoid(), x.detach(), nothing, count=count),
        objectives.classification(x, torch.full((4,), -1), count=count),
        objectives.masked_mse(x[:0, 0], x[:0, 0], count=count),
    )
    sum(found).backward()
    assert [float(loss.detach()) for loss in found] == [0, 0, 0, 0]
    assert torch.equal(x.grad, torch.zeros(4, 3))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**31))
def test_parts_over_one_count_add_up_to_the_whole(sizes: list[int], weighted: bool, seed: int):
    """Values and gradients: devices and passes that share a step."""
    rng = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    x = torch.randn(n, 3, generator=rng, dtype=torch.float64)
    target, mask = torch.randint(0, 3, (n,), generator=rng), torch.rand(n, generator=rng) < 0.6
    label = target.where(mask, -1)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if weighted else None
    labelled = float(mask.sum() if weight is None else weight[target[mask]].sum())

    def losses(x, rows, *, whole: bool) -> torch.Tensor:
        tokens, cells = (None, None) if whole else (float(mask.sum()), labelled)
        first = objectives.masked_mse(x[rows, 0], target[rows], mask[rows], count=tokens)
        second = objectives.zero_likelihood(x[rows, 1].sigmoid(), target[rows], mask[rows], count=tokens)
        third = objectives.classification(x[rows], label[rows], weight=weight, count=cells)
        at = rows[mask[rows]]  # asked at the hidden positions alone
        return torch.stack([first, second, third, objectives.masked_mse(x[at, 0], target[at], count=tokens)])

    together, apart = (x.clone().requires_grad_() for _ in range(2))
    expected = losses(together, torch.arange(n), whole=True)
    found = sum(losses(apart, rows, whole=False) for rows in torch.arange(n).split(sizes))
    torch.testing.assert_close(found, expected)
    for one in (found, expected):
        (one * torch.arange(1.0, 5)).sum().backward()
    torch.testing.assert_close(apart.grad, together.grad)


def test_counts_and_probabilities_keep_their_digits_in_half_precision():
    p = torch.full((1000,), 0.75, dtype=torch.bfloat16)
    found = objectives.zero_likelihood(p, torch.ones(1000), torch.ones(1000, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-np.log(0.75), rel=1e-6)


# ---- class weights


def test_class_weights_are_the_printed_equation():
    """scFoundation, "Cell type annotation": B_i = max(max A / A_i, 50), w_i = B_i / sum B."""
    counts = [1000, 100, 10, 4]
    printed = [50, 50, 100, 250]
    found = objectives.class_weights(counts)
    assert [w / sum(found) for w in found] == pytest.approx([b / sum(printed) for b in printed])
    assert sum(w * n for w, n in zip(found, counts, strict=True)) / sum(counts) == pytest.approx(1)


def test_class_weights_are_equal_up_to_fifty_to_one():
    assert objectives.class_weights([5000, 100, 3000]) == pytest.approx((1, 1, 1))
    assert objectives.class_weights([5001, 100])[1] > 1


@pytest.mark.parametrize("counts", [[], [3, 0]])
def test_a_class_without_a_cell_has_no_weight(counts: list[int]):
    with pytest.raises(ValueError, match="every class needs a cell"):
        objectives.class_weights(counts)


def test_kin_contrast_is_its_formula():
    """Khosla et al. 2020, equation 2, with partners from other batches only."""
    torch.manual_seed(0)
    cell = torch.randn(9, 5)
    kin, batch = torch.tensor([0, 0, 0, 1, 1, -1, -1, 2, 2]), torch.tensor([0, 1, 1, 0, 1, 0, 1, 0, 0])
    centred = (cell - cell.mean(0)).numpy()
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    each = []
    for i in range(9):
        partners = [p for p in range(9) if kin[p] == kin[i] >= 0 and batch[p] != batch[i]]
        others = np.log(sum(np.exp(unit[i] @ unit[j] / 0.2) for j in range(9) if j != i))
        if partners:
            each.append(np.mean([others - unit[i] @ unit[p] / 0.2 for p in partners]))
    assert len(each) == 5
    assert float(objectives.kin_contrast(cell, kin, batch, 0.2)) == pytest.approx(np.mean(each), rel=1e-5)


def test_kin_contrast_without_partners_asks_nothing():
    cell = torch.randn(4, 5, requires_grad=True)
    found = objectives.kin_contrast(cell, torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.long))
    found.backward()
    assert found.item() == 0
    assert torch.equal(cell.grad, torch.zeros(4, 5))

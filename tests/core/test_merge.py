"""The merge against the plain mask; flash attention's part of it by a stand-in, since CUDA is not everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_tl.core import merge
from scgpt_tl.core.attention import KERNELS, Layout, attend, plain
from scgpt_tl.tokens.batch import cumulative

few = settings(max_examples=40, deadline=None)
KEPT = torch.tensor(7.0)  # what a flash forward gives its backward


@st.composite
def generative(draw: st.DrawFn, *, longest: int = 9, dtype: torch.dtype = torch.float64):
    """(q, k, v, layout): cells of unequal lengths, some tokens of most unknown; queries of all tokens, or of some."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, longest), min_size=1, max_size=4)))
    if draw(st.booleans()):
        lengths = lengths[:1].repeat(len(lengths))  # equal ones take another way
    n_known = torch.tensor([draw(st.integers(1, int(n))) for n in lengths])
    if draw(st.booleans()):
        n_known = n_known.min().repeat(len(lengths))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cu_k = cumulative(lengths)
    cu_q, at = cu_k, None
    if draw(st.booleans()):
        asked = torch.rand(int(lengths.sum()), generator=seed) < draw(st.sampled_from([0.0, 0.5]))
        asked[cu_k[:-1]] = True
        at = asked.nonzero()[:, 0]
        cu_q = torch.cat([torch.zeros(1, dtype=torch.long), asked.cumsum(0)])[cu_k]
    n_q, n_k = int(cu_q[-1]), int(cu_k[-1])
    parts = [torch.randn(n, 2, 8, generator=seed, dtype=dtype) for n in (n_q, n_k, n_k)]
    return *parts, Layout(cu_q, cu_k, n_known, at)


def with_gradients(kernel: str, problem, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Context and the gradients of q, k, v under fixed weights."""
    *parts, layout = problem
    leaves = [x.clone().to(dtype or x.dtype).requires_grad_() for x in parts]
    out = KERNELS[kernel](*leaves, layout)
    (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def flash_forward(q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug):
    """What `aten._flash_attention_forward` gives, in plain math."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    assert (dropout, causal, debug) == (0.0, False, False)
    assert len(k) == len(v) == int(cu_k[-1])  # known keys alone: the cost is known x all
    lse = torch.empty(q.shape[1], len(q), dtype=q.dtype)
    out = torch.empty_like(q)
    for rows, keys in _slices(cu_q, cu_k):
        scores = torch.einsum("qhe,khe->hqk", q[rows], k[keys]) * q.shape[-1] ** -0.5
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v[keys])
    return out, lse, KEPT, KEPT + 1, None


def flash_backward(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, rng, unused):
    """What `aten._flash_attention_backward` gives: weights from the log-sum-exp handed in, delta from the context."""
    assert (dropout, causal, float(rng), float(unused)) == (0.0, False, 7.0, 8.0)
    assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    for rows, keys in _slices(cu_q, cu_k):
        weights = (torch.einsum("qhe,khe->hqk", q[rows], k[keys]) * scale - lse[:, rows, None]).exp()
        delta = (grad[rows] * out[rows]).sum(-1).T[..., None]
        d_scores = weights * (torch.einsum("qhe,khe->hqk", grad[rows], v[keys]) - delta) * scale
        dq[rows], dk[keys] = (
            torch.einsum("hqk,khe->qhe", d_scores, k[keys]),
            torch.einsum("hqk,qhe->khe", d_scores, q[rows]),
        )
        dv[keys] = torch.einsum("hqk,qhe->khe", weights, grad[rows])
    return dq, dk, dv


def _slices(cu_q, cu_k):
    for b in range(len(cu_q) - 1):
        yield slice(int(cu_q[b]), int(cu_q[b + 1])), slice(int(cu_k[b]), int(cu_k[b + 1]))


@pytest.mark.parametrize("kernel", ["merged", "flash_merged"])
def test_context_and_gradients_are_those_of_the_plain_mask(kernel: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(merge, "_flash_forward", flash_forward)
    monkeypatch.setattr(merge, "_flash_backward", flash_backward)

    @few
    @given(generative())
    def holds(problem):
        for found, expected in zip(with_gradients(kernel, problem), with_gradients("plain", problem), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)

    holds()


@few
@given(generative(longest=150, dtype=torch.float32))
def test_gradients_in_float32_are_the_plain_masks_to_1e_4(problem):
    """Relative to float64's plain mask, at lengths that fill the kernel's blocks."""
    for found, expected in zip(
        with_gradients("merged", problem), with_gradients("plain", problem, torch.float64), strict=True
    ):
        assert found.dtype == torch.float32
        assert relative(found, expected) <= 1e-4 or float(expected.norm()) < 1e-6


@few
@given(generative(longest=60, dtype=torch.bfloat16))
def test_in_half_precision_the_merge_adds_no_error_of_its_own(problem):
    exact = with_gradients("plain", problem, torch.float64)
    for found, dense, expected in zip(
        with_gradients("merged", problem), with_gradients("sdpa_padded", problem), exact, strict=True
    ):
        assert found.dtype == torch.bfloat16
        assert relative(found, expected) <= 2 * relative(dense, expected) + 5e-3 or float(expected.norm()) < 1e-2


def test_flash_attention_is_called_as_torch_declares_it():
    """The real operators on the meta device: names, places and shapes of what goes in and comes out."""
    cu = torch.tensor([0, 5, 12])
    layout = Layout(cu, cu, torch.tensor([3, 4]))
    layout.__dict__.update(known=layout.known.to("meta"), own=tuple(x.to("meta") for x in layout.own))
    q, k, v = (torch.empty(12, 4, 16, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    out = attend(q, k, v, layout, kernel="flash_merged")
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    out.sum().backward()
    assert q.grad.shape == k.grad.shape == v.grad.shape == q.shape


def test_places_of_known_keys_and_of_each_unknown_querys_own_one():
    cu = torch.tensor([0, 3, 4, 9])
    layout = Layout(cu, cu, torch.tensor([2, 1, 2]))
    assert layout.known.tolist() == [0, 1, 3, 4, 5]
    assert layout.cu_known.tolist() == [0, 2, 3, 5]
    assert [x.tolist() for x in layout.own] == [[2, 6, 7, 8], [2, 6, 7, 8]]
    alone = Layout(torch.arange(4), cu, torch.tensor([2, 1, 2]))  # <cls> is known
    assert [x.tolist() for x in alone.own] == [[], []]
    some = Layout(torch.tensor([0, 2, 3, 6]), cu, torch.tensor([2, 1, 2]), torch.tensor([0, 2, 3, 4, 6, 8]))
    assert [x.tolist() for x in some.own] == [[1, 4, 5], [2, 6, 8]]
    assert Layout(cu, cu).known.tolist() == list(range(9))


@torch.no_grad()
def test_nothing_is_kept_where_no_gradient_is_asked_for():
    torch.manual_seed(0)
    cu = torch.tensor([0, 5, 12])
    layout = Layout(cu, cu, torch.tensor([3, 4]))
    q, k, v = torch.randn(3, 12, 2, 8)
    out = attend(q, k, v, layout)
    assert not out.requires_grad
    torch.testing.assert_close(out, plain(q, k, v, layout))

"""Every kernel that runs on a CPU against `plain`, which is the definition, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_tl.core import attention
from scgpt_tl.core.attention import KERNELS, Layout, attend, choose, maps, plain, sdpa_padded, visible
from scgpt_tl.tokens.batch import cumulative

CPU = ("sdpa_slices", "sdpa_padded", "merged")
few = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw: st.DrawFn, *, every_query: bool = False):
    """(q, k, v, layout): ragged cells, any heads, some tokens unknown; queries of all tokens, or of some."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 9), min_size=1, max_size=5)))
    n_known = None
    if draw(st.booleans()):
        n_known = torch.tensor([draw(st.integers(1, int(n))) for n in lengths])
    heads, width = draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 4, 8, 16]))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cu_k = cumulative(lengths)
    cu_q, at = cu_k, None
    if not every_query and draw(st.booleans()):
        asked = torch.rand(int(cu_k[-1]), generator=seed) < draw(st.sampled_from([0.0, 0.5]))
        asked[cu_k[:-1]] = True
        at = asked.nonzero()[:, 0]
        cu_q = torch.cat([torch.zeros(1, dtype=torch.long), asked.cumsum(0)])[cu_k]
    q, k, v = (torch.randn(int(cu[-1]), heads, width, generator=seed, dtype=torch.float64) for cu in (cu_q, cu_k, cu_k))
    return q, k, v, Layout(cu_q, cu_k, n_known, at)


def by_hand(q, k, v, layout: Layout) -> torch.Tensor:
    """Token by token, from the drawing in the module's head: a second opinion on `plain`."""
    out = torch.zeros_like(q)
    for b in range(len(layout.cu_q) - 1):
        start_q, start_k = int(layout.cu_q[b]), int(layout.cu_k[b])
        n_k = int(layout.cu_k[b + 1]) - start_k
        n_known = n_k if layout.n_known is None else int(layout.n_known[b])
        for i in range(start_q, int(layout.cu_q[b + 1])):
            own = start_k + i - start_q if layout.at is None else int(layout.at[i])
            seen = [j for j in range(start_k, start_k + n_k) if j < start_k + n_known or j == own]
            for h in range(q.shape[1]):
                scores = torch.stack([q[i, h] @ k[j, h] for j in seen]) / q.shape[-1] ** 0.5
                out[i, h] = scores.softmax(0) @ v[seen, h]
    return out


@few
@given(problems())
def test_plain_is_the_drawing(problem):
    torch.testing.assert_close(plain(*problem), by_hand(*problem), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel", CPU)
def test_kernel_is_plain(kernel: str):
    @few
    @given(problems())
    def holds(problem):
        with torch.no_grad():
            torch.testing.assert_close(attend(*problem, kernel=kernel), plain(*problem), atol=1e-10, rtol=1e-10)

    holds()


@pytest.mark.parametrize("kernel", CPU)
def test_gradients_are_plains(kernel: str):
    @few
    @given(problems(), st.integers(0, 2**31))
    def holds(problem, seed: int):
        *inputs, layout = problem
        weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gradients = []
        for function in (KERNELS[kernel], plain):
            leaves = [x.clone().requires_grad_() for x in inputs]
            (function(*leaves, layout) * weights).sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        for found, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)

    holds()


@pytest.mark.parametrize("lengths", [(40, 7, 133), (64, 64)])
def test_merged_in_float32(lengths: tuple[int, ...]):
    """The tolerance that training sees: gradients to 1e-4 of their largest."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    layout = Layout(offsets, offsets, torch.tensor([n // 3 for n in lengths]))
    grads = []
    for function in (KERNELS["merged"], plain):
        torch.manual_seed(1)
        leaves = [torch.randn(sum(lengths), 4, 16).requires_grad_() for _ in range(3)]
        out = function(*leaves, layout)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@few
@given(problems(every_query=True))
def test_maps_sum_to_one_and_reproduce_the_context(problem):
    q, k, v, layout = problem
    weights = maps(q, k, layout)
    for one, seen, (qs, qe, ks, ke, _) in zip(weights, visible(layout), layout.spans, strict=True):
        assert one.shape == (q.shape[1], qe - qs, ke - ks)
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one.sum(-1)))
        assert (one[:, ~seen] == 0).all()
    context = torch.cat(
        [torch.einsum("hqk,khe->qhe", w, v[s[2] : s[3]]) for w, s in zip(weights, layout.spans, strict=True)]
    )
    torch.testing.assert_close(context, plain(q, k, v, layout))


@few
@given(problems(every_query=True), st.integers(0, 2**31))
def test_cells_do_not_see_each_other(problem, seed: int):
    """What one cell holds changes nothing in another, not by a bit."""
    q, k, v, layout = problem
    start = int(layout.cu_k[1])  # all but the first cell are replaced
    generator = torch.Generator().manual_seed(seed)
    others = [
        torch.cat([x[:start], torch.randn(x[start:].shape, generator=generator, dtype=x.dtype)]) for x in (q, k, v)
    ]
    with torch.no_grad():
        for kernel in (*CPU, "plain"):
            before, after = attend(q, k, v, layout, kernel=kernel), attend(*others, layout, kernel=kernel)
            assert torch.equal(before[:start], after[:start]), kernel


def test_what_an_unknown_gene_holds_is_not_seen_by_others():
    torch.manual_seed(0)
    offsets = torch.tensor([0, 6])
    layout = Layout(offsets, offsets, torch.tensor([4]))
    q, k, v = torch.randn(3, 6, 2, 8)
    changed = v.clone()
    changed[5] += 1
    for kernel in (*CPU, "plain"):
        before, after = attend(q, k, v, layout, kernel=kernel), attend(q, k, changed, layout, kernel=kernel)
        torch.testing.assert_close(before[:5], after[:5], msg=kernel)
        assert (before[5] != after[5]).any(), kernel


def test_dropout_takes_the_plain_kernel():
    offsets = torch.tensor([0, 5])
    layout = Layout(offsets, offsets)
    q, k, v = torch.randn(3, 5, 2, 8)
    assert choose(q, layout, 0.5) == "plain"
    torch.manual_seed(3)
    dropped = attend(q, k, v, layout, dropout=0.5)
    assert not torch.allclose(dropped, attend(q, k, v, layout))
    torch.manual_seed(3)
    assert torch.equal(dropped, attend(q, k, v, layout, dropout=0.5))


@pytest.mark.parametrize(
    ("lengths", "known", "kernel"),
    [
        ((5, 5), None, "sdpa_padded"),
        ((5, 3), None, "sdpa_slices"),
        ((5, 3), (5, 3), "sdpa_slices"),
        ((5, 3), (2, 3), "merged"),
    ],
)
def test_choice_on_a_cpu(lengths, known, kernel: str):
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    layout = Layout(offsets, offsets, None if known is None else torch.tensor(known))
    assert choose(torch.zeros(sum(lengths), 1, 4), layout) == kernel


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "unknown", "kernel"),
    [
        (torch.bfloat16, 64, (9, 0), True, "flash_merged"),
        (torch.float16, 64, (8, 0), True, "flash_merged"),
        (torch.bfloat16, 64, (9, 0), False, "torch_varlen"),
        (torch.float32, 64, (9, 0), True, "sdpa_padded"),
        (torch.bfloat16, 64, (7, 5), True, "sdpa_padded"),
        (torch.bfloat16, 20, (9, 0), True, "sdpa_padded"),
    ],
)
def test_choice_on_cuda(dtype, width, capability, unknown, kernel, monkeypatch: pytest.MonkeyPatch):
    """As a device with these traits would be answered."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "_installed", lambda module: False)
    q = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(8, 2, width))
    offsets = torch.tensor([0, 5, 8])
    assert choose(q, Layout(offsets, offsets, torch.tensor([2, 3]) if unknown else None)) == kernel
    assert choose(q, Layout(offsets, offsets), 0.1) == "plain"


@pytest.mark.parametrize("kernel", ["flash_varlen", "torch_varlen"])
def test_packed_cuda_kernels_refuse_the_generative_mask(kernel: str, monkeypatch: pytest.MonkeyPatch):
    import sys
    from types import ModuleType

    for name in ("flash_attn", "torch.nn.attention.varlen"):
        module = ModuleType(name)
        module.flash_attn_varlen_func = module.varlen_attn = None
        monkeypatch.setitem(sys.modules, name, module)
    offsets = torch.tensor([0, 5])
    with pytest.raises(ValueError, match="generative mask"):
        attend(*torch.zeros(3, 5, 1, 4), Layout(offsets, offsets, torch.tensor([2])), kernel=kernel)


def test_an_unknown_kernel_is_named():
    offsets = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"unknown attention kernel 'fast'; there are .*plain"):
        attend(*torch.zeros(3, 1, 1, 4), Layout(offsets, offsets), kernel="fast")


def test_padding_is_a_view_where_cells_are_equally_long():
    offsets = torch.tensor([0, 4, 8])
    q, k, v = torch.randn(3, 8, 2, 8)
    layout = Layout(offsets, offsets)
    torch.testing.assert_close(sdpa_padded(q, k, v, layout), plain(q, k, v, layout))

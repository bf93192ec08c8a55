"""What needs a CUDA device: its kernels against the plain one, and the CPU's embeddings against the device's."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from scgpt_tl.core.attention import Layout, attend, choose, plain
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.tokens.batch import CellBatch, cumulative

pytestmark = pytest.mark.gpu

LENGTHS = torch.tensor([1, 7, 130, 64])


def _packed(dtype: torch.dtype, *, lengths: torch.Tensor = LENGTHS) -> tuple[list[torch.Tensor], Layout]:
    torch.manual_seed(0)
    parts = [torch.randn(int(lengths.sum()), 4, 32, device="cuda", dtype=dtype) for _ in range(3)]
    cu = cumulative(lengths).cuda()
    return parts, Layout(cu, cu)


def _batch(n_tokens: int, *, known: bool = False) -> CellBatch:
    torch.manual_seed(1)
    total = int(LENGTHS.sum())
    ids, values = torch.randint(0, n_tokens - 3, (total,)), torch.randint(0, 51, (total,)).float()
    hidden = None
    if known:
        hidden = torch.cat([torch.arange(n) < 1 + n // 2 for n in LENGTHS.tolist()])
    return CellBatch(ids, values, cumulative(LENGTHS), known=hidden)


def _network() -> Network:
    torch.manual_seed(2)
    config = ModelConfig(n_tokens=203, pad_id=200, cls_id=201, d_model=128, n_heads=4, n_layers=2, flag_unknown=True)
    return Network(config).eval()


@pytest.mark.parametrize("kernel", ["torch_varlen", "flash_varlen"])
def test_half_precision_kernels_equal_plain(kernel: str):
    module = "flash_attn" if kernel == "flash_varlen" else "torch.nn.attention.varlen"
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    (q, k, v), layout = _packed(torch.bfloat16)
    expected = plain(q.float(), k.float(), v.float(), layout)
    torch.testing.assert_close(attend(q, k, v, layout, kernel=kernel).float(), expected, atol=2e-2, rtol=2e-2)


def test_padded_kernel_equals_plain():
    (q, k, v), layout = _packed(torch.float32)
    torch.testing.assert_close(
        attend(q, k, v, layout, kernel="sdpa_padded"), plain(q, k, v, layout), atol=1e-5, rtol=1e-5
    )


def _partly(layout: Layout) -> Layout:
    """Half of each cell known."""
    return Layout(layout.cu_q, layout.cu_k, (LENGTHS // 2).clamp(min=1).cuda())


def _with_gradients(kernel: str, parts: list[torch.Tensor], layout: Layout, dtype: torch.dtype) -> list[torch.Tensor]:
    leaves = [x.detach().to(dtype).requires_grad_() for x in parts]
    out = attend(*leaves, layout, kernel=kernel)
    (out.float() * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
    return [out.detach().float(), *(leaf.grad.float() for leaf in leaves)]


@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([96, 96, 96])], ids=["unequal", "equal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_merge_equals_the_plain_mask(dtype: torch.dtype, lengths: torch.Tensor):
    """Forward and gradients; the error is that of the type, as the dense mask in the same type shows it."""
    parts, layout = _packed(dtype, lengths=lengths)
    partly = Layout(layout.cu_q, layout.cu_k, (lengths // 3).clamp(min=1).cuda())
    assert choose(parts[0], partly) == "flash_merged"
    exact = _with_gradients("plain", parts, partly, torch.float32)
    dense = _with_gradients("sdpa_padded", parts, partly, dtype)
    for found, same_type, expected in zip(
        _with_gradients("flash_merged", parts, partly, dtype), dense, exact, strict=True
    ):
        own, allowed = ((x - expected).norm() / expected.norm() for x in (found, same_type))
        assert own <= 2 * allowed + 1e-3


def test_flash_merge_of_cls_alone():
    (q, k, v), layout = _packed(torch.bfloat16)
    alone = Layout(torch.arange(len(LENGTHS) + 1, device="cuda"), layout.cu_k, _partly(layout).n_known)
    first = q[layout.cu_q[:-1]]
    expected = plain(first.float(), k.float(), v.float(), alone)
    torch.testing.assert_close(
        attend(first, k, v, alone, kernel="flash_merged").float(), expected, atol=2e-2, rtol=2e-2
    )


def test_padded_is_chosen_for_unknown_tokens_in_full_precision():
    (q, k, v), layout = _packed(torch.float32)
    partly = _partly(layout)
    assert choose(q, partly) == "sdpa_padded"
    torch.testing.assert_close(attend(q, k, v, partly), plain(q, k, v, partly), atol=1e-5, rtol=1e-5)


def _loss(network: Network, batch: CellBatch) -> torch.Tensor:
    hidden = (~batch.known).nonzero().squeeze(1)
    encoded = network.backbone.encode(batch, at=hidden)
    told = network.heads.gene_expression(encoded, batch, at=hidden).value
    return (told.float() - batch.values[hidden] / 50).square().mean()


@pytest.mark.parametrize("how", ["plainly", "recomputed", "compiled"])
def test_a_generative_training_step_in_bfloat16(how: str):
    """Loss and gradients near those of float32 on the CPU."""
    network, batch = _network(), _batch(203, known=True)
    expected = _loss(network, batch)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    network.cuda().backbone.recompute = how == "recomputed"
    if how == "compiled":
        network.backbone.compile_blocks()
    with torch.autocast("cuda", torch.bfloat16):
        found = _loss(network, batch.to("cuda"))
    found.backward()
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=2e-2)
    whole, ours = (
        torch.cat([g.flatten() for g in grads])
        for grads in (
            gradients.values(),
            [p.grad.cpu() for name, p in network.named_parameters() if name in gradients],
        )
    )
    assert torch.nn.functional.cosine_similarity(whole, ours, dim=0) > 0.999


@pytest.mark.parametrize("known", [False, True])
def test_device_gives_what_the_cpu_gives(known: bool):
    network, batch = _network(), _batch(203, known=known)
    with torch.inference_mode():
        expected = network.backbone.encode(batch).cell
        found = network.cuda().backbone.encode(batch.to("cuda")).cell.cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

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


def _packed(dtype: torch.dtype, heads: int = 4, width: int = 32) -> tuple[list[torch.Tensor], Layout]:
    torch.manual_seed(0)
    parts = [torch.randn(int(LENGTHS.sum()), heads, width, device="cuda", dtype=dtype) for _ in range(3)]
    cu = cumulative(LENGTHS).cuda()
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


def test_padded_is_chosen_for_unknown_tokens():
    (q, _, _), layout = _packed(torch.bfloat16)
    partly = Layout(layout.cu_q, layout.cu_k, (LENGTHS // 2).clamp(min=1).cuda())
    assert choose(q, partly) == "sdpa_padded"


@pytest.mark.parametrize("known", [False, True])
def test_device_gives_what_the_cpu_gives(known: bool):
    network, batch = _network(), _batch(203, known=known)
    with torch.inference_mode():
        expected = network.backbone.encode(batch).cell
        found = network.cuda().backbone.encode(batch.to("cuda")).cell.cpu()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

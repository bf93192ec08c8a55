"""The generative mask at the cost of known x all: fused attention over the known keys, then each unknown's own term.

With o and l the context and log-sum-exp of a query over the known keys, and s its score with its own key,

    total = log(e^l + e^s),   p = e^(s - total),   context = (1 - p) o + p v_own

The gradient is exact and cheap. A fused backward rebuilds its weights as e^(score - log-sum-exp) and takes
rowsum(dO * O) off them; handed `total` and the merged context, it gives the known part's gradients. That of s is
p (dO . v_own - rowsum(dO * O)).

`merged` is this over any fused attention that tells its log-sum-exp: torch's on a CPU, flash attention on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tl.core.attention import Layout


class Fused(Protocol):
    """Attention of every query (Tq, H, E) over the known keys of its cell; k and v (T, H, E) hold the unknown too."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """Context (Tq, H, E), log-sum-exp (H, Tq), and whatever `backward` wants kept."""

    def backward(self, grad: Tensor, layout: Layout, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v, 0 at unknown keys; `saved`: q, k, v, context, log-sum-exp, and what was kept."""


def merged(q: Tensor, k: Tensor, v: Tensor, layout: Layout, fused: Fused) -> Tensor:
    """(Tq, H, E), (T, H, E), (T, H, E) -> (Tq, H, E)."""
    out: Tensor = _Merged.apply(q, k, v, layout, fused)
    return out


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, fused: Fused) -> Tensor:
        out, lse, *kept = fused.forward(q, k, v, layout)
        rows, keys = layout.own
        own_q, own_k, own_v, known = _rows((q, rows), (k, keys), (v, keys), (out, rows), dtype=lse.dtype)  # (U, H, E)
        own = (own_q * own_k).sum(-1) * q.shape[-1] ** -0.5  # (U, H)
        total = torch.logaddexp(lse.T[rows], own)
        p = torch.exp(own - total)[..., None]
        out.index_copy_(0, rows, torch.lerp(known, own_v, p).to(out.dtype))
        lse.index_copy_(1, rows, total.T)
        ctx.save_for_backward(p, q, k, v, out, lse, *kept)
        ctx.layout, ctx.fused = layout, fused
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        p, *saved = ctx.saved_tensors
        dq, dk, dv = ctx.fused.backward(grad, ctx.layout, *saved)
        rows, keys = ctx.layout.own
        q, k, v, out, told = _rows(*zip((*saved[:4], grad), (rows, keys, keys, rows, rows), strict=True), dtype=p.dtype)
        d_own = p * (told * (v - out)).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        dq.index_add_(0, rows, (d_own * k).to(dq.dtype))
        dk.index_copy_(0, keys, (d_own * q).to(dk.dtype))
        dv.index_copy_(0, keys, (p * told).to(dv.dtype))
        return dq, dk, dv, None, None


def _rows(*asked: tuple[Tensor, Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Some rows of each, in one type."""
    return (x.index_select(0, at).to(dtype) for x, at in asked)


# torch gives the log-sum-exp to nobody else
_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001
_flash_forward = torch.ops.aten._flash_attention_forward  # noqa: SLF001
_flash_backward = torch.ops.aten._flash_attention_backward  # noqa: SLF001


class CpuFused:
    """torch's fused attention on a CPU: one call where cells are alike, else one a cell; no mask, no padding."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        n_q, n_k, n_known = _alike(layout)
        views = (_heads(x, n) for x, n in ((q, n_q), (k, n_k), (v, n_k)))
        parts = [
            _cpu_forward(a, b[:, :, :known], c[:, :, :known])
            for a, b, c, (_, known) in zip(*views, n_known, strict=True)
        ]
        out = [part.transpose(1, 2).flatten(0, 1) for part, _ in parts]
        lse = [part.transpose(0, 1).flatten(1) for _, part in parts]  # (b, H, L) -> (H, b L)
        return (out[0], lse[0]) if len(parts) == 1 else (torch.cat(out), torch.cat(lse, 1))

    def backward(self, grad: Tensor, layout: Layout, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, lse = saved
        n_q, n_k, n_known = _alike(layout)
        gradients = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        queries, keys = (grad, q, out, lse.T[..., None], gradients[0]), (k, v, *gradients[1:])
        views = *(_heads(x, n_q) for x in queries), *(_heads(x, n_k) for x in keys)
        for g, a, o, s, dq, b, c, dk, dv, (_, n) in zip(*views, n_known, strict=True):
            found = _cpu_backward(g, a, b[:, :, :n], c[:, :, :n], o, s[..., 0], 0.0, False)
            for whole, part in zip((dq, dk[:, :, :n], dv[:, :, :n]), found, strict=True):
                whole.copy_(part)
        return gradients


class CudaFlash:
    """torch's packed flash attention (CUDA, half precision) over the known keys, gathered."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        known, places = layout.known, _packed(layout)
        out, lse, rng, unused, _ = _flash_forward(q, k[known], v[known], *places, 0.0, False, False)
        return out, lse, rng, unused

    def backward(self, grad: Tensor, layout: Layout, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, lse, rng, unused = saved
        known, places = layout.known, _packed(layout)
        dq, *parts = _flash_backward(grad, q, k[known], v[known], out, lse, *places, 0.0, False, rng, unused)
        dk, dv = (torch.zeros_like(x).index_copy_(0, known, part) for x, part in zip((k, v), parts, strict=True))
        return dq, dk, dv


def _alike(layout: Layout) -> tuple[list[tuple[int, int]], ...]:
    """Queries, keys and known keys as (cells, length) of stretches that are computed at once."""
    n_cells = len(layout.sizes[0])
    if layout.is_uniform:
        return tuple([(n_cells, size[0])] for size in layout.sizes)
    return tuple([(1, n) for n in size] for size in layout.sizes)


def _heads(x: Tensor, stretches: list[tuple[int, int]]) -> list[Tensor]:
    """(T, H, E) -> views (cells, H, length, E)."""
    parts = x.split([cells * length for cells, length in stretches])
    return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, stretches, strict=True)]


def _packed(layout: Layout) -> tuple[Tensor, Tensor, int, int]:
    """Offsets of queries and of known keys, and the longest of each, as the packed kernels take them."""
    n_q, _, n_known = layout.sizes
    return layout.cu_q.int(), layout.cu_known.int(), max(n_q), max(n_known)

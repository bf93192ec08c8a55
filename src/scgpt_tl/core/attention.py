"""One attention door: packed queries, keys and values in, packed context out.

    attend(q (Tq, H, E), k (Tk, H, E), v (Tk, H, E), layout) -> (Tq, H, E)

What a query may see (rows: queries, columns: keys, x: seen) when `n_known` is given:

              <cls>  known  unknown
    <cls>       x      x       .
    known       x      x       .
    unknown     x      x    itself

This is the generative mask of the preprint, section 4.3.2. Without `n_known` every token of a cell sees every other.
Each kernel is tested against `plain`, which is the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each cell's queries and keys lie."""

    cu_q: Tensor
    """(B + 1,) offsets of the queries."""
    cu_k: Tensor
    """(B + 1,) offsets of the keys."""
    n_known: Tensor | None = None
    """(B,) how many leading keys of each cell are known; None: all."""

    @cached_property
    def spans(self) -> list[tuple[int, int, int, int, int]]:
        """Per cell (query start, query end, key start, key end, end of the known keys)."""
        q, k = self.cu_q.tolist(), self.cu_k.tolist()
        known = self.cu_k.diff().tolist() if self.n_known is None else self.n_known.tolist()
        return [(q[b], q[b + 1], k[b], k[b + 1], k[b] + known[b]) for b in range(len(q) - 1)]

    @cached_property
    def sizes(self) -> tuple[list[int], list[int], list[int]]:
        """Per cell: queries, keys, known keys."""
        spans = self.spans
        return [b - a for a, b, *_ in spans], [d - c for _, _, c, d, _ in spans], [e - c for _, _, c, _, e in spans]

    @cached_property
    def is_uniform(self) -> bool:
        """Every cell has the same numbers of queries, keys and known keys: packed is padded."""
        return all(min(size) == max(size) for size in self.sizes)

    @property
    def has_unknown(self) -> bool:
        return self.n_known is not None and self.sizes[1] != self.sizes[2]


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, dropout: float = 0.0, kernel: str = "auto") -> Tensor:
    """Softmax attention within each cell.

    Parameters
    ----------
    q
        (Tq, H, E). With unknown tokens, either all tokens of each cell in order or known ones only.
    k, v
        (Tk, H, E).
    layout
        Where cells lie and how many of their keys are known.
    dropout
        Probability of dropping an attention weight; only `plain` has it.
    kernel
        A key of `KERNELS`, or "auto".
    """
    name = choose(q, layout, dropout) if kernel == "auto" else kernel
    if name not in KERNELS:
        msg = f"unknown attention kernel {name!r}; there are {', '.join(KERNELS)}"
        raise ValueError(msg)
    if name == "plain":
        return plain(q, k, v, layout, dropout=dropout)
    return KERNELS[name](q, k, v, layout)


def choose(q: Tensor, layout: Layout, dropout: float = 0.0) -> str:
    """The fastest kernel that this device, type and mask allow."""
    if dropout > 0:
        return "plain"
    if q.device.type == "cuda":
        half = q.dtype in (torch.float16, torch.bfloat16)
        if half and not layout.has_unknown:
            if find_spec("flash_attn"):
                return "flash_varlen"
            if find_spec("torch.nn.attention.varlen"):
                return "torch_varlen"
        return "sdpa_padded"
    if layout.has_unknown:
        return "merged"
    return "sdpa_padded" if layout.is_uniform else "sdpa_slices"


def plain(q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, dropout: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(E) + mask) v, written out: the oracle."""
    out = []
    for (_, _, ks, ke, _), weights in zip(layout.spans, maps(q, k, layout), strict=True):
        kept = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
        out.append(torch.einsum("hqk,khe->qhe", kept, v[ks:ke]))
    return torch.cat(out) if out else q.new_zeros(q.shape)


def maps(q: Tensor, k: Tensor, layout: Layout) -> list[Tensor]:
    """Attention weights of each cell, B tensors (H, queries, keys)."""
    weights = []
    for qs, qe, ks, ke, known in layout.spans:
        scores = torch.einsum("qhe,khe->hqk", q[qs:qe], k[ks:ke]) * q.shape[-1] ** -0.5
        weights.append(scores.masked_fill(~visible(qe - qs, ke - ks, known - ks, q.device), -torch.inf).softmax(-1))
    return weights


def visible(n_q: int, n_k: int, n_known: int, device: torch.device) -> Tensor:
    """(n_q, n_k) bool of the drawing above; True: the key is seen."""
    rows = torch.arange(n_q, device=device)[:, None]
    columns = torch.arange(n_k, device=device)
    return (columns < n_known) | (rows == columns)


def sdpa_slices(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """torch's fused attention over each cell's slice: no padding, one call a cell."""
    out = torch.empty_like(q) if not torch.is_grad_enabled() else None
    parts = []
    for qs, qe, ks, ke, known in layout.spans:
        mask = None if known == ke else visible(qe - qs, ke - ks, known - ks, q.device)
        one_q, one_k, one_v = (t.transpose(0, 1)[None] for t in (q[qs:qe], k[ks:ke], v[ks:ke]))  # (1, H, L, E)
        part = scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=mask)[0].transpose(0, 1)
        if out is None:
            parts.append(part)
        else:
            out[qs:qe] = part
    return torch.cat(parts) if out is None else out


def sdpa_padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """torch's fused attention over (B, H, M, E); padding is made here and nowhere else."""
    n_q, n_k, n_known = layout.sizes
    mask = None
    if not layout.is_uniform or layout.has_unknown:
        keys = torch.arange(max(n_k), device=q.device)
        rows = torch.arange(max(n_q), device=q.device)
        known = torch.tensor(n_known, device=q.device)[:, None, None]
        mask = ((keys < known) | (rows[:, None] == keys))[:, None]  # (B, 1, Mq, Mk); padded queries see themselves
    all_q, all_k, all_v = _to_padded(q, n_q), _to_padded(k, n_k), _to_padded(v, n_k)
    return _to_packed(scaled_dot_product_attention(all_q, all_k, all_v, attn_mask=mask), n_q)


def merged(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """The generative mask at the cost of known x all: fused attention over known keys, plus each unknown's own term."""
    n_q, n_k, n_known = layout.sizes
    most = max(n_known)
    mask = None
    if min(n_known) < most:
        seen = torch.arange(most, device=q.device) < torch.tensor(n_known, device=q.device)[:, None]
        mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)[:, None, None]
        mask = mask.expand(-1, 1, max(n_q), -1)
    unknown = torch.arange(max(n_q), device=q.device) >= torch.tensor(n_known, device=q.device)[:, None]  # (B, Mq)
    padded = (_to_padded(t, n) for t, n in ((q, n_q), (k, n_k), (v, n_k)))
    return _to_packed(_Merged.apply(*padded, unknown[:, None], mask, most), n_q)


# torch gives the log-sum-exp to nobody else
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


class _Merged(torch.autograd.Function):
    """Attention over the first `most` keys merged with a diagonal term by log-sum-exp, and its exact gradient.

    The fused backward, handed the merged output and log-sum-exp, returns the known part's gradients; the diagonal's is
    p (dO . v - rowsum(dO * O)).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, unknown: Tensor, mask: Tensor | None, most: int) -> Tensor:
        known_k, known_v = k[:, :, :most], v[:, :, :most]
        out, lse = _FORWARD(q, known_k, known_v, attn_mask=mask)
        rows = q.shape[2]
        own = (q * k[:, :, :rows]).sum(-1, dtype=lse.dtype) * q.shape[-1] ** -0.5  # (B, H, Mq)
        own = own.masked_fill(~unknown, -torch.inf)
        total = torch.logaddexp(lse, own)
        p = torch.exp(own - total).to(q.dtype)[..., None]
        out = out * torch.exp(lse - total).to(q.dtype)[..., None] + v[:, :, :rows] * p
        ctx.save_for_backward(q, k, v, out, total, p, mask)
        ctx.most = most
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, total, p, mask = ctx.saved_tensors
        rows, most, scale = q.shape[2], ctx.most, q.shape[-1] ** -0.5
        dq, dk_known, dv_known = _BACKWARD(
            grad, q, k[:, :, :most], v[:, :, :most], out, total, 0.0, False, attn_mask=mask
        )
        d_own = p * ((grad * v[:, :, :rows]).sum(-1, keepdim=True) - (grad * out).sum(-1, keepdim=True)) * scale
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        dk[:, :, :rows] = d_own * q
        dv[:, :, :rows] = p * grad
        dk[:, :, :most] += dk_known
        dv[:, :, :most] += dv_known
        return dq + d_own * k[:, :, :rows], dk, dv, None, None, None


def flash_varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """flash-attn's packed kernel (CUDA, half precision; extra `flash`)."""
    from flash_attn import flash_attn_varlen_func

    _refuse_unknown("flash_varlen", layout)
    n_q, n_k, _ = layout.sizes
    return flash_attn_varlen_func(q, k, v, layout.cu_q.int(), layout.cu_k.int(), max(n_q), max(n_k))


def torch_varlen(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """torch's own packed kernel (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    _refuse_unknown("torch_varlen", layout)
    n_q, n_k, _ = layout.sizes
    out: Any = varlen_attn(q, k, v, layout.cu_q.int(), layout.cu_k.int(), max(n_q), max(n_k))
    return out


KERNELS: dict[str, Callable[..., Tensor]] = {
    "flash_varlen": flash_varlen,
    "torch_varlen": torch_varlen,
    "sdpa_slices": sdpa_slices,
    "sdpa_padded": sdpa_padded,
    "merged": merged,
    "plain": plain,
}


def _refuse_unknown(name: str, layout: Layout) -> None:
    if layout.has_unknown:
        msg = f"the {name} kernel has no generative mask; use 'sdpa_padded' or 'plain'"
        raise ValueError(msg)


def _to_padded(x: Tensor, lengths: list[int]) -> Tensor:
    """(T, H, E) -> (B, H, M, E); a view where all cells are equally long."""
    most = max(lengths)
    if min(lengths) == most:
        return x.view(len(lengths), most, *x.shape[1:]).transpose(1, 2)
    cells = (pad(cell, (0, 0, 0, 0, 0, most - len(cell))) for cell in x.split(lengths))
    return torch.stack(list(cells)).transpose(1, 2)


def _to_packed(x: Tensor, lengths: list[int]) -> Tensor:
    """(B, H, M, E) -> (T, H, E)."""
    x = x.transpose(1, 2)
    if min(lengths) == x.shape[1]:
        return x.flatten(0, 1)
    return torch.cat([cell[:n] for cell, n in zip(x, lengths, strict=True)])

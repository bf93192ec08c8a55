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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.util import find_spec
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from scgpt_tl.core.dropout import drop
from scgpt_tl.core.merge import CpuFused, CudaFlash, merged

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
    at: Tensor | None = None
    """(Tq,) place of each query among the keys, rising; None: a cell's i-th query is its i-th token."""

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

    @cached_property
    def cu_known(self) -> Tensor:
        """(B + 1,) offsets of the known keys, each cell's after another's."""
        n_known = self.cu_k.diff() if self.n_known is None else self.n_known
        return torch.cat([n_known.new_zeros(1), n_known.cumsum(0)])

    @cached_property
    def known(self) -> Tensor:
        """(K,) places of the known keys."""
        cell = torch.repeat_interleave(self.cu_k.diff())  # (Tk,)
        return (torch.arange(len(cell), device=cell.device) < self._known_end[cell]).nonzero()[:, 0]

    @cached_property
    def places(self) -> Tensor:
        """(Tq,) place of each query among the keys."""
        if self.at is not None:
            return self.at
        cell = torch.repeat_interleave(self.cu_q.diff())
        return torch.arange(len(cell), device=cell.device) + (self.cu_k - self.cu_q)[cell]

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """(U,) which queries are unknown, and (U,) the key that each has to itself."""
        cell = torch.repeat_interleave(self.cu_q.diff())
        rows = (self.places >= self._known_end[cell]).nonzero()[:, 0]
        return rows, self.places[rows]

    @cached_property
    def _known_end(self) -> Tensor:
        """(B,) end of each cell's known keys."""
        return self.cu_k[1:] if self.n_known is None else self.cu_k[:-1] + self.n_known


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, dropout: float = 0.0, kernel: str = "auto") -> Tensor:
    """Softmax attention within each cell.

    Parameters
    ----------
    q
        (Tq, H, E).
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
        if not _flash_takes(q):
            return "sdpa_padded"
        if layout.has_unknown:
            return "flash_merged"
        return "flash_varlen" if _installed("flash_attn") else "torch_varlen"
    if layout.has_unknown:
        return "merged"
    return "sdpa_padded" if layout.is_uniform else "sdpa_slices"


def plain(q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, dropout: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(E) + mask) v, written out: the oracle."""
    out = []
    for (_, _, ks, ke, _), weights in zip(layout.spans, maps(q, k, layout), strict=True):
        out.append(torch.einsum("hqk,khe->qhe", drop(weights, dropout), v[ks:ke]))
    return torch.cat(out) if out else q.new_zeros(q.shape)


def maps(q: Tensor, k: Tensor, layout: Layout) -> list[Tensor]:
    """Attention weights of each cell, B tensors (H, queries, keys)."""
    weights = []
    for (qs, qe, ks, ke, _), seen in zip(layout.spans, visible(layout), strict=True):
        scores = torch.einsum("qhe,khe->hqk", q[qs:qe], k[ks:ke]) * q.shape[-1] ** -0.5
        weights.append(scores.masked_fill(~seen, -torch.inf).softmax(-1))
    return weights


def visible(layout: Layout) -> Iterator[Tensor]:
    """Of each cell, (queries, keys) bool of the drawing above; True: the key is seen."""
    for qs, qe, ks, ke, known in layout.spans:
        keys = torch.arange(ks, ke, device=layout.cu_k.device)
        yield (keys < known) | (keys == layout.places[qs:qe, None])


def sdpa_slices(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """torch's fused attention over each cell's slice: no padding, one call a cell."""
    out = torch.empty_like(q) if not torch.is_grad_enabled() else None
    parts = []
    masks = visible(layout) if layout.has_unknown else repeat(None, len(layout.spans))
    for (qs, qe, ks, ke, _), mask in zip(layout.spans, masks, strict=True):
        one_q, one_k, one_v = (t.transpose(0, 1)[None] for t in (q[qs:qe], k[ks:ke], v[ks:ke]))  # (1, H, L, E)
        part = scaled_dot_product_attention(one_q, one_k, one_v, attn_mask=mask)[0].transpose(0, 1)
        if out is None:
            parts.append(part)
        else:
            out[qs:qe] = part
    return torch.cat(parts) if out is None else out


def sdpa_padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """torch's fused attention over (B, H, M, E); padding is made here and nowhere else."""
    n_q, n_k, _ = layout.sizes
    mask = None
    if not layout.is_uniform or layout.has_unknown:
        mask = torch.zeros(len(n_q), 1, max(n_q), max(n_k), dtype=torch.bool, device=q.device)
        mask[..., 0] = True  # a query that is padding sees something too
        for cell, seen in zip(mask[:, 0], visible(layout), strict=True):
            cell[: seen.shape[0], : seen.shape[1]] = seen
    all_q, all_k, all_v = _to_padded(q, n_q), _to_padded(k, n_k), _to_padded(v, n_k)
    return _to_packed(scaled_dot_product_attention(all_q, all_k, all_v, attn_mask=mask), n_q)


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
    "merged": partial(merged, fused=CpuFused()),
    "flash_merged": partial(merged, fused=CudaFlash()),
    "plain": plain,
}


def _flash_takes(q: Tensor) -> bool:
    """Whether flash attention is in this torch and made for this device, type and width."""
    half, width = q.dtype in (torch.float16, torch.bfloat16), q.shape[-1]
    built = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    return half and width % 8 == 0 and width <= 256 and built and torch.cuda.get_device_capability(q.device) >= (8, 0)


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _refuse_unknown(name: str, layout: Layout) -> None:
    if layout.has_unknown:
        msg = f"the {name} kernel has no generative mask; use 'flash_merged' or 'plain'"
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

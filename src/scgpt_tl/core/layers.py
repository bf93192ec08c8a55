"""Transformer blocks over packed tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from scgpt_tl.core.attention import Layout, attend, maps
from scgpt_tl.core.dropout import Dropout

if TYPE_CHECKING:
    from torch import Tensor


# oneDNN's product: on processors where MKL leaves AVX-512 aside it is more than twice as fast, in the same float32
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_WIDE = 256  # it keeps memory for each shape it has met; below this width the gain is not worth that


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, by the faster library for inference in float32 on a CPU."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and len(x) > 0 and x.shape[-1] >= _WIDE
    if _ONEDNN is None or not plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    return _ONEDNN(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head self-attention within each cell."""

    def __init__(self, d_model: int, n_heads: int, *, dropout: float = 0.0, unknown_skips_projection: bool = False):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.unknown_skips_projection = unknown_skips_projection
        self.attend = attend
        self.qkv = Linear(d_model, 3 * d_model)
        self.out = Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def project(self, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> q (Tq, H, E), k and v (T, H, E); q of `rows` only where they are given."""
        if rows is None or type(self.qkv) is not Linear:  # what stands in its place (an adapter) may add to it
            q, k, v = self.qkv(x).view(len(x), 3, self.n_heads, -1).unbind(1)
            return q if rows is None else q[rows], k, v
        d = x.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = linear(x[rows], weight[:d], bias[:d]).view(len(rows), self.n_heads, -1)
        k, v = linear(x, weight[d:], bias[d:]).view(len(x), 2, self.n_heads, -1).unbind(1)
        return q, k, v

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None = None, unknown: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x, rows)
        context = self.attend(q, k, v, layout, dropout=self.dropout if self.training else 0.0).flatten(1)  # (Tq, D)
        if self.unknown_skips_projection and unknown is not None:
            return torch.where(unknown[:, None], context, self.out(context))
        return self.out(context)

    def maps(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """Attention weights of each cell, B tensors (H, L, L)."""
        return maps(*self.qk(x), layout)

    def qk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of every token, (T, H, E) each."""
        q, k, _ = self.project(x, None)
        return q, k


class Block(nn.Module):
    """Attention, then a perceptron, each with a residual; norms after both (post) or on the stream (published_pre)."""

    def __init__(self, attn: Attention, d_model: int, d_ff: int, *, dropout: float, norm_scheme: str):
        super().__init__()
        self.attn = attn
        self.up = Linear(d_model, d_ff)
        self.down = Linear(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.post = norm_scheme == "post"

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None = None, unknown: Tensor | None = None) -> Tensor:
        """(T, D) -> (Tq, D): all tokens, or `rows` of them."""
        if not self.post:
            x = self.norm1(x)
        x = self._add(x if rows is None else x[rows], self.attn(x, layout, rows, unknown))
        x = self.norm1(x) if self.post else self.norm2(x)
        hidden = self.dropout(self.up(x).relu_())
        x = self._add(x, self.down(hidden))
        return self.norm2(x) if self.post else x

    def maps(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """Attention weights that `forward` uses."""
        return self.attn.maps(x if self.post else self.norm1(x), layout)

    def qk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys that `forward` uses, of every token."""
        return self.attn.qk(x if self.post else self.norm1(x))

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        update = self.dropout(update)  # a fresh product, so that it may be written into
        return update.add_(x) if update.dtype == x.dtype else x + update  # under autocast the stream stays float32


class DomainNorm(nn.Module):
    """Batch normalisation over tokens with separate statistics per domain; each row follows its own domain.

    With one domain and `affine` it is the published `bn`; else its domain-specific one (DSBN), whose affine is off. A
    domain that has a single token in a training minibatch has no spread of its own: its running statistics serve, and
    stay as they are.
    """

    def __init__(self, d_model: int, n_domains: int, *, affine: bool, eps: float = 6.1e-5):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(d_model, eps=eps, affine=affine) for _ in range(n_domains))

    def forward(self, x: Tensor, domain: Tensor | None) -> Tensor:
        """(T, D), (T,) int64 or None -> (T, D)."""
        if len(self.norms) == 1:
            return _normed(self.norms[0], x)
        if domain is None:
            msg = "this model normalises per batch: CellBatch.batch is needed"
            raise ValueError(msg)
        out = torch.empty_like(x)
        for d in domain.unique().tolist():
            rows = domain == d
            out[rows] = _normed(self.norms[d], x[rows])
        return out


def _normed(norm: Any, x: Tensor) -> Tensor:
    """Batch normalisation; by the running statistics where there is one token."""
    if len(x) > 1 or not norm.training:
        return norm(x)
    return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

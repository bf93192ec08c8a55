"""Gene, value, label and condition encoders: what is summed into a token, equation (5) of the preprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import embedding

from scgpt_tl.core.dropout import Dropout

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_VALUE = 512.0  # the published encoder clamps here


class TableEncoder(nn.Module):
    """Embedding table, then LayerNorm: genes, batches, modalities and category values."""

    def __init__(self, n: int, d_model: int, *, padding_idx: int | None = None):
        super().__init__()
        self.table = nn.Embedding(n, d_model, padding_idx=padding_idx)
        self.norm = nn.LayerNorm(d_model)
        self.value_range = (0, n - 1)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int -> (..., D)."""
        return self.norm(self.table(ids.long()))


class ContinuousValueEncoder(nn.Module):
    """Linear, ReLU, linear, LayerNorm of one number; values above 512 count as 512."""

    def __init__(self, d_model: int, dropout: float, value_range: tuple[int, int]):
        super().__init__()
        self.linear1 = nn.Linear(1, d_model)
        self.linear2 = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)
        self.value_range = value_range

    def forward(self, values: Tensor) -> Tensor:
        """(...) float -> (..., D)."""
        if values.device.type == "cpu":
            few, which = values.unique(return_inverse=True)  # bins are few: each is encoded once
            if 2 * len(few) < values.numel():
                return self.dropout(embedding(which, self._encode(few)))
        return self.dropout(self._encode(values))

    def _encode(self, values: Tensor) -> Tensor:
        x = values.clamp(max=_LARGEST_VALUE)[..., None].to(self.linear1.weight.dtype)
        return self.norm(self.linear2(self.linear1(x).relu_()))


@dataclass(frozen=True)
class Tables:
    """Encoders run once over everything they can be asked, for inference.

    A gene's normalised embedding depends on the gene alone, and a binned value is one of few: looking both up is exact.
    """

    gene: Tensor
    """(n_tokens, D)."""
    value: Tensor | None
    """(values, D), from the lowest special value to n_bins - 1."""
    lowest: int = 0

    @classmethod
    @torch.no_grad()
    def of(cls, genes: TableEncoder, values: nn.Module) -> Tables:
        """Tables of a network in eval mode."""
        gene = genes.norm(genes.table.weight)
        if not isinstance(values, (TableEncoder, ContinuousValueEncoder)):
            return cls(gene, None)
        low, high = values.value_range
        grid = torch.arange(low, high + 1, device=gene.device, dtype=torch.float32)
        return cls(gene, values(grid), low)

    def look_up(self, gene_ids: Tensor, values: Tensor) -> Tensor:
        """(T,), (T,) -> (T, D) sum of both."""
        gene = embedding(gene_ids, self.gene)
        if self.value is None:
            return gene * values[:, None]
        return gene.add_(embedding((values - self.lowest).long(), self.value))

"""What is told from cell and token embeddings: one head per objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from scgpt_tl.core.encoders import TableEncoder

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tl.core.config import ModelConfig
    from scgpt_tl.core.scgpt import Encoded
    from scgpt_tl.tokens.batch import CellBatch


class Prediction(NamedTuple):
    """Expression predicted for each token."""

    value: Tensor
    """(T,) in bins."""
    nonzero: Tensor | None = None
    """(T,) probability that the gene is expressed, where the head has it."""


def mlp(d_in: int, d: int) -> nn.Sequential:
    """Linear, LeakyReLU twice, then one number."""
    return nn.Sequential(nn.Linear(d_in, d), nn.LeakyReLU(), nn.Linear(d, d), nn.LeakyReLU(), nn.Linear(d, 1))


class ExpressionHead(nn.Module):
    """GEP: a value per token from its embedding, equations (10) and (11)."""

    def __init__(self, d_in: int, d: int, *, zero_probability: bool = False):
        super().__init__()
        self.value = mlp(d_in, d)
        self.nonzero = mlp(d_in, d) if zero_probability else None

    def forward(self, x: Tensor) -> Prediction:
        """(T, d_in) -> (T,)."""
        nonzero = None if self.nonzero is None else self.nonzero(x).squeeze(-1).float().sigmoid()
        return Prediction(self.value(x).squeeze(-1), nonzero)


class AffineHead(nn.Module):
    """Perturbed expression as a x + b, with a and b told from each token; perturb-GEP."""

    def __init__(self, d: int, *, adaptive: bool = False):
        super().__init__()
        self.slope = mlp(d, d)
        self.offset = mlp(d, d)
        self.adaptive = adaptive

    def forward(self, x: Tensor, values: Tensor, batch: CellBatch) -> Prediction:
        """(T, D), unbinned values (T,) -> (T,). `adaptive`: a, b >= 0, b in units of the cell's mean non-zero value."""
        slope, offset = self.slope(x).squeeze(-1), self.offset(x).squeeze(-1)
        if self.adaptive:
            slope, offset = slope.relu(), offset.relu() * _mean_nonzero(values, batch)[batch.cell_index]
        return Prediction(slope * values + offset)


class CellExpressionHead(nn.Module):
    """GEPC: a value per gene from the cell embedding, equation (12)."""

    def __init__(self, d_query: int, d_cell: int, *, style: str = "inner product", zero_probability: bool = False):
        super().__init__()
        self.style = style
        hidden = 64  # the published width of the two concatenating styles
        if style == "inner product":
            self.query = nn.Linear(d_query, d_query)
            self.bilinear = nn.Linear(d_query, d_cell, bias=False)
            self.nonzero = nn.Linear(d_query, d_cell) if zero_probability else None
        elif style in ("concat query", "sum query"):
            self.query = nn.Linear(d_query, hidden if style == "concat query" else d_query)
            self.fc1 = nn.Linear(d_cell + hidden if style == "concat query" else d_cell, hidden)
            self.activation = nn.PReLU()
            self.fc2 = nn.Linear(hidden, 1)
        else:
            msg = f"unknown GEPC style {style!r}; there are 'inner product', 'concat query', 'sum query'"
            raise ValueError(msg)

    def forward(self, cell: Tensor, genes: Tensor, cell_index: Tensor) -> Prediction:
        """Cells (B, d_cell), gene embeddings (T, d_query), owner of each token (T,) -> (T,)."""
        query = self.query(genes)
        if self.style == "inner product":
            query, cell = query.sigmoid(), cell[cell_index]
            value = (self.bilinear(query) * cell).sum(-1)
            return Prediction(
                value, None if self.nonzero is None else (self.nonzero(query) * cell).sum(-1).float().sigmoid()
            )
        if self.style == "concat query":
            joint = torch.cat([cell[cell_index], query.sigmoid()], -1)
        else:
            joint = cell[cell_index] + query.sigmoid()
        return Prediction(self.fc2(self.activation(self.fc1(joint))).squeeze(-1))


class ClassHead(nn.Module):
    """CLS and DAR: class scores from a cell embedding."""

    def __init__(self, d: int, n_classes: int, n_layers: int = 3, *, leaky: bool = False):
        super().__init__()
        act = nn.LeakyReLU if leaky else nn.ReLU
        self.body = nn.Sequential(
            *(layer for _ in range(n_layers - 1) for layer in (nn.Linear(d, d), act(), nn.LayerNorm(d)))
        )
        self.out = nn.Linear(d, n_classes)

    def forward(self, cell: Tensor) -> Tensor:
        """(B, D) -> (B, n_classes) scores."""
        return self.out(self.body(cell))


class ReverseGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by -scale (Ganin and Lempitsky 2015), for DAR."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -ctx.scale * grad, None


class Heads(nn.Module):
    """The heads that a config names, and the batch and modality embeddings that join them, equations (8) and (9)."""

    gep: ExpressionHead
    gepc: CellExpressionHead
    cls: ClassHead
    dar: ClassHead
    perturb: AffineHead

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, context = config.d_model, config.d_context
        queries = d + context if config.context_in_queries else d
        zero = config.zero_probability
        self.batches = TableEncoder(config.n_batches, d) if config.batch_in_heads else None
        self.modalities = (
            TableEncoder(config.n_modalities, d, padding_idx=config.pad_modality) if config.n_modalities else None
        )
        build = {
            "gep": lambda: ExpressionHead(d + context, d, zero_probability=zero),
            "gepc": lambda: CellExpressionHead(queries, d + context, style=config.gepc_style, zero_probability=zero),
            "cls": lambda: ClassHead(d, config.n_classes, config.n_layers_cls),
            "dar": lambda: ClassHead(d, config.n_batches, leaky=True),
            "perturb": lambda: AffineHead(d, adaptive=config.adaptive_offset),
        }
        for name in config.heads:
            if name not in build:
                msg = f"unknown head {name!r}; there are {', '.join(build)}"
                raise ValueError(msg)
            self.add_module(name, build[name]())
        self.in_queries = config.context_in_queries

    def gene_expression(self, encoded: Encoded, batch: CellBatch, *, at: Tensor | None = None) -> Prediction:
        """GEP of every token, or of those `at` (M,) positions: a loss asks for the hidden ones alone."""
        tokens = _rows(_given(encoded.tokens, "the encoded tokens"), at)
        return self.gep(_join(tokens, self._context(batch, at)))

    def cell_expression(
        self, encoded: Encoded, batch: CellBatch, genes: Tensor, *, at: Tensor | None = None
    ) -> Prediction:
        """GEPC of every token, or of those `at` (M,) positions; `genes` are the gene encoder's embeddings of them."""
        cell = _join(encoded.cell, self._context(batch, batch.cls_index))
        queries = _join(genes, self._context(batch, at) if self.in_queries else None)
        return self.gepc(cell, queries, _rows(batch.cell_index, at))

    def domain(self, encoded: Encoded, scale: float = 1.0) -> Tensor:
        """DAR: (B, n_batches) scores behind gradient reversal."""
        return self.dar(ReverseGradient.apply(encoded.cell, scale))

    def _context(self, batch: CellBatch, at: Tensor | None) -> Tensor | None:
        """(T, D) sum of batch and modality embeddings, or (M, D) at some positions, or None."""
        parts = []
        if self.batches is not None:
            parts.append(self.batches(_given(batch.batch, "CellBatch.batch"))[_rows(batch.cell_index, at)])
        if self.modalities is not None:
            parts.append(self.modalities(_rows(_given(batch.modality, "CellBatch.modality"), at)))
        return sum(parts[1:], parts[0]) if parts else None


def _join(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat([x, context], -1)


def _rows(x: Tensor, at: Tensor | None) -> Tensor:
    return x if at is None else x.index_select(0, at)


def _given(x: Tensor | None, name: str) -> Tensor:
    if x is None:
        msg = f"this model's heads need {name}, which is not given"
        raise ValueError(msg)
    return x


def _mean_nonzero(values: Tensor, batch: CellBatch) -> Tensor:
    """(B,) mean of each cell's non-zero values."""
    sums = values.new_zeros(2, batch.n_cells)
    sums.index_add_(1, batch.cell_index, torch.stack([values, (values != 0).to(values.dtype)]))
    return sums[0] / sums[1].clamp(min=1)

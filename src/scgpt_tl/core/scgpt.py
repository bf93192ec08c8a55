"""The scGPT backbone: cells in, cell and token embeddings out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from scgpt_tl.core.attention import Layout, attend
from scgpt_tl.core.encoders import ContinuousValueEncoder, TableEncoder, Tables
from scgpt_tl.core.heads import Heads
from scgpt_tl.core.layers import Attention, Block, DomainNorm
from scgpt_tl.tokens.batch import cumulative

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from scgpt_tl.core.config import ModelConfig
    from scgpt_tl.tokens.batch import CellBatch


@dataclass(frozen=True)
class Encoded:
    """What a backbone tells of a batch."""

    cell: Tensor
    """(B, D) cell embeddings."""
    tokens: Tensor | None
    """(T, D) token embeddings; None where only cells were asked for, NaN where `at=` did not ask."""
    captured: dict[str, Any] = field(default_factory=dict)
    """What `capture=` asked for.

    ``layer.N`` (T, D), the output of block N; ``attention.N``, B maps (H, L, L).
    """


class ScGPT(nn.Module):
    """Transformer over the genes of a cell (preprint, sections 4.1 and 4.2)."""

    recompute: bool = False
    """Keep each block's input alone and compute it anew in the backward pass: less memory, a third more work."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        d = config.d_model
        self.genes = TableEncoder(config.n_tokens, d, padding_idx=config.pad_id)
        nn.init.uniform_(self.genes.table.weight, -0.1, 0.1)
        self.values = _value_encoder(config)
        self.conditions = nn.Embedding(config.n_conditions, d) if config.n_conditions else None
        self.flags = nn.Embedding(2, d) if config.flag_unknown else None
        self.input_norm = _input_norm(config)
        self.blocks = nn.ModuleList(
            Block(
                Attention(
                    d,
                    config.n_heads,
                    dropout=config.attn_dropout,
                    unknown_skips_projection=config.unknown_skips_projection,
                ),
                d,
                config.d_ff,
                dropout=config.dropout,
                norm_scheme=config.norm_scheme,
            )
            for _ in range(config.n_layers)
        )

    def tables(self) -> Tables:
        """Lookup tables for inference; make them once per pass and hand them to `encode`."""
        return Tables.of(self.genes, self.values)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """`torch.compile` what lies around each attention, for any number of tokens; attention is a kernel already."""
        for block in self.blocks:
            cast("Block", block).attn.attend = torch.compiler.disable(attend)
            block.compile(dynamic=True, backend=backend)

    def embed(self, batch: CellBatch, tables: Tables | None = None) -> Tensor:
        """Token inputs, equation (5): (T, D)."""
        shown = batch.values
        if batch.known is not None:
            shown = shown.masked_fill(~batch.known, self.config.mask_value)
        if tables is not None:
            x = tables.look_up(batch.gene_ids, shown)
        elif isinstance(self.values, nn.Identity):
            x = self.genes(batch.gene_ids) * shown[:, None]
        else:
            x = self.genes(batch.gene_ids) + self.values(shown)
        if self.flags is not None and batch.known is not None:
            flagged = self.genes(batch.gene_ids) + self.flags.weight[1]
            x = torch.where(batch.known[:, None], x, flagged)
        if self.conditions is not None and batch.condition is not None:
            x = x + self.conditions(batch.condition)
        if self.input_norm is not None:
            x = self.input_norm(x, None if batch.batch is None else batch.batch[batch.cell_index])
        return x

    def encode(
        self,
        batch: CellBatch,
        *,
        capture: Collection[str] = (),
        cell_only: bool = False,
        at: Tensor | None = None,
        cell_prompt: Tensor | None = None,
        tables: Tables | None = None,
    ) -> Encoded:
        """Run the transformer.

        Parameters
        ----------
        batch
            B cells, T tokens.
        capture
            Names of inner results to hand back, see `Encoded.captured`.
        cell_only
            Compute what the cell embedding needs: in the last block the query, output and perceptron of `<cls>` alone.
            Exact, and a saving of most of that block.
        at
            (M,) the tokens that will be asked for. The last block computes these and `<cls>`; other rows of
            `Encoded.tokens` are NaN.
        cell_prompt
            (B, D) put in place of the `<cls>` input (the cell-prompt pass of section 4.3.3).
        tables
            From `tables()`, for inference with integer values.
        """
        x = self.embed(batch, tables)
        if cell_prompt is not None:
            x = x.index_copy(0, batch.cls_index, cell_prompt.to(x.dtype))
        layout, unknown = _all_tokens(batch)
        last = len(self.blocks) - 1
        rows = None if f"layer.{last}" in capture else self._asked(batch, at, cell_only=cell_only)
        captured: dict[str, Any] = {}
        for i, block in enumerate(self.blocks):
            if f"attention.{i}" in capture:
                captured[f"attention.{i}"] = cast("Block", block).maps(x, layout)
            if i == last and rows is not None:
                cu_rows = cumulative(torch.bincount(batch.cell_index[rows], minlength=batch.n_cells))
                layout = replace(layout, cu_q=cu_rows, at=rows)
                unknown = None if unknown is None else unknown[rows]
            x = self._through(block, x, layout, rows if i == last else None, unknown)
            if f"layer.{i}" in capture:
                captured[f"layer.{i}"] = x
        _check_captured(capture, captured)
        if rows is not None and cell_only:
            return Encoded(x, None, captured)
        if rows is not None:
            x = x.new_full((batch.n_tokens, x.shape[1]), torch.nan).index_copy(0, rows, x)
        return Encoded(self._pool(x, batch), x, captured)

    def queries_and_keys(self, batch: CellBatch, block: int, *, tables: Tables | None = None) -> tuple[Tensor, Tensor]:
        """Those of one block, (T, H, E) each, for whoever makes its maps by parts.

        Blocks before it attend by the fused path; it goes no further itself, and blocks after it are not run.
        """
        x, (layout, unknown) = self.embed(batch, tables), _all_tokens(batch)
        for before in self.blocks[:block]:
            x = self._through(before, x, layout, None, unknown)
        return cast("Block", self.blocks[block]).qk(x)

    def _asked(self, batch: CellBatch, at: Tensor | None, *, cell_only: bool) -> Tensor | None:
        """(n,) tokens that the last block must compute, in order; None: all."""
        if self.config.cell_style != "cls" or not (cell_only or at is not None):
            return None
        return batch.cls_index if at is None or cell_only else torch.cat([batch.cls_index, at]).unique()

    def _through(
        self, block: nn.Module, x: Tensor, layout: Layout, rows: Tensor | None = None, unknown: Tensor | None = None
    ) -> Tensor:
        """One block; what dropout drops is the same when it is computed again."""
        if self.recompute and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, x, layout, rows, unknown, use_reentrant=False))
        return cast("Tensor", block(x, layout, rows, unknown))

    def _pool(self, x: Tensor, batch: CellBatch) -> Tensor:
        """(T, D) -> (B, D)."""
        if self.config.cell_style == "cls":
            return x[batch.cls_index]
        weighted = x.new_zeros(batch.n_cells, x.shape[1]).index_add_(0, batch.cell_index, x * batch.values[:, None])
        return normalize(weighted, dim=1)


class Network(nn.Module):
    """Backbone and heads: what is saved, loaded and trained."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.backbone = ScGPT(config)
        self.heads = Heads(config)


def _all_tokens(batch: CellBatch) -> tuple[Layout, Tensor | None]:
    """Where every token is a query, and (T,) bool which are unknown."""
    if batch.known is None:
        return Layout(batch.cu_seqlens, batch.cu_seqlens), None
    return Layout(batch.cu_seqlens, batch.cu_seqlens, batch.n_known), ~batch.known


def _value_encoder(config: ModelConfig) -> nn.Module:
    if config.value_style == "continuous":
        low = int(min(config.pad_value, config.mask_value, config.cls_value, 0))
        return ContinuousValueEncoder(config.d_model, config.dropout, (low, config.n_bins - 1))
    if config.value_style == "category":  # pad and mask follow the bins
        return TableEncoder(config.n_bins + 2, config.d_model, padding_idx=config.n_bins)
    return nn.Identity()


def _input_norm(config: ModelConfig) -> DomainNorm | None:
    if config.input_norm == "none":
        return None
    domains = config.n_batches if config.input_norm == "domain" else 1
    return DomainNorm(config.d_model, domains, affine=config.input_norm == "batch")


def _check_captured(asked: Collection[str], captured: dict[str, Any]) -> None:
    missing = set(asked) - set(captured)
    if missing:
        msg = f"cannot capture {sorted(missing)}; give 'layer.N' or 'attention.N' with N below the number of blocks"
        raise ValueError(msg)

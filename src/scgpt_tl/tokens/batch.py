"""`CellBatch`: what crosses from the data side to the network."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CellBatch:
    """Cells laid end to end, without padding.

    B cells hold T tokens in all; cell b owns tokens ``cu_seqlens[b]:cu_seqlens[b + 1]`` and its first token is `<cls>`.
    Where `known` is given, a cell's known tokens come first and its unknown ones after them (`corrupt` lays them so).
    """

    gene_ids: Tensor
    """(T,) int64, vocabulary ids."""
    values: Tensor
    """(T,) float32, binned values; `<cls>` carries the model's `cls_value`."""
    cu_seqlens: Tensor
    """(B + 1,) int64, cumulative cell lengths from 0 to T."""
    known: Tensor | None = None
    """(T,) bool; False: the value is to be predicted and is not shown. `<cls>` is known."""
    modality: Tensor | None = None
    """(T,) int64."""
    condition: Tensor | None = None
    """(T,) int64, e.g. perturbation flags."""
    batch: Tensor | None = None
    """(B,) int64, sequencing batch."""
    label: Tensor | None = None
    """(B,) int64."""
    depth: Tensor | None = None
    """(B,) float32, total counts."""

    def __post_init__(self) -> None:
        tokens, cells = len(self.gene_ids), len(self.cu_seqlens) - 1
        expected = dict.fromkeys(("values", "known", "modality", "condition"), tokens)
        expected |= dict.fromkeys(("batch", "label", "depth"), cells)
        for name, length in expected.items():
            found = getattr(self, name)
            if found is not None and found.shape != (length,):
                msg = f"CellBatch.{name} has shape {tuple(found.shape)}, expected ({length},)"
                raise ValueError(msg)

    @classmethod
    def from_padded(cls, gene_ids: Tensor, values: Tensor, *, pad_id: int, **per_cell: Tensor) -> CellBatch:
        """Pack a padded pair of matrices, (B, M) each; tokens equal to `pad_id` are dropped."""
        real = gene_ids != pad_id  # (B, M)
        lengths = real.sum(1)
        return cls(gene_ids[real], values[real].float(), cumulative(lengths), **per_cell)

    @property
    def n_cells(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.gene_ids)

    @cached_property
    def lengths(self) -> Tensor:
        """(B,) tokens of each cell, `<cls>` included."""
        return self.cu_seqlens.diff()

    @cached_property
    def cls_index(self) -> Tensor:
        """(B,) position of each cell's `<cls>`."""
        return self.cu_seqlens[:-1]

    @cached_property
    def cell_index(self) -> Tensor:
        """(T,) the cell that owns each token."""
        cells = torch.arange(self.n_cells, device=self.gene_ids.device)
        return torch.repeat_interleave(cells, self.lengths, output_size=self.n_tokens)

    @cached_property
    def n_known(self) -> Tensor:
        """(B,) known tokens of each cell, `<cls>` included."""
        if self.known is None:
            return self.lengths
        return torch.zeros_like(self.lengths).index_add_(0, self.cell_index, self.known.long())

    def take(self, cells: Tensor) -> tuple[CellBatch, Tensor]:
        """Some cells, (n,) int64, in the order asked for, and the tokens (T',) that they own here."""
        lengths = self.lengths[cells]
        cu = cumulative(lengths)
        starts = torch.repeat_interleave(self.cu_seqlens[cells] - cu[:-1], lengths)
        tokens = torch.arange(len(starts), device=cells.device) + starts
        per_token = ("gene_ids", "values", "known", "modality", "condition")
        per_cell = ("batch", "label", "depth")
        parts = {name: x[tokens] for name in per_token if (x := getattr(self, name)) is not None}
        parts |= {name: x[cells] for name in per_cell if (x := getattr(self, name)) is not None}
        return CellBatch(cu_seqlens=cu, **parts), tokens

    def to(self, device: torch.device | str) -> CellBatch:
        """The same cells on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if isinstance(v, torch.Tensor)}
        )


def cumulative(lengths: Tensor) -> Tensor:
    """(B,) lengths -> (B + 1,) offsets that start at 0."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

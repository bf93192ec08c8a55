"""What is hidden from the network in training.

Draws are keyed by (seed, epoch, cell, gene), like every other in this package: in whatever minibatch a cell falls, its
genes take the same order, and the ratio alone says how many of them are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from scgpt_tl._compat import jit
from scgpt_tl._random import Purpose, draw, stream_key
from scgpt_tl.pp._sort import argsort

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tl.tokens.batch import CellBatch


@dataclass(frozen=True)
class Minibatch:
    """What the network is shown, and what it is asked."""

    cells: CellBatch
    """B cells, T tokens. With `two_views`, B / 2 first views and then the second ones of the same cells."""
    target: Tensor
    """(T,) float32, binned values, hidden ones too."""
    hidden: Tensor
    """(T,) bool, positions whose value is asked for."""
    two_views: bool = False
    muted: bool = False
    """The cells are another process's, and nothing is asked of this one."""

    @property
    def n_cells(self) -> int:
        """Cells, each counted once."""
        return self.cells.n_cells // (2 if self.two_views else 1)

    def take(self, cells: Tensor) -> Minibatch:
        """Some cells, (n,) int64 below `n_cells`, with all their views."""
        if self.two_views:
            cells = torch.cat([cells, cells + self.n_cells])
        some, tokens = self.cells.take(cells)
        return replace(self, cells=some, target=self.target[tokens], hidden=self.hidden[tokens])

    def mute(self) -> Minibatch:
        """The same cells with nothing asked: for a process that has no cell of a step."""
        return replace(self, hidden=torch.zeros_like(self.hidden), muted=True)

    def to(self, device: torch.device | str) -> Minibatch:
        """The same on another device."""
        target, hidden = (t.to(device, non_blocking=True) for t in (self.target, self.hidden))
        return replace(self, cells=self.cells.to(device), target=target, hidden=hidden)


def mask_values(
    batch: CellBatch,
    keys: np.ndarray,
    gene_keys: np.ndarray,
    *,
    ratio: float,
    mask_value: float,
    seed: int = 0,
    epoch: int = 0,
) -> Minibatch:
    """Hide the values of a share of each cell's genes, which stay in sight (masked fine-tuning, section 4.5).

    int(n ratio) of a cell's n genes are hidden. `<cls>` never is; the published code hides its placeholder too, now and
    then, and asks for 0 there.

    Parameters
    ----------
    batch
        B cells.
    keys
        (B,) uint64, `TokenBlock.keys` of the cells.
    gene_keys
        (n_tokens,) uint64, `GeneVocab.keys`.
    ratio
        Share of hidden genes; 0.4 in the published fine-tuning.
    mask_value
        Shown in place of a hidden value.
    """
    stream = stream_key(seed, Purpose.MASK, epoch)
    hidden = torch.from_numpy(_masked(batch.gene_ids.numpy(), batch.cu_seqlens.numpy(), keys, gene_keys, stream, ratio))
    return Minibatch(replace(batch, values=batch.values.masked_fill(hidden, mask_value)), batch.values, hidden)


def generative_split(
    batch: CellBatch,
    keys: np.ndarray,
    gene_keys: np.ndarray,
    *,
    ratio: float,
    seed: int = 0,
    epoch: int = 0,
    complement: bool = False,
) -> Minibatch:
    """Split each cell's genes into known and unknown ones (preprint, section 4.3.2), known first.

    Parameters
    ----------
    batch
        B cells.
    keys
        (B,) uint64, `TokenBlock.keys` of the cells.
    gene_keys
        (n_tokens,) uint64, `GeneVocab.keys`.
    ratio
        Share of unknown genes. The published training draws one of 0.25, 0.5, 0.75 for each minibatch.
    complement
        Two views: after the B cells come the same with known and unknown genes exchanged, so that the two `<cls>` of a
        cell have seen disjoint halves of it.
    """
    stream = stream_key(seed, Purpose.SPLIT, epoch)
    ids, values, offsets = (t.numpy() for t in (batch.gene_ids, batch.values, batch.cu_seqlens))
    first, *other = (
        _arranged(batch, ids, values, *_split(ids, offsets, keys, gene_keys, stream, ratio, swap))
        for swap in ((False, True) if complement else (False,))
    )
    for second in other:
        cu = torch.cat([first.cu_seqlens, second.cu_seqlens[1:] + first.n_tokens])
        names = ("gene_ids", "values", "known", "modality", "condition", "batch", "label", "depth")
        both = {n: torch.cat([x, getattr(second, n)]) for n in names if (x := getattr(first, n)) is not None}
        first = replace(first, **both, cu_seqlens=cu)
    return Minibatch(first, first.values, ~cast("Tensor", first.known), two_views=complement)


def _arranged(batch: CellBatch, ids: Any, values: Any, order: Any, known: Any) -> CellBatch:
    place = torch.from_numpy(order)
    others = {name: x[place] for name in ("modality", "condition") if (x := getattr(batch, name)) is not None}
    return replace(
        batch,
        gene_ids=torch.from_numpy(ids[order]),
        values=torch.from_numpy(values[order]),
        known=torch.from_numpy(known),
        **others,
    )


@jit(nogil=True)
def _split(ids: Any, offsets: Any, keys: Any, gene_keys: Any, stream: Any, ratio: Any, swap: Any) -> tuple[Any, Any]:
    """Order (T,) that puts known genes first, and known (T,) in that order; `<cls>` stays first and known."""
    order = np.empty(len(ids), np.int64)
    known = np.zeros(len(ids), np.bool_)
    for b in range(len(offsets) - 1):
        start, end = offsets[b], offsets[b + 1]
        n = end - start - 1
        draws = np.empty(n)
        for j in range(n):
            draws[j] = draw(stream, keys[b], gene_keys[ids[start + 1 + j]])
        rank = argsort(draws)
        n_known = n - int(n * ratio)
        order[start] = start
        for j in range(n):
            order[start + 1 + j] = start + 1 + (rank[n - 1 - j] if swap else rank[j])
        known[start : start + 1 + (n - n_known if swap else n_known)] = True
    return order, known


@jit(nogil=True)
def _masked(ids: Any, offsets: Any, keys: Any, gene_keys: Any, stream: Any, ratio: Any) -> Any:
    """Hidden (T,) bool: the genes with the smallest draws of each cell, `<cls>` left out."""
    hidden = np.zeros(len(ids), np.bool_)
    for b in range(len(offsets) - 1):
        start = offsets[b] + 1
        n = offsets[b + 1] - start
        draws = np.empty(n)
        for j in range(n):
            draws[j] = draw(stream, keys[b], gene_keys[ids[start + j]])
        rank = argsort(draws)
        for j in range(int(n * ratio)):
            hidden[start + rank[j]] = True
    return hidden

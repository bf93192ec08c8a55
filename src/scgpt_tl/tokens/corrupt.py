"""What is hidden from the network in training.

Draws are keyed by (seed, epoch, cell, gene), like every other in this package: in whatever minibatch a cell falls, its
genes take the same order, and the ratio alone says how many of them are known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl._compat import jit
from scgpt_tl._random import Purpose, draw, stream_key
from scgpt_tl.pp._sort import argsort

if TYPE_CHECKING:
    from scgpt_tl.tokens.batch import CellBatch


def generative_split(
    batch: CellBatch,
    keys: np.ndarray,
    gene_keys: np.ndarray,
    *,
    ratio: float,
    seed: int = 0,
    epoch: int = 0,
    complement: bool = False,
) -> CellBatch:
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
        Return 2 B cells: after the B cells come the same with known and unknown genes exchanged, so that the two
        `<cls>` of a cell have seen disjoint halves of it.
    """
    stream = stream_key(seed, Purpose.SPLIT, epoch)
    ids, values, offsets = (t.numpy() for t in (batch.gene_ids, batch.values, batch.cu_seqlens))
    order, known = _split(ids, offsets, keys, gene_keys, stream, ratio, False)
    first = _arranged(batch, ids, values, order, known)
    if not complement:
        return first
    order, known = _split(ids, offsets, keys, gene_keys, stream, ratio, True)
    second = _arranged(batch, ids, values, order, known)
    joined = {
        name: torch.cat([getattr(first, name), getattr(second, name)]) for name in ("gene_ids", "values", "known")
    }
    cu = torch.cat([first.cu_seqlens, second.cu_seqlens[1:] + first.n_tokens])
    return replace(first, **joined, cu_seqlens=cu)


def _arranged(batch: CellBatch, ids: Any, values: Any, order: Any, known: Any) -> CellBatch:
    return replace(
        batch,
        gene_ids=torch.from_numpy(ids[order]),
        values=torch.from_numpy(values[order]),
        known=torch.from_numpy(known),
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

"""Attention between genes, ranked and averaged over heads and cells (preprint, section 4.5). Knows no AnnData."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from scgpt_tl.engine.pairs import Pairs
from scgpt_tl.engine.predict import Budget, check_batches, minibatches, placed
from scgpt_tl.engine.ranks import RankSums
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer, ahead

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from scgpt_tl.core.scgpt import ScGPT
    from scgpt_tl.engine.predict import Compute

_SCORES = 2**22  # of a map at a time: 16 MB
_LARGEST = 1e37  # what the ranking takes


def attention_scores(
    backbone: ScGPT,
    rows: Iterator[tuple[int, csr_matrix]],
    tokenizer: Tokenizer,
    *,
    groups: np.ndarray,
    n_groups: int,
    regulators: np.ndarray | None = None,
    layer: int = -1,
    compute: Compute,
    total: int,
    batches: np.ndarray | None = None,
) -> np.ndarray:
    """Rank-normalised attention of each pair of genes, averaged over the cells of each group.

    Of each cell and head the scores q k' of all M genes are taken, `<cls>` left out. The score of query i for key j is
    replaced by its rank among the scores of row i, and that by its rank among those of column j; equal ones share the
    average rank, and each rank is divided by M. The mean over heads and then over cells is returned. A map is made and
    ranked by itself, and sums of ranks are whole numbers: memory is a few M x M arrays for any number of cells and
    heads, and neither minibatches, nor the order of cells, nor threads change how ranks are added. They may change the
    last bit of q k', as any product in floating point, and so which of two scores that are equal but for rounding comes
    first. The network keeps its fused attention.

    Parameters
    ----------
    backbone
        In eval mode.
    rows
        (first row, CSR block) in order, as `Matrix.blocks` gives.
    tokenizer
        With `zeros`, and room for all of its genes: every cell shows all of them.
    groups
        (total,) int64 group of each cell; -1: left out.
    n_groups
        G.
    regulators
        (R,) places among `Tokenizer.genes`: keep these columns alone; None: all.
    layer
        Block whose attention is read; -1 is the last.
    compute
        Where and how. Maps are ranked on the CPU, by as many threads as torch has.
    total
        Cells to come.
    batches
        (total,) int64 sequencing batch of each row, for a network that normalises each apart.

    Returns
    -------
    float32 (G, M, M), or (G, M, R) with `regulators`: [group, the gene that attends (query), the gene that is attended
    to (key)], between 1 / M and 1; genes in the order of `Tokenizer.genes`. NaN for a group without cells.

    Raises
    ------
    ValueError
        No such layer; a tokenizer that leaves genes out; groups, regulators or batches that are none; scores that are
        not finite.
    """
    asked = Pairs(tokenizer, groups, n_groups, regulators, total, batches)
    check_batches(backbone, batches, total)
    number = _block(layer, len(backbone.blocks))
    threads, length = torch.get_num_threads(), asked.n_genes + 1
    with ThreadPoolExecutor(threads) as pool, placed(backbone, compute) as device, compute.bar(asked.n_cells) as bar:
        sums = RankSums(n_groups, asked.n_genes, regulators, threads, pool.map if threads > 1 else map)
        maps, tables, budget = Maps(sums), backbone.tables(), Budget(compute.tokens(backbone, device))

        def run(block: TokenBlock, start: int, cells: np.ndarray) -> list[Tensor]:
            """Queries and keys of some cells, (T, H, E) each."""
            batch = asked.batch(block, cells, start).to(device)
            return [x.cpu() for x in backbone.queries_and_keys(batch, number, tables=tables)]

        for start, block in ahead(rows, tokenizer):
            chosen = asked.chosen(block, start)
            for part in minibatches(block.lengths[chosen], budget.tokens):
                for cells, found in budget.spent(partial(run, block, start), chosen[part]):
                    each = zip(groups[cells + start].tolist(), *(x.split(length) for x in found), strict=True)
                    for group, q, k in each:
                        maps.add(q[1:], k[1:], group)  # <cls> comes first, and is no gene
                    bar.update(len(cells))
        return sums.mean()


@dataclass
class Maps:
    """Makes the maps of a cell, one at a time, and has them ranked."""

    sums: RankSums

    def __post_init__(self) -> None:
        m = self.sums.n_genes
        self._room = torch.empty(min(m, max(1, _SCORES // m)), m)

    def add(self, q: Tensor, k: Tensor, group: int) -> None:
        """Add each head's map of queries and keys (M, H, E) on the CPU."""
        q, k = (x.float().transpose(0, 1).contiguous() for x in (q, k))  # (H, M, E)
        largest = float(q.norm(dim=-1).max() * k.norm(dim=-1).max())
        if not largest < _LARGEST:
            msg = f"attention scores of up to {largest}: this network's weights are not fit for use"
            raise ValueError(msg)
        for queries, keys in zip(q, k, strict=True):
            first = 0
            for some in queries.split(len(self._room)):
                with torch.autocast("cpu", enabled=False):  # ranks want every bit there is
                    scores = torch.mm(some, keys.T, out=self._room[: len(some)])
                self.sums.add_rows(scores.numpy(), first)
                first += len(some)
            self.sums.end_map(group)


def _block(layer: int, n: int) -> int:
    if not -n <= layer < n:
        msg = f"layer={layer}: this network has {n} attention layers, 0 to {n - 1}, or from the last one -1 to {-n}"
        raise ValueError(msg)
    return layer % n

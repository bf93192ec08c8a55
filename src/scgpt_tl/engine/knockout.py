"""In-silico knock-out: set a gene to zero in the cells that express it, and see which genes move. Knows no AnnData."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from torch.nn.functional import normalize

from scgpt_tl.engine.pairs import Pairs
from scgpt_tl.engine.predict import Budget, check_batches, minibatches, placed
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer, ahead

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from scgpt_tl.core.encoders import Tables
    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine.predict import Compute
    from scgpt_tl.tokens.batch import CellBatch

Effect = Literal["prediction", "embedding"]


def knockout_scores(
    network: Network,
    rows: Iterator[tuple[int, csr_matrix]],
    tokenizer: Tokenizer,
    *,
    groups: np.ndarray,
    n_groups: int,
    regulators: np.ndarray,
    effect: Effect,
    compute: Compute,
    total: int,
    batches: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How far each gene moves where a regulator is set to zero, averaged over the cells of a group that express it.

    The regulator stays a token of the cell, in bin 0. A cell is run once as it is and once for each regulator that it
    expresses, so that time grows with their number. Changes are small beside the values: with `dtype="auto"` float32
    is computed on a GPU, too.

    Parameters
    ----------
    network
        In eval mode.
    rows, tokenizer, groups, n_groups, total, batches
        As for `attention.attention_scores`.
    regulators
        (R,) places among `Tokenizer.genes`.
    effect
        "prediction": |change| of the expression that the GEP head predicts, in bins. "embedding": 1 - cosine between
        the gene's token embedding before and after.
    compute
        Where and how.

    Returns
    -------
    float32 (G, M, R), [group, the gene that moves, the regulator], NaN where no cell of the group expresses the
    regulator; and int64 (G, R), the cells that do.

    Raises
    ------
    ValueError
        A network without the head that `effect` needs, or another effect; a tokenizer that leaves genes out; groups,
        regulators or batches that are none.
    """
    asked = Pairs(tokenizer, groups, n_groups, regulators, total, batches)
    check_batches(network.backbone, batches, total)
    _check(network, effect)
    compute = replace(compute, dtype="float32") if compute.dtype == "auto" else compute
    with placed(network, compute) as device, compute.bar(asked.n_cells) as bar:
        moved = _Moved(network, network.backbone.tables(), asked, effect, device)
        budget, length = Budget(compute.tokens(network.backbone, device)), asked.n_genes + 1
        for start, block in ahead(rows, tokenizer):
            chosen = asked.chosen(block, start)
            cells, which = _runs(block, chosen, asked.places)
            bar.update(len(chosen) - int((which < 0).sum()))  # these express no regulator
            run = partial(moved.add, block, start, cells, which)
            for runs in minibatches(np.full(len(cells), length), budget.tokens):  # equally long, so they stay in order
                for some, _ in budget.spent(run, runs):
                    bar.update(int((which[some] < 0).sum()))
        return moved.mean(), moved.counts


def _check(network: Network, effect: str) -> None:
    if effect not in ("prediction", "embedding"):
        msg = f"effect={effect!r}; give 'prediction' or 'embedding'"
        raise ValueError(msg)
    heads = network.config.heads
    if effect == "prediction" and "gep" not in heads:
        msg = (
            f"effect='prediction' reads the head 'gep', and this network has {', '.join(heads) or 'no head'}: "
            "take effect='embedding', which needs none, or another model"
        )
        raise ValueError(msg)


def _runs(block: TokenBlock, chosen: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cell of each run, and the number of the regulator that is knocked out: -1, the cell as it is, comes first.

    A cell that expresses no regulator is not run.
    """
    expressed = block.values.reshape(len(block.keys), -1)[chosen][:, places + 1] > 0  # <cls> is the first token
    cells, which = np.nonzero(np.column_stack([expressed.any(axis=1), expressed]))
    return chosen[cells], which - 1


@dataclass
class _Moved:
    """Sums of changes."""

    network: Network
    tables: Tables
    asked: Pairs
    effect: Effect
    device: torch.device
    before: Tensor | None = field(init=False, default=None)
    """(1, M, ...) what the network tells of the last cell as it is."""

    def __post_init__(self) -> None:
        shape = self.asked.n_groups, len(self.asked.places), self.asked.n_genes
        self.sums, self.counts = np.zeros(shape), np.zeros(shape[:2], np.int64)

    def add(self, block: TokenBlock, start: int, cells: np.ndarray, which: np.ndarray, runs: np.ndarray) -> None:
        """Make some of the runs. A cell's knock-outs follow it, and may lie in the next minibatches."""
        cells, which = cells[runs], which[runs]
        out = np.flatnonzero(which >= 0)
        batch = self.asked.batch(block, cells, start)
        values = batch.values.reshape(len(cells), -1).clone()
        values[out, 1 + self.asked.places[which[out]]] = 0
        told = self._tell(replace(batch, values=values.flatten()).to(self.device), len(cells))
        own = np.maximum.accumulate(np.where(which < 0, np.arange(len(which)), -1))  # the cell as it is; -1: earlier
        if len(out):
            known = told if self.before is None else torch.cat([told, self.before])  # so that -1 is the last one before
            change = self._change(told[out], known[own[out]])
            at = self.asked.groups[cells[out] + start], which[out]
            np.add.at(self.sums, at, change.cpu().numpy())
            np.add.at(self.counts, at, 1)
        if own[-1] >= 0:
            self.before = told[own[-1] :][:1].clone()

    def _tell(self, batch: CellBatch, n: int) -> Tensor:
        """(n, M) predictions, or (n, M, D) token embeddings of length 1; `<cls>` left out."""
        encoded = self.network.backbone.encode(batch, tables=self.tables)
        if self.effect == "prediction":
            return self.network.heads.gene_expression(encoded, batch).value.float().view(n, -1)[:, 1:]
        tokens = cast("Tensor", encoded.tokens)
        return normalize(tokens.float(), dim=-1).view(n, -1, tokens.shape[1])[:, 1:]

    def _change(self, after: Tensor, before: Tensor) -> Tensor:
        """(n, M)."""
        if self.effect == "prediction":
            return (after - before).abs()
        return (after - before).square().sum(-1) / 2  # 1 - cosine of unit vectors, without the loss of digits near 0

    def mean(self) -> np.ndarray:
        """(G, M, R) float32."""
        counts = self.counts[..., None]
        mean = np.divide(self.sums, counts, out=np.full(self.sums.shape, np.nan), where=counts > 0)
        return mean.transpose(0, 2, 1).astype(np.float32, order="C")

"""What the scorers of gene pairs share: which cells, in which groups, which regulators; all genes in every cell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scgpt_tl.tokens.batch import CellBatch
    from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer

ROWS = 64  # read and tokenised at a time: every gene is a token, and what waits must not outweigh a map


@dataclass(frozen=True)
class Pairs:
    """What is asked of the pairs of M genes.

    Raises
    ------
    ValueError
        A tokenizer that leaves genes out, groups or regulators that are none.
    """

    tokenizer: Tokenizer
    """With `zeros`: a cell's tokens are `<cls>` and then `Tokenizer.genes`."""
    groups: np.ndarray
    """(total,) int64 group of each cell, -1: left out."""
    n_groups: int
    regulators: np.ndarray | None
    """(R,) places among the genes; None: all."""
    total: int
    """Cells to come."""
    batches: np.ndarray | None = None
    """(total,) int64, as `embed_rows` takes them."""

    def __post_init__(self) -> None:
        m = self.n_genes
        if m < 1 or not self.tokenizer.zeros or self.tokenizer.max_length <= m:
            msg = (
                f"{m} genes, zeros={self.tokenizer.zeros}, max_length={self.tokenizer.max_length}: "
                f"every cell must show every gene, with zeros=True and a max_length of {m + 1} or more"
            )
            raise ValueError(msg)
        if (
            self.groups.shape != (self.total,)
            or self.groups.dtype != np.int64
            or not _within(self.groups, self.n_groups)
        ):
            msg = f"groups {self.groups.dtype} {self.groups.shape}; {self.total} int64 from -1 to {self.n_groups - 1}"
            raise ValueError(msg)
        if self.regulators is not None and not (len(self.regulators) and _within(self.regulators, m, lowest=0)):
            msg = f"regulators {self.regulators}; one or more places from 0 to {m - 1} among the genes are needed"
            raise ValueError(msg)

    @property
    def n_genes(self) -> int:
        """M."""
        return len(self.tokenizer.genes)

    @property
    def places(self) -> np.ndarray:
        """(R,) int64 regulators among the genes."""
        return np.arange(self.n_genes) if self.regulators is None else np.asarray(self.regulators, np.int64)

    @property
    def n_cells(self) -> int:
        """Cells that are in a group."""
        return int((self.groups >= 0).sum())

    def chosen(self, block: TokenBlock, start: int) -> np.ndarray:
        """(n,) cells of a block that are in a group."""
        return np.flatnonzero(self.groups[start : start + len(block.keys)] >= 0)

    def batch(self, block: TokenBlock, cells: np.ndarray, start: int) -> CellBatch:
        """Cells of a block that begins with row `start`."""
        batch = block.batch(cells)
        return batch if self.batches is None else replace(batch, batch=torch.from_numpy(self.batches[cells + start]))


def _within(numbers: np.ndarray, n: int, *, lowest: int = -1) -> bool:
    return not len(numbers) or (lowest <= int(numbers.min()) and int(numbers.max()) < n)

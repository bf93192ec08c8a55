"""A corpus of studies, and its minibatches.

    studies (CSR rows in memory) -> plan of an epoch: a `Draw` per minibatch -> tokenise -> hide -> CellBatch

The plan is a function of (seed, epoch), so a resumed run meets the same minibatches. A minibatch holds cells of one
study: what tells two of its cells apart is then biology, not the laboratory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset, Sampler

from scgpt_tl._random import Purpose, mix_words, name_keys, stream_key
from scgpt_tl.tokens.corrupt import generative_split

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from scgpt_tl.engine.recipes import Recipe
    from scgpt_tl.tokens.batch import CellBatch
    from scgpt_tl.tokens.tokenize import Tokenizer

_HELD_OUT = np.uint64(0xFFFF)  # an epoch number of its own for the choice of held-out cells


@dataclass(frozen=True)
class Study:
    """One data set of a corpus."""

    name: str
    rows: csr_matrix
    """(n_obs, n_vars) counts."""
    tokenizer: Tokenizer

    @cached_property
    def keys(self) -> np.ndarray:
        """(n_obs,) uint64, tells rows of all studies apart, equal cells too."""
        return mix_words(np.arange(self.rows.shape[0], dtype=np.uint64), name_keys([self.name])[0])


@dataclass(frozen=True)
class Draw:
    """One minibatch of the plan."""

    study: int
    rows: np.ndarray
    ratio: float
    epoch: int


class Plan(Sampler[Draw]):
    """The minibatches of an epoch, shuffled; Lightning calls `set_epoch`."""

    def __init__(self, studies: list[Study], *, cells: int, recipe: Recipe, seed: int, held_out: float, training: bool):
        self.studies, self.cells, self.recipe, self.seed = studies, cells, recipe, seed
        self.held_out, self.training = held_out, training
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration plans; validation is the same in all."""
        self.epoch = epoch if self.training else 0

    def __len__(self) -> int:
        return sum(-(-len(self._members(study)) // self.cells) for study in self.studies)

    def __iter__(self) -> Iterator[Draw]:
        stream = stream_key(self.seed, Purpose.SHUFFLE, self.epoch)
        draws = []
        for s, study in enumerate(self.studies):
            rows = self._members(study)
            order = rows[np.argsort(mix_words(study.keys[rows], stream))]
            parts = np.array_split(order, -(-len(order) // self.cells)) if len(order) else []
            draws += [(s, part) for part in parts]
        ranks = mix_words(np.arange(len(draws), dtype=np.uint64), stream)
        for position in np.argsort(ranks):
            s, rows = draws[position]
            ratio = self.recipe.ratios[int(ranks[position] % np.uint64(len(self.recipe.ratios)))]
            yield Draw(s, rows, ratio, self.epoch)

    def _members(self, study: Study) -> np.ndarray:
        """Rows that train, or those held out."""
        share = mix_words(study.keys, stream_key(self.seed, Purpose.SHUFFLE, _HELD_OUT)) / 2.0**64
        return np.flatnonzero((share >= self.held_out) == self.training)


class Minibatches(Dataset["CellBatch"]):
    """Draw -> CellBatch."""

    def __init__(self, studies: list[Study], recipe: Recipe, seed: int):
        self.studies, self.recipe, self.seed = studies, recipe, seed

    def __getitem__(self, draw: Draw) -> CellBatch:
        study = self.studies[draw.study]
        block = study.tokenizer(study.rows[draw.rows], epoch=draw.epoch, sources=study.keys[draw.rows])
        return generative_split(
            block.batch(np.arange(len(draw.rows))),
            block.keys,
            study.tokenizer.gene_keys,
            ratio=draw.ratio,
            seed=self.seed,
            epoch=draw.epoch,
            complement=self.recipe.two_views,
        )

"""The minibatches of an epoch, from studies that together may be larger than memory.

    1. rows of all studies -> runs of consecutive rows -> all runs in an order drawn anew each epoch
    2. runs, one after the other -> pools, each small enough for memory
    3. a pool's rows, shuffled -> minibatches of one study each -> shuffled among themselves      (`Plan` ends here)
    4. rows read in the order of the file, a pool ahead -> tokens -> what the caller makes of them, a few ahead

A minibatch holds cells of one study: what tells two of its cells apart is then biology, not the laboratory. The plan is
a function of (seed, epoch, studies): of no storage, process, thread or starting position, so that a run which was cut
off goes on with the same minibatches. A corpus that fits one pool is shuffled as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scgpt_tl._random import Purpose, mix_words, stream_key

if TYPE_CHECKING:
    from scipy import sparse

    from scgpt_tl.engine.study import Study
    from scgpt_tl.tokens.tokenize import TokenBlock

T = TypeVar("T")

POOL = 16_384  # cells shuffled together: 130 MB where they express a thousand genes each
_RUN = 128  # rows read at once: long enough for a call into a file, short enough for a pool to hold many
_AHEAD = 8  # minibatches made ahead
_MOST_OPEN = 128  # files; a process may often have a thousand
_HELD_OUT = np.uint64(0xFFFF)  # an epoch number of its own for the choice of held-out cells
_RUNS, _ROWS, _STEPS, _TIMES = range(4)  # what a word of an epoch's plan is drawn for


@dataclass(frozen=True)
class Draw:
    """One minibatch of the plan."""

    study: int
    rows: np.ndarray
    """(B,) rows of the study's matrix."""
    ratio: float
    """Share of unknown genes."""
    epoch: int
    weight: float = 1.0
    """0: the row is another process's, shown to one that has none of its own."""


class Plan:
    """Which cells are shown together, and in which order.

    Parameters
    ----------
    studies
        The corpus.
    cells
        Most cells of a minibatch.
    ratios
        Of unknown genes, one drawn for each minibatch.
    seed
        Of all draws.
    held_out
        Share of cells that do not train.
    training
        Plan the cells that train, each by its study's weight; else those held out, once each, the same in all epochs.
    pool
        Cells that are in memory together and shuffled as a whole.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        *,
        cells: int,
        ratios: Sequence[float],
        seed: int,
        held_out: float,
        training: bool,
        pool: int = POOL,
    ):
        self.studies, self.cells, self.ratios, self.seed = studies, cells, tuple(ratios) or (0.0,), seed
        self.held_out, self.training, self.pool = held_out, training, pool

    def epoch(self, number: int) -> Epoch:
        """One pass over the cells."""
        return Epoch(self, number if self.training else 0)

    def words(self, what: int, number: int, keys: np.ndarray) -> np.ndarray:
        """(n,) uint64 drawn in an epoch for `keys` (n,)."""
        return mix_words(keys, stream_key(stream_key(self.seed, Purpose.SHUFFLE, number), Purpose.SHUFFLE, what))

    def rounds(self, study: Study, number: int) -> list[np.ndarray]:
        """Rows of a study that an epoch shows; those shown again, a third time, ..., where its weight is above 1."""
        if study.weight == 0:
            return []
        share = mix_words(study.keys, stream_key(self.seed, Purpose.SHUFFLE, _HELD_OUT)) / 2.0**64
        rows = np.flatnonzero((share >= self.held_out) == self.training)
        whole, part = divmod(study.weight if self.training else 1, 1)
        found = [rows] * int(whole)
        if part:
            found.append(rows[self.words(_TIMES, number, study.keys[rows]) / 2.0**64 < part])
        return [rows for rows in found if len(rows)]


class Epoch:
    """The minibatches of one pass, `len()` of them. Held as runs of rows; minibatches are made a pool at a time."""

    def __init__(self, plan: Plan, number: int):
        self.plan, self.number = plan, number
        rounds = [(s, r, x) for s, study in enumerate(plan.studies) for r, x in enumerate(plan.rounds(study, number))]
        run = max(1, min(max(_RUN, plan.cells), plan.pool // 8))
        cuts, owners = [np.zeros(1, np.int64)], [np.empty((0, 2), np.int64)]
        for s, r, rows in rounds:
            n = -(-len(rows) // run)
            cuts.append(cuts[-1][-1] + np.arange(1, n + 1) * len(rows) // n)  # runs differ by one row at most
            owners.append(np.tile([s, r], (n, 1)))
        bounds, owner = np.concatenate(cuts), np.concatenate(owners)
        order = np.argsort(plan.words(_RUNS, number, np.arange(len(owner), dtype=np.uint64)))
        self.n_cells = int(bounds[-1])
        self._rows = np.concatenate([np.empty(0, np.int64), *(rows for *_, rows in rounds)])
        #: Of each run, in the order drawn: where its rows lie in `_rows`, how many; its study, and which round.
        self._starts, self._sizes, self._owners = bounds[:-1][order], np.diff(bounds)[order], owner[order]
        self._pools, self._steps = self._cuts(run)

    def _cuts(self, run: int) -> tuple[np.ndarray, np.ndarray]:
        """First run and first minibatch of each pool (n_pools + 1,)."""
        # of about one size, none larger than asked for: the run that begins last in a pool may reach over its share
        room = self.plan.pool if self.n_cells <= self.plan.pool else max(1, self.plan.pool - run)
        before = np.cumsum(self._sizes) - self._sizes
        pools = np.unique(before * -(-self.n_cells // room) // max(1, self.n_cells), return_index=True)[1]
        ends = np.append(pools, len(before))
        steps = [0]
        for first, last in pairwise(ends.tolist()):
            cells = np.bincount(self._owners[first:last, 0], self._sizes[first:last])
            steps.append(steps[-1] + int(np.ceil(cells / self.plan.cells).sum()))
        return ends, np.array(steps)

    def __len__(self) -> int:
        return int(self._steps[-1])

    @cached_property
    def draws(self) -> list[Draw]:
        """All minibatches in their order."""
        return [draw for pool in self.pools() for draw in pool]

    def pools(self, start: int = 0) -> Iterator[list[Draw]]:
        """Minibatches from number `start` on, those of a pool together."""
        for p, (first, last) in enumerate(pairwise(self._steps.tolist())):
            if last > start:
                yield self._pool(p)[max(0, start - first) :]

    def _pool(self, p: int) -> list[Draw]:
        plan, runs = self.plan, slice(*self._pools[p : p + 2])
        sizes = self._sizes[runs]
        places = np.repeat(self._starts[runs] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        rows, owners = self._rows[places], np.repeat(self._owners[runs], sizes, axis=0)
        groups: list[tuple[int, np.ndarray]] = []
        for s in np.unique(owners[:, 0]).tolist():
            mine = owners[:, 0] == s
            words = plan.words(_ROWS, self.number, plan.studies[s].keys[rows[mine]])
            order = np.lexsort((words, owners[mine, 1]))  # a cell shown twice is seldom twice in a minibatch
            parts = -(-len(order) // plan.cells)
            groups += [(s, part) for part in np.array_split(rows[mine][order], parts)]
        words = plan.words(_STEPS, self.number, np.arange(self._steps[p], self._steps[p + 1]).astype(np.uint64))
        which = (words % np.uint64(len(plan.ratios))).tolist()
        return [Draw(groups[i][0], groups[i][1], plan.ratios[which[i]], self.number) for i in np.argsort(words)]


def feed(
    epoch: Epoch,
    studies: Sequence[Study],
    prepare: Callable[[Study, TokenBlock, Draw], T],
    *,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Generator[tuple[Draw, T]]:
    """Minibatches of an epoch, read and made ahead in threads; at most two pools of rows are in memory.

    Parameters
    ----------
    epoch
        Which rows.
    studies
        Those that were planned.
    prepare
        Makes a minibatch of tokens; called in a thread.
    start
        Steps to leave out.
    rank, world
        This process and the number of processes that share each minibatch: every `world`-th row is this one's. One
        that is left without a row gets the first, and a `Draw` of weight 0.

    Raises
    ------
    OSError
        Rows cannot be read; the message names study and file.
    ValueError
        Negative or non-finite values.

    Notes
    -----
    Closing the generator stops the threads, once the read that is under way has ended.
    """

    def minibatches() -> Generator[tuple[Draw, T]]:
        for draws, rows in _ahead(_pools(epoch, studies, start, rank, world), 1):
            for draw in draws:
                study = studies[draw.study]
                sources = study.keys[draw.rows]
                block = study.tokenizer(rows[draw.study].take(draw.rows), epoch=draw.epoch, sources=sources)
                yield draw, prepare(study, block, draw)
            del rows  # before the next pool is waited for

    return _ahead(minibatches(), _AHEAD)


@dataclass(frozen=True)
class _Rows:
    """Rows of one study that a pool needs."""

    numbers: np.ndarray
    """(n,) sorted."""
    counts: sparse.csr_matrix

    def take(self, rows: np.ndarray) -> sparse.csr_matrix:
        """In the order asked for."""
        return self.counts[np.searchsorted(self.numbers, rows)]


def _pools(
    epoch: Epoch, studies: Sequence[Study], start: int, rank: int, world: int
) -> Generator[tuple[list[Draw], dict[int, _Rows]]]:
    """A pool's minibatches, as far as they are this process's, and the rows that they need, by study."""
    for pool in epoch.pools(start):
        draws = [_share(draw, rank, world) for draw in pool]
        parts: dict[int, list[np.ndarray]] = {}
        for draw in draws:
            parts.setdefault(draw.study, []).append(draw.rows)
        rows = {}
        for s in parts:
            numbers = np.unique(np.concatenate(parts[s]))  # in the order of the file
            rows[s] = _Rows(numbers, studies[s].take(numbers))
            if len(studies) > _MOST_OPEN:
                studies[s].close()
        yield draws, rows
        del rows  # before the next pool is read


def _share(draw: Draw, rank: int, world: int) -> Draw:
    rows = draw.rows[rank::world]
    return replace(draw, rows=rows) if len(rows) else replace(draw, rows=draw.rows[:1], weight=0.0)


def _ahead(items: Generator[T], n: int) -> Generator[T]:
    """The same items, n of them made ahead in a thread, which ends with the generator."""
    end: Any = object()
    worker = ThreadPoolExecutor(1)
    try:
        waiting = deque([worker.submit(next, items, end) for _ in range(n)])
        while (item := waiting.popleft().result()) is not end:
            waiting.append(worker.submit(next, items, end))
            yield item
    finally:
        worker.shutdown(cancel_futures=True)
        items.close()

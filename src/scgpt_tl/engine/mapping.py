"""From neighbours to a label, how sure it is, and whether the cell is like any of the reference at all.

a sample of the reference, each cell asked about as if it were new
  (itself left out, or its whole batch where batches are known)
  -> its neighbours, kept with the reference for any k
  -> temperature and prior of the votes that make its own label likeliest; how far cells lie from others of a label
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from scgpt_tl._random import Purpose, mix_words, stream_key
from scgpt_tl.engine.neighbors import Rows, label_votes, nearest, vote
from scgpt_tl.engine.twins import as_groups, seen

logger = logging.getLogger(__name__)

#: Neighbours that are kept for each cell of a sample, and the largest k.
KEPT = 50
#: Share of the reference's own cells that lie nearer than the distance beyond which a cell is unknown.
QUANTILE = 0.99
_SAMPLED = 2000  # cells
_NEAR = 5  # neighbours over which the distance of a cell is averaged
_ENOUGH = 20  # sampled cells that give a label a threshold of its own
_WARMTH = 2.0 ** np.arange(-3, 4)  # temperatures tried, in units of the usual spread among k neighbours
_PRIORS = 2.0 ** np.arange(-5, 4)


@dataclass(frozen=True)
class Sample:
    """Cells of a reference and their neighbours among the others."""

    distances: np.ndarray
    """(s, K) float32, ascending; infinite where a cell has fewer neighbours."""
    labels: np.ndarray
    """(s, K) int32 codes of the neighbours, -1 where there is none."""
    codes: np.ndarray
    """(s,) int32 the cells' own."""

    @classmethod
    def take(
        cls, embedding: Rows, codes: np.ndarray, batches: np.ndarray | None, *, keys: np.ndarray, seed: int
    ) -> Sample:
        """Look at up to 2,000 labelled cells, the same ones for the same cells and seed, in any order.

        Parameters
        ----------
        embedding
            (n, D).
        codes
            (n,) labels, -1: none, not looked at and no neighbour.
        batches
            (n,) batch of each cell: neighbours are of other batches, and cells whose label lies in one batch alone are
            not asked about. None, or where that leaves none: any cell but itself.
        keys
            (n,) uint64 `twins.content_keys`; cells with a cell's own key are no neighbours of it.
        seed
            Of the choice.
        """
        labelled = askable = codes >= 0
        if batches is not None and not (askable := _in_several(codes, batches)).any():
            logger.warning("no type lies in two batches: how new ones will differ cannot be judged, each cell is left "
                           "out alone")  # fmt: skip
            askable, batches = labelled, None
        elif left := len(np.unique(codes[labelled & ~askable])):
            logger.warning("%s types lie in one batch alone: all cells' distances decide who is unknown to them", left)
        asked = np.flatnonzero(askable)
        words = mix_words(keys[asked], stream_key(seed, Purpose.SPLIT, 0))
        rows = asked[np.argsort(words, kind="stable")[:_SAMPLED]]
        mine, theirs = [as_groups(keys[rows])], [seen(keys, codes)]
        if batches is not None:
            mine, theirs = [*mine, batches[rows]], [*theirs, seen(batches, codes)]
        cells = np.concatenate([np.empty((0, embedding.shape[1]), np.float32), *_rows(embedding, rows)])
        k = min(KEPT, max(1, int(labelled.sum()) - 1))
        groups = np.stack(mine, axis=1), np.stack(theirs, axis=1)
        distances, found = nearest(cells, embedding, k, own=rows, groups=groups)
        if not np.isfinite(distances).any():
            logger.warning("no cell of the reference has another to be compared with: no cell will be called unknown")
        return cls(distances, label_votes(codes, found).astype(np.int32), codes[rows].astype(np.int32))


def _in_several(codes: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """(n,) bool: cells with a label that lies in two batches or more."""
    labelled, n = codes >= 0, int(batches.max(initial=0)) + 1
    pairs = np.unique(codes[labelled].astype(np.int64) * n + batches[labelled])
    several = np.bincount(pairs // n, minlength=int(codes.max(initial=0)) + 1) > 1
    return labelled & several[codes]


def _rows(embedding: Rows, rows: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(embedding[row : row + 1], np.float32) for row in rows.tolist()]


@dataclass(frozen=True)
class Voting:
    """How k neighbours become probabilities, and distances become "unknown"."""

    k: int
    temperature: float
    """Of the votes, see `neighbors.vote`."""
    prior: float
    thresholds: np.ndarray
    """(C,) float64: a cell of this label that lies farther from its neighbours is unknown."""

    @classmethod
    def fit(cls, sample: Sample, k: int, n_classes: int) -> Voting:
        """Temperature and prior of the smallest negative log-likelihood; thresholds by `QUANTILE` of the distances.

        A label with fewer than 20 sampled cells has the threshold of all cells together.

        Raises
        ------
        ValueError
            k is larger than what the sample has kept.
        """
        if not 1 <= k <= sample.distances.shape[1]:
            msg = f"k={k}: 1 to {sample.distances.shape[1]} neighbours can vote in this reference"
            raise ValueError(msg)
        known = np.isfinite(sample.distances[:, 0])
        distances, labels, codes = (x[known] for x in (sample.distances[:, :k], sample.labels[:, :k], sample.codes))
        if not len(codes):
            return cls(k, float("inf"), 1.0, np.full(n_classes, np.inf))
        spread = float(np.median(np.where(np.isfinite(distances), distances, 0).max(axis=1) - distances[:, 0]))
        tried = [*(spread * _WARMTH if spread > 0 else ()), float("inf")]
        best = min(
            (_loss(vote(distances, labels, n_classes, temperature=t, prior=p), codes), -t, p)
            for t in map(float, tried)
            for p in map(float, _PRIORS)
        )
        made = cls(k, -best[1], best[2], np.full(n_classes, np.inf))
        far, called = distance(distances), made.probabilities(distances, labels).argmax(axis=1)
        return cls(k, made.temperature, made.prior, _thresholds(far, called, n_classes))

    def probabilities(self, distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(m, C) float32 of the neighbours' distances (m, >= k) and labels."""
        some = slice(self.k)
        classes = len(self.thresholds)
        return vote(distances[:, some], labels[:, some], classes, temperature=self.temperature, prior=self.prior)

    def codes(self, probabilities: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """(m,) int64 likeliest label of each cell, -1: farther from its neighbours than that label's cells are."""
        found = probabilities.argmax(axis=1).astype(np.int64)
        return np.where(distance(distances[:, : self.k]) > self.thresholds[found], -1, found)


def distance(distances: np.ndarray) -> np.ndarray:
    """(m,) float32 mean distance of the five nearest (of fewer where there are fewer) of neighbours (m, k)."""
    near = distances[:, :_NEAR]
    there = np.isfinite(near)
    mean = np.where(there, near, 0).sum(axis=1, dtype=np.float64) / np.maximum(1, there.sum(axis=1))
    return np.where(there[:, 0], mean, np.inf).astype(np.float32)


def _loss(probabilities: np.ndarray, codes: np.ndarray) -> float:
    return -float(np.log(probabilities[np.arange(len(codes)), codes], dtype=np.float64).mean())


def _thresholds(far: np.ndarray, called: np.ndarray, n_classes: int) -> np.ndarray:
    """By the label that was called, since that is all that is known of a new cell."""
    pooled = float(np.quantile(far, QUANTILE, method="higher"))
    found = np.full(n_classes, pooled)
    for code in range(n_classes):
        own = far[called == code]
        if len(own) >= _ENOUGH:
            found[code] = float(np.quantile(own, QUANTILE, method="higher"))
    return found

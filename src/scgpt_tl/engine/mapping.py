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
    def take(cls, embedding: Rows, codes: np.ndarray, batches: np.ndarray | None, *, seed: int) -> Sample:
        """Look at up to 2,000 labelled cells, the same ones for the same reference and seed.

        Parameters
        ----------
        embedding
            (n, D).
        codes
            (n,) labels, -1: none, not looked at and no neighbour.
        batches
            (n,) batch of each cell: neighbours are of other batches. None: any cell but itself.
        seed
            Of the choice.
        """
        labelled = np.flatnonzero(codes >= 0)
        words = mix_words(labelled.astype(np.uint64), stream_key(seed, Purpose.SPLIT, 0))
        rows = np.sort(labelled[np.argsort(words, kind="stable")[:_SAMPLED]])
        k = min(KEPT, max(1, len(labelled) - 1))
        # with batches, a cell without a label keeps the group that nobody sees
        theirs = codes if batches is None else np.where(codes >= 0, batches, -1)
        mine = np.full(len(rows), -2) if batches is None else batches[rows]
        cells = np.concatenate([np.empty((0, embedding.shape[1]), np.float32), *_rows(embedding, rows)])
        distances, found = nearest(cells, embedding, k, own=rows, groups=(mine, theirs))
        return cls(distances, label_votes(codes, found).astype(np.int32), codes[rows].astype(np.int32))


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

"""What integration may have cost: neighbours within batches, and cell types where they are known."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from scgpt_tl._random import Purpose, mix_words, stream_key
from scgpt_tl.engine.neighbors import nearest
from scgpt_tl.metrics import cluster_scores

logger = logging.getLogger(__name__)

K = 15
#: Mean share of a cell's 15 nearest cells of its own batch that it keeps, below which it is said.
LEAST_OVERLAP = 0.1
_FELL = 0.02  # of NMI or ASW
_QUERIES = 2_000  # cells whose neighbours are looked at
_SCORED = 10_000  # cells whose types are clustered


def what_was_lost(
    before: np.ndarray, after: np.ndarray, batches: np.ndarray, labels: np.ndarray | None, *, seed: int = 0
) -> dict[str, float]:
    """Compare two embeddings of the same cells, and warn where the second lost something.

    Parameters
    ----------
    before, after
        (n, D) of length 1: zero-shot and integrated.
    batches
        (n,) int64.
    labels
        (n,) cell types, None where a cell has none; None: not known.
    seed
        Of the choice of cells, where there are many.

    Returns
    -------
    `overlap`: mean share of the nearest cells of their own batch that cells keep. `mixing_before`, `mixing_after`:
    share of their nearest cells that are of other batches, in units of what chance gives (1: fully mixed). With labels
    NMI and ASW of both (`nmi_before`, ...), where the cells that are drawn can be scored.
    """
    rows = _some(len(before), _QUERIES, seed)
    found = {"overlap": _overlap(before, after, batches, rows)}
    found |= {f"mixing_{name}": _mixing(x, batches, rows) for name, x in (("before", before), ("after", after))}
    if found["overlap"] < LEAST_OVERLAP:
        logger.warning(
            "integration changed the structure within batches: a cell keeps %.0f %% of its %d nearest cells of its own "
            "batch, below %.0f %%; fewer epochs or a lower learning_rate (train=) change less, and "
            "the zero-shot embedding (tl.scgpt_embed) keeps it all", 100 * found["overlap"], K, 100 * LEAST_OVERLAP,
        )  # fmt: skip
    return found if labels is None else found | _types(before, after, labels, seed)


def _types(before: np.ndarray, after: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    known = np.flatnonzero([label is not None for label in labels])
    rows = known[_some(len(known), _SCORED, seed)]
    found: dict[str, float] = {}
    if not 2 <= (n := len(set(labels[rows]))) < len(rows):
        logger.warning("%d cell types on %d cells that were drawn: too few to compare NMI and ASW", n, len(rows))
        return found
    for name, points in (("before", before), ("after", after)):
        scores = cluster_scores(points[rows], labels[rows])
        found |= {f"nmi_{name}": scores.nmi, f"asw_{name}": scores.asw}
    for score in ("nmi", "asw"):
        was, now = found[f"{score}_before"], found[f"{score}_after"]
        if now < was - _FELL:
            logger.warning(
                "integration blurred the cell types: %s fell from %.3f (zero-shot) to %.3f; the zero-shot embedding "
                "(tl.scgpt_embed) may serve better", score.upper(), was, now,
            )  # fmt: skip
    return found


def _overlap(before: np.ndarray, after: np.ndarray, batches: np.ndarray, queries: np.ndarray) -> float:
    """Mean over the queries; NaN where no batch has more than two cells."""
    shares = []
    for batch in np.unique(batches[queries]):
        mine = np.flatnonzero(batches == batch)
        k = min(K, len(mine) - 2)
        if k < 1:
            continue
        own = np.flatnonzero(np.isin(mine, queries))
        first, second = (nearest(x[mine][own], x[mine], k, own=own)[1] for x in (before, after))
        shares.append((first[:, :, None] == second[:, None, :]).any(2).mean(1))
    return float(np.concatenate(shares).mean()) if shares else float("nan")


def _mixing(points: np.ndarray, batches: np.ndarray, queries: np.ndarray) -> float:
    """Share of neighbours from other batches, over that share among all cells."""
    k = min(K, len(points) - 1)
    _, rows = nearest(points[queries], points, k, own=queries)
    other = (batches[rows] != batches[queries, None]).mean()
    share = np.bincount(batches) / len(batches)
    expected = (1 - share[batches[queries]]).mean()
    return float(other / expected) if expected > 0 else float("nan")


def _some(n: int, most: int, seed: int) -> np.ndarray:
    """Sorted numbers below n, at most so many."""
    if n <= most:
        return np.arange(n)
    words: Any = mix_words(np.arange(n, dtype=np.uint64), stream_key(seed, Purpose.SHUFFLE, 0))
    return np.sort(np.argsort(words, kind="stable")[:most])

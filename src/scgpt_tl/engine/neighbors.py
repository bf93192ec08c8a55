"""Nearest neighbours on the unit sphere, exactly, and what they vote for. Arrays in, arrays out; no AnnData, no torch.

    reference, a block of rows at a time (memory-mapped or not)
      -> one matrix product with the queries gives every cosine in float32
      -> what comes within rounding of a query's k best is computed again in float64, in one fixed order, and ranked

The product only chooses whom to look at. What is returned depends on the two vectors alone, so it is the same for any
block size, number of threads and library of matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from scgpt_tl._compat import jit

BLOCK = 8192  # rows of the reference at a time; no result depends on it
_QUERIES = 512  # at a time: their cosines with a block take 16 MB
_NORM_SLACK = 0.01  # a unit vector in float16 is within 0.001 of length 1
_LOOK = 64  # cosines compared at once
_NONE = -1  # of a row, a label, a group


class Rows(Protocol):
    """(n, D) numbers of which a slice of rows can be read: an array, a memory map, or files that act as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def nearest(
    queries: np.ndarray,
    reference: Rows,
    k: int,
    *,
    own: np.ndarray | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    block: int = BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of a reference by cosine, exactly.

    Parameters
    ----------
    queries
        (m, D) vectors of length 1.
    reference
        (n, D) vectors of length 1, float32 or float16, read once from the first row to the last.
    k
        Neighbours of each query, 1 to n.
    own
        (m,) row of the reference that is the query itself and is left out; -1 where there is none.
    groups
        (m,) and (n,) integers, or (m, G) and (n, G) for G ways to group: a query does not see a row that shares a group
        with it, and nobody sees a row of group -1. Query and row of the same way are compared.
    block
        Rows of the reference in memory at a time.

    Returns
    -------
    distances : float32 (m, k)
        1 - cosine, 0 to 2, ascending.
    rows : int64 (m, k)
        Rows of the reference; of equal distances the lower row comes first. Where a query sees fewer than k rows the
        rest is -1, at an infinite distance.

    Raises
    ------
    ValueError
        Shapes that do not fit, k out of range, vectors that are not of length 1 (or hold NaN).
    """
    queries = np.array(queries, dtype=np.float32, order="C")  # of our own: read-only arrays would be compiled for anew
    _check(queries, reference, k)
    m, n = len(queries), reference.shape[0]
    own = np.full(m, _NONE) if own is None else np.asarray(own, dtype=np.int64)
    mine, kept = (np.full(m, _NONE - 1), None) if groups is None else groups
    mine = _codes(mine)
    best, rows = np.full((m, k), -np.inf), np.full((m, k), _NONE)
    held = np.empty((min(n, block), queries.shape[1]), np.float32)
    room = np.empty(min(m, _QUERIES) * len(held), np.float32)
    with ThreadPoolExecutor(_threads()) as pool:
        for start in range(0, n, block):
            part = held[: min(block, n - start)]  # a copy: a memory map's pages are let go of at once
            np.copyto(part, reference[start : start + len(part)])
            check_unit(part, "reference", first=start)
            theirs = _codes(np.zeros(len(part)) if kept is None else kept[start : start + len(part)])
            for first in range(0, m, _QUERIES):
                some = slice(first, min(first + _QUERIES, m))
                size = (some.stop - first, len(part))
                near = np.matmul(queries[some], part.T, out=room[: size[0] * size[1]].reshape(size))
                unseen = (own[some] - start, mine[some], theirs)
                _merge(pool, near, (queries[some], part), unseen, (best[some], rows[some]), start)
    return np.clip(1 - best, 0, None).astype(np.float32), rows


def distances_to(queries: np.ndarray, reference: Rows, rows: np.ndarray, *, block: int = BLOCK) -> np.ndarray:
    """Distances of queries (m, D) to chosen rows (m, k), as `nearest` tells them; -1 is infinitely far.

    Returns
    -------
    float32 (m, k).
    """
    found = np.full(rows.shape, np.inf)
    wanted, place = np.unique(rows[rows >= 0], return_inverse=True)
    at = np.full(rows.shape, _NONE)
    at[rows >= 0] = place
    held = np.empty((len(wanted), queries.shape[1]), np.float32)
    for start in np.unique(wanted // block).tolist():
        first, last = np.searchsorted(wanted, (start * block, (start + 1) * block))
        held[first:last] = np.asarray(reference[start * block : (start + 1) * block])[
            wanted[first:last] - start * block
        ]
    _distances(np.array(queries, dtype=np.float32, order="C"), held, at, found)
    return np.clip(found, 0, None).astype(np.float32)


def vote(
    distances: np.ndarray, labels: np.ndarray, n_classes: int, *, temperature: float, prior: float = 0.0
) -> np.ndarray:
    """What neighbours say: each votes for its label, the nearer the louder.

    A neighbour at distance d weighs exp(-(d - d_1) / temperature), d_1 the nearest one's; a class gets its neighbours'
    share of all weights. With `prior` every class also starts with `prior / n_classes` nearest neighbours' worth, so
    that no class is impossible because none of k neighbours has it.

    Parameters
    ----------
    distances
        (m, k), ascending.
    labels
        (m, k) integers below `n_classes`; -1 does not vote.
    n_classes
        C.
    temperature
        In units of distance; infinity counts heads.
    prior
        Weight of a uniform prior.

    Returns
    -------
    float32 (m, C), rows that sum to 1; zeros where nobody votes and there is no prior.

    Raises
    ------
    ValueError
        A temperature that is not positive, a negative prior, a label of no class, shapes that differ.
    """
    distances, labels = np.asarray(distances, dtype=np.float64), np.asarray(labels)
    if not (temperature > 0 and prior >= 0):
        msg = f"temperature={temperature}, prior={prior}; a positive temperature and a prior of 0 or more are needed"
        raise ValueError(msg)
    if distances.shape != labels.shape or (labels.size and (labels.min() < _NONE or labels.max() >= n_classes)):
        msg = f"distances {distances.shape} and labels {labels.shape} from -1 to {n_classes - 1} must agree"
        raise ValueError(msg)
    votes = (labels >= 0) & np.isfinite(distances)
    nearest_one = np.min(distances, axis=1, where=votes, initial=np.inf, keepdims=True)
    beyond = np.subtract(distances, nearest_one, out=np.full(distances.shape, np.inf), where=votes)
    weights = np.where(votes, np.exp(-beyond / temperature) if np.isfinite(temperature) else 1.0, 0.0)
    place = np.arange(len(labels))[:, None] * n_classes + labels
    counted = np.bincount(place[votes], weights[votes], minlength=len(labels) * n_classes)
    shares = counted.reshape(-1, n_classes) + prior / n_classes
    total = shares.sum(axis=1, keepdims=True)
    return np.divide(shares, total, out=np.zeros_like(shares), where=total > 0).astype(np.float32)


def check_unit(vectors: np.ndarray, what: str, *, first: int = 0) -> None:
    """Refuse vectors (n, D) that are not of length 1.

    Raises
    ------
    ValueError
        The message names the first of them; `first` is the number of the first row.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors)
    wrong = ~(np.abs(squares - 1) <= 2 * _NORM_SLACK)  # NaN is wrong as well
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        msg = (
            f"row {first + row} of {what} has the length {np.sqrt(squares[row]):.3g}, and unit vectors are compared: "
            "divide each row by its norm (scgpt_embed does, with unit_norm=True)"
        )
        raise ValueError(msg)


def _check(queries: np.ndarray, reference: Rows, k: int) -> None:
    shape = tuple(reference.shape)
    if queries.ndim != 2 or len(shape) != 2 or queries.shape[1] != shape[1]:
        msg = f"queries {queries.shape} and reference {shape} must be (m, D) and (n, D) with one D"
        raise ValueError(msg)
    if not 1 <= k <= shape[0]:
        msg = f"k={k} neighbours of a reference of {shape[0]} rows; give 1 to {shape[0]}"
        raise ValueError(msg)
    check_unit(queries, "queries")


def _codes(groups: np.ndarray) -> np.ndarray:
    """(n, G) int64."""
    return np.array(groups, dtype=np.int64, order="C").reshape(len(groups), -1 if len(groups) else 1)


def _threads() -> int:
    from numba import get_num_threads

    return int(get_num_threads())


def _merge(
    pool: ThreadPoolExecutor,
    cosines: np.ndarray,
    vectors: tuple[np.ndarray, np.ndarray],
    unseen: tuple[np.ndarray, np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    start: int,
) -> None:
    """Take a block's rows into the k best, queries shared among threads."""
    # |product in float32 - exact| <= D u |q| |r| / (1 - D u), u = 2**-24; doubled, and a little for rounding the bar
    slack = vectors[0].shape[1] * 2.0**-23 * (1 + 2 * _NORM_SLACK) + 2.0**-22

    def work(part: tuple[int, int]) -> None:
        """Queries from the first to before the last."""
        _scan(cosines, vectors, unseen, found, (start, slack), part)

    bounds = np.linspace(0, len(cosines), _threads() + 1).astype(int).tolist()
    if len(bounds) == 2:
        work((0, len(cosines)))
    else:
        list(pool.map(work, pairwise(bounds)))


@jit(nogil=True)
def _scan(cosines: Any, vectors: Any, unseen: Any, found: Any, numbers: Any, part: Any) -> None:
    """Insert what belongs among the k best (descending in `found`), for queries [part[0], part[1])."""
    queries, block = vectors
    own, mine, theirs = unseen
    best, rows = found
    start, slack = numbers
    n = cosines.shape[1]
    for i in range(part[0], part[1]):
        near, last = cosines[i], best[i, best.shape[1] - 1]
        for first in range(0, n, _LOOK):
            bar, stop, hits = np.float32(last - slack), min(first + _LOOK, n), 0
            for j in range(first, stop):  # nearly always in vain, and counting without a branch is eight to a step
                hits += near[j] >= bar
            if hits:
                hidden = (own[i], mine[i])
                last = _insert(near, queries[i], block, hidden, theirs, best[i], rows[i], start, slack, (first, stop))


@jit(nogil=True)
def _insert(
    near: Any, query: Any, block: Any, unseen: Any, theirs: Any, best: Any, rows: Any, start: Any, slack: Any, part: Any
) -> Any:
    """Rows [part[0], part[1]) for one query; returns its new k-th cosine. A later row must be better to come in."""
    k = len(best)
    own, mine = unseen
    for j in range(part[0], part[1]):
        if near[j] < np.float32(best[k - 1] - slack) or j == own or _hidden(mine, theirs[j]):
            continue
        exact = _dot(query, block[j])
        if exact <= best[k - 1]:
            continue
        place = k - 1
        while place > 0 and best[place - 1] < exact:
            best[place], rows[place] = best[place - 1], rows[place - 1]
            place -= 1
        best[place], rows[place] = exact, start + j
    return best[k - 1]


@jit(nogil=True)
def _hidden(mine: Any, theirs: Any) -> Any:
    hidden = False
    for g in range(len(mine)):
        hidden |= theirs[g] == mine[g] or theirs[g] == -1
    return hidden


@jit(nogil=True)
def _distances(queries: Any, held: Any, at: Any, found: Any) -> None:
    for i in range(at.shape[0]):
        for j in range(at.shape[1]):
            if at[i, j] >= 0:
                found[i, j] = 1 - _dot(queries[i], held[at[i, j]])


@jit(nogil=True)
def _dot(a: Any, b: Any) -> Any:
    """Inner product in float64, always added in the same order."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    whole = len(a) // 4 * 4
    for d in range(0, whole, 4):  # four sums at once: a chain of additions waits for each
        s0 += np.float64(a[d]) * np.float64(b[d])
        s1 += np.float64(a[d + 1]) * np.float64(b[d + 1])
        s2 += np.float64(a[d + 2]) * np.float64(b[d + 2])
        s3 += np.float64(a[d + 3]) * np.float64(b[d + 3])
    for d in range(whole, len(a)):
        s0 += np.float64(a[d]) * np.float64(b[d])
    return (s0 + s1) + (s2 + s3)


def label_votes(labels: Sequence[int] | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(m, k) labels of the rows that `nearest` found; -1 where there is no row."""
    held = np.asarray(labels)
    return np.where(rows >= 0, held[np.maximum(rows, 0)], _NONE)

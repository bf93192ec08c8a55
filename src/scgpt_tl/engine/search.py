"""Which search answers: the exact one, or an index that looks at a part of the reference.

The exact scan of a million rows of 128 numbers takes some 200 million multiplications a query, fewer than a small model
needs to embed it; so it is the default up to `EXACT_UP_TO` rows. What an index finds is measured exactly, too: it may
miss a neighbour, and never misplaces one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from scgpt_tl._compat import need
from scgpt_tl._nearest import nearest as nearest_name
from scgpt_tl._random import mix_words, stream_key
from scgpt_tl.engine.neighbors import BLOCK, Rows, distances_to, nearest

INDEXES = ("auto", "exact", "approximate")
#: Rows of a reference beyond which "auto" builds an index. The rule asks the reference alone: what a query is told may
#: not depend on how many others are asked about with it.
EXACT_UP_TO = 2_000_000
_AT_ONCE = 4096  # queries whose candidates are measured again together
_PROBED = 32  # of faiss's lists, for each query
_TRAINED_ON = 64  # rows a list


def check_index(index: str) -> None:
    """Refuse what is no way to search.

    Raises
    ------
    ValueError
        The message has the nearest name.
    """
    if index not in INDEXES:
        msg = f"index={index!r} is unknown; {nearest_name(index, INDEXES)}"
        raise ValueError(msg)


def chosen(index: str, n_rows: int) -> str:
    """What "auto" means for a reference of this size: "exact", "faiss" or "pynndescent".

    Raises
    ------
    ImportError
        "approximate" was asked for, and there is neither package.
    """
    check_index(index)
    there = [package for package in ("faiss", "pynndescent") if find_spec(package)]
    if index == "exact" or (index == "auto" and (n_rows <= EXACT_UP_TO or "faiss" not in there)):
        return "exact"
    if not there:
        need("faiss", extra="faiss")
    return there[0]


def search(
    queries: np.ndarray,
    reference: Rows,
    k: int,
    *,
    index: str = "auto",
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours as `neighbors.nearest` tells them, by the search that `index` names.

    Parameters
    ----------
    queries, reference, k
        As for `nearest`.
    index
        "exact"; "approximate": faiss (an inverted file) or, without it, pynndescent, built here. Either holds all rows
        that are seen, in float32: 0.5 GB for a million of 128 numbers, pynndescent its graph and a second copy besides.
        "auto": exact up to `EXACT_UP_TO` rows and where faiss is absent, else faiss.
    groups
        (m,) and (n,), as for `nearest`.

    Raises
    ------
    ValueError
        As `nearest`, or an unknown index.
    ImportError
        No package that could make an index.
    """
    how = chosen(index, reference.shape[0])
    if how == "exact":
        return nearest(queries, reference, k, groups=groups)
    mine, theirs = (np.full(len(queries), -2), np.zeros(reference.shape[0])) if groups is None else groups
    seen = np.flatnonzero(theirs != -1)
    hidden = np.unique(theirs[np.isin(theirs, mine)], return_counts=True)[1]
    more = min(k + int(hidden.max(initial=0)), len(seen))  # as many may have to be dropped
    ask = _faiss(reference, seen) if how == "faiss" else _pynndescent(reference, seen)
    distances, rows = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1)
    for start in range(0, len(queries), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        found = ask(queries[some], more)
        found = np.where(theirs[found] == mine[some, None], -1, found)
        distances[some, :more], rows[some, :more] = (x[:, :k] for x in _ranked(queries[some], reference, found))
    return distances, rows


def _ranked(queries: np.ndarray, reference: Rows, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (m, k) measured exactly and in order, those that are none (-1) last."""
    distances = distances_to(queries, reference, rows)
    order = np.lexsort((rows, distances), axis=1)
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)


def _blocks(reference: Rows, seen: np.ndarray) -> Iterator[np.ndarray]:
    """The rows that are seen, float32, a block at a time."""
    for start in range(0, reference.shape[0], BLOCK):
        first, last = np.searchsorted(seen, (start, start + BLOCK))
        if first < last:
            yield np.asarray(reference[start : start + BLOCK], np.float32)[seen[first:last] - start]


def _some(reference: Rows, seen: np.ndarray, n: int) -> np.ndarray:
    """About n of the rows that are seen, the same ones in every run."""
    words = mix_words(seen.astype(np.uint64), stream_key(0, 0, 0))
    few = seen[words <= np.uint64(min(1.0, n / len(seen)) * (2**64 - 2**12))]
    return np.concatenate(list(_blocks(reference, few if len(few) else seen[:1])))


def _faiss(reference: Rows, seen: np.ndarray) -> Any:
    """An inverted file over the rows that are seen; answers with their numbers in the reference."""
    faiss = need("faiss", extra="faiss")
    width, n_lists = reference.shape[1], max(1, int(2 * math.sqrt(len(seen))))
    made = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, n_lists, faiss.METRIC_INNER_PRODUCT)
    made.cp.min_points_per_centroid = 1  # small references: no lines on the console
    made.train(_some(reference, seen, n_lists * _TRAINED_ON))
    for block in _blocks(reference, seen):
        made.add(np.ascontiguousarray(block))
    made.nprobe = min(_PROBED, n_lists)

    def ask(queries: np.ndarray, k: int) -> np.ndarray:
        _, found = made.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return np.where(found >= 0, seen[np.maximum(found, 0)], -1)

    return ask


def _pynndescent(reference: Rows, seen: np.ndarray) -> Any:
    """A graph of neighbours over the rows that are seen, which are held in memory."""
    pynndescent = need("pynndescent")
    rows = np.concatenate(list(_blocks(reference, seen)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # numba's, about its own compilation
        made = pynndescent.NNDescent(rows, metric="euclidean", n_neighbors=min(30, len(rows)), random_state=0)
        made.prepare()

    def ask(queries: np.ndarray, k: int) -> np.ndarray:
        found, distances = made.query(np.ascontiguousarray(queries, dtype=np.float32), k=k, epsilon=0.2)
        return np.where(np.isfinite(distances) & (found >= 0), seen[np.maximum(found, 0)], -1)

    return ask

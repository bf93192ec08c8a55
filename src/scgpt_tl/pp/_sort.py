"""Sorting inside compiled kernels.

numba's own `np.sort`, `np.argsort` and `np.partition` are closures whose names in machine code differ by a counter of
the process alone. Kernels that were cached by different processes can carry one name for two of them; loaded together,
the first is run for both, and a sort answers for an argsort. What has a name of its own has no such double.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scgpt_tl._compat import jit

_RUN = 16  # shorter pieces are sorted by insertion


@jit()
def sort(part: Any) -> None:
    """Sort in place (heapsort: no worst case, no room needed)."""
    n = len(part)
    for end in range(n - 1, 0, -1):
        first = (n - 2) // 2 if end == n - 1 else 0  # the heap is built once, from its last parent up
        for root in range(first, -1, -1):
            _sift(part, root, end + 1)
        part[0], part[end] = part[end], part[0]


@jit()
def _sift(part: Any, root: Any, n: Any) -> None:
    value = part[root]
    child = 2 * root + 1
    while child < n:
        if child + 1 < n and part[child] < part[child + 1]:
            child += 1
        if part[child] <= value:
            break
        part[root] = part[child]
        root, child = child, 2 * child + 1
    part[root] = value


@jit()
def argsort(keys: Any) -> Any:
    """(n,) int64 order that sorts `keys` (n,); equal keys stay in their order (merge sort)."""
    n = len(keys)
    order, merged = np.arange(n), np.empty(n, np.int64)
    for start in range(0, n, _RUN):
        for i in range(start + 1, min(start + _RUN, n)):
            place = order[i]
            j = i
            while j > start and keys[order[j - 1]] > keys[place]:
                order[j] = order[j - 1]
                j -= 1
            order[j] = place
    size = _RUN
    while size < n:
        for start in range(0, n, 2 * size):
            _merge(keys, order, merged, (start, min(start + size, n), min(start + 2 * size, n)))
        order, merged = merged, order
        size *= 2
    return order


@jit()
def _merge(keys: Any, order: Any, merged: Any, bounds: Any) -> None:
    """Merge two sorted neighbours of `order` into `merged`."""
    start, middle, end = bounds
    i, j = start, middle
    for at in range(start, end):
        if j == end or (i < middle and keys[order[i]] <= keys[order[j]]):
            merged[at] = order[i]
            i += 1
        else:
            merged[at] = order[j]
            j += 1

"""Sorting in kernels: numpy's answers, and names of its own in machine code."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import scgpt_tl
from scgpt_tl.pp._sort import argsort, sort

SRC = Path(scgpt_tl.__file__).parent
SIZES = (0, 1, 2, 3, 15, 16, 17, 33, 100, 1000)


def arrays(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [
        rng.random(n),
        rng.integers(0, 5, n).astype(np.float64),
        np.arange(n, dtype=np.float64),
        np.arange(n, dtype=np.float64)[::-1].copy(),
        rng.permutation(n),
        rng.integers(0, 7, n),
    ]


@pytest.mark.parametrize("n", SIZES)
def test_sort_is_numpys(n: int):
    for values in arrays(n):
        found = values.copy()
        sort(found)
        np.testing.assert_array_equal(found, np.sort(values))


@pytest.mark.parametrize("n", SIZES)
def test_argsort_is_numpys_and_stable(n: int):
    for values in arrays(n):
        np.testing.assert_array_equal(argsort(values), np.argsort(values, kind="stable"))


def test_no_kernel_sorts_by_numbas_closures():
    """See the head of pp/_sort.py: cached kernels that use them can run the wrong one."""
    banned = {"sort", "argsort", "partition", "argpartition", "median", "quantile", "percentile", "unique"}
    found = [
        f"{path.name}:{call.lineno}"
        for path in SRC.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith(("jit", "njit", "numba")) for decorator in function.decorator_list)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in banned
    ]
    assert found == []

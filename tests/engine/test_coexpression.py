"""Rank correlations against scipy's, group by group."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import rankdata

from scgpt_tl.engine import coexpression
from scgpt_tl.engine.coexpression import spearman


def plain(x: np.ndarray) -> np.ndarray:
    """|Spearman| of dense columns; 0 where one does not vary."""
    ranks = rankdata(x, axis=0)
    ranks -= ranks.mean(axis=0)
    spread = np.sqrt((ranks**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = ranks.T @ ranks / np.outer(spread, spread)
    return np.abs(np.where(np.isfinite(rho), rho, 0))


def blocks(x: np.ndarray, rows: int):
    return ((start, sparse.csr_matrix(x[start : start + rows])) for start in range(0, len(x), rows))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    density=st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    rows=st.integers(1, 50),
    largest=st.sampled_from((1, 3, 1000)),
)
def test_it_is_scipys_in_any_order_and_blocks(seed, n, density, rows, largest):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, largest + 1, (n, 9)) / 7 * (rng.random((n, 9)) < density)
    columns = np.array([4, 0, -1, 1, 2, 3, -1, 0, 5])  # two columns are one gene, two are none
    groups = rng.integers(-1, 2, n)
    genes = np.zeros((n, 6))
    for column, gene in enumerate(columns):
        if gene >= 0:
            genes[:, gene] += x[:, column]
    with patch.object(coexpression, "_CELLS", 7):
        found = spearman(blocks(x, rows), columns, groups, 2)
    for group in range(2):
        some = genes[groups == group]
        expected = plain(some) if len(some) else np.zeros((6, 6))
        np.testing.assert_allclose(found[group], expected, atol=1e-6)
    order = rng.permutation(n)
    again = spearman(blocks(x[order], 3), columns, groups[order], 2)
    np.testing.assert_array_equal(again, found)


def test_counts_are_shares_of_their_cell():
    x = np.random.default_rng(0).poisson(3.0, (50, 6)) * np.arange(1, 51)[:, None]  # depth rises
    columns = np.array([0, 1, 0, -1, 2, 3])
    genes = np.column_stack([x[:, 0] + x[:, 2], x[:, 1], x[:, 4], x[:, 5]])
    found = spearman(blocks(x, 9), columns, np.zeros(50, np.int64), 1, counts=True)
    np.testing.assert_allclose(found[0], plain(genes / x.sum(axis=1, keepdims=True)), atol=1e-6)


def test_shape_type_and_regulators():
    x = np.random.default_rng(0).poisson(1.0, (30, 5)).astype(float)
    every = spearman(blocks(x, 8), np.arange(5), np.zeros(30, np.int64), 1)
    some = spearman(blocks(x, 8), np.arange(5), np.zeros(30, np.int64), 1, regulators=np.array([3, 1]))
    assert (every.shape, every.dtype, some.shape) == ((1, 5, 5), np.float32, (1, 5, 2))
    np.testing.assert_array_equal(some, every[:, :, [3, 1]])
    np.testing.assert_allclose(np.diagonal(every[0]), 1)


def test_the_formula_in_numbers():
    """Four cells: ranks 1 2 3 4 and 1 2 4 3 correlate by 0.8, whatever the sign."""
    x = np.array([[1, 4], [2, 3], [3, 1], [4, 2]], float)
    assert spearman(blocks(x, 2), np.arange(2), np.zeros(4, np.int64), 1)[0, 0, 1] == pytest.approx(0.8)

"""Cells of the same content have one key, and others another."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scgpt_tl._random import name_keys
from scgpt_tl.engine.twins import NONE, as_groups, content_keys, found_in, seen

GENES = name_keys(f"G{i}" for i in range(40))
ALL = np.ones(40, bool)


@pytest.fixture
def cells(toy_rows) -> sparse.csr_matrix:
    return toy_rows(30, 40, density=0.6)


@pytest.mark.parametrize("change", [lambda x: x / 7, lambda x: x.log1p(), lambda x: x.astype(np.int64)])
def test_what_keeps_the_order_of_values_keeps_the_key(cells, change):
    keys = content_keys(cells, GENES, ALL)
    assert np.unique(keys).size == 30
    np.testing.assert_array_equal(content_keys(sparse.csr_matrix(change(cells)), GENES, ALL), keys)


def test_the_order_of_cells_and_genes_and_columns_unknown_do_not_matter(cells):
    keys = content_keys(cells, GENES, ALL)
    rows, columns = np.random.default_rng(0).permutation(30), np.random.default_rng(1).permutation(40)
    moved = sparse.csr_matrix(cells[rows][:, columns])
    np.testing.assert_array_equal(content_keys(moved, GENES[columns], ALL), keys[rows])
    wider = sparse.hstack([np.ones((30, 2), np.float32), cells], format="csr")
    known = np.arange(42) >= 2
    np.testing.assert_array_equal(content_keys(wider, np.concatenate([GENES[:2], GENES]), known), keys)


def test_another_gene_or_order_is_another_cell(cells):
    x = cells.toarray()[:1]
    first, second = np.flatnonzero(x[0])[:2]
    x[0, first], x[0, second] = 2, 3
    others = np.concatenate([x, x, x])
    others[1, [first, second]] = 3, 2
    others[2, np.flatnonzero(x[0] == 0)[0]], others[2, first] = 2, 0
    assert np.unique(content_keys(sparse.csr_matrix(others), GENES, ALL)).size == 3


def test_few_genes_tell_nothing():
    x = np.zeros((4, 40), np.float32)
    x[1, :4] = x[2, :5] = x[3, :5] = 1
    keys = content_keys(sparse.csr_matrix(x), GENES, ALL)
    assert keys[:2].tolist() == [NONE, NONE]
    assert keys[2] == keys[3] != NONE
    assert found_in(keys, keys[:3]).tolist() == [False, False, True, True]
    assert as_groups(keys)[:2].tolist() == [-2, -2]


def test_groups():
    keys = np.array([0, 5, 2**64 - 9], np.uint64)
    assert as_groups(keys).tolist() == [-2, 5, -9]
    assert seen(keys, None).tolist() == [0, 5, -9]
    assert seen(keys, np.array([0, -1, 3])).tolist() == [0, -1, -9]
    assert seen(np.array([4, 1, 2], np.int32), np.array([0, -1, 3])).tolist() == [4, -1, 2]

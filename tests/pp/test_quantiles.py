"""The kernel against numpy, the published package's own numbers, and itself in other orders."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from scgpt_tl._random import Purpose, cell_key, name_keys, stream_key
from scgpt_tl.pp import _quantiles
from scgpt_tl.pp._quantiles import bin_csr, bin_dtype, bin_row

MODULES = Path(__file__).parents[1] / "golden" / "modules.npz"
STREAM = np.uint64(stream_key(np.uint64(0), np.uint64(Purpose.TIES), np.uint64(0)))


def interval(values, n_bins=51):
    """Lowest and highest bin of each value by numpy alone."""
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    upper = np.digitize(values, edges)
    return np.minimum(np.digitize(values, edges, right=True) + 1, upper), upper


def one_row(values, *, ties, n_bins=51, seed=0, keys=None):
    values = np.asarray(values)
    keys = name_keys(map(str, range(len(values)))) if keys is None else keys
    indptr, indices = np.array([0, len(values)]), np.arange(len(values), dtype=np.int32)
    return bin_csr(indptr, indices, values, keys, n_bins=n_bins, ties=ties, seed=seed)


def check_against_numpy(values, n_bins=51):
    lower, upper = interval(values, n_bins)
    np.testing.assert_array_equal(one_row(values, ties="upper", n_bins=n_bins), upper)
    spread = one_row(values, ties="spread", n_bins=n_bins)
    assert ((lower <= spread) & (spread <= upper)).all()


positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False, max_value=1e300)
rows = st.one_of(
    st.lists(positive, min_size=1, max_size=200),
    st.lists(st.integers(1, 6), min_size=1, max_size=400),  # ties everywhere
    st.lists(st.integers(1, 10**6), min_size=1, max_size=200),
    st.lists(st.floats(1, 2, width=32), min_size=1, max_size=120),
    st.lists(st.sampled_from([1.0, np.nextafter(1, 2), np.nextafter(1, 0), 5e-324, 1e300]), min_size=1, max_size=99),
)


@settings(max_examples=400, deadline=None)
@given(rows, st.sampled_from([51, 2, 3, 4, 11, 52, 300]))
@example([3.0], 51)
@example([1.0] * 49 + [2.0], 51)
@example(list(range(1, 51)), 51)  # every edge falls on a value
@example([5e-324, 1e300], 51)
def test_same_bins_as_numpy(values, n_bins):
    check_against_numpy(np.array(values, np.float64), n_bins)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8, np.uint16])
@pytest.mark.parametrize("n", [1, 2, 49, 50, 51, 150, 981, 3000, 9000])
def test_same_bins_as_numpy_for_every_type_and_length(dtype, n):
    """981 = 20 x 49 + 1: all edges fall on values, if the arithmetic is numpy's own."""
    rng = np.random.default_rng(n)
    for values in (
        rng.permutation(n) + 1.0,  # distinct
        1 + rng.poisson(rng.gamma(0.5, 3, n)),
        np.exp(4 * rng.normal(size=n)) + 1,  # far outliers: most values share a few buckets
        np.append(np.full(n - 1, 1e9) + np.arange(n - 1), 1e-3) + 1,
    ):
        check_against_numpy((values % 255 + 1 if dtype == np.uint8 else values).astype(dtype))


@pytest.mark.parametrize("name", ["X", "counts"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_published_bins_lie_in_our_interval(name, dtype):
    """`binning` of scgpt 0.2.4; where it draws, any draw is ours as well, and where it does not, we agree."""
    golden = np.load(MODULES)
    for row, published in zip(golden[f"bin/{name}"].astype(dtype), golden[f"bin/row_{name}_{dtype}"], strict=True):
        values, published = row[row != 0], published[row != 0]
        lower, upper = interval(values)
        assert ((lower <= published) & (published <= upper)).all()
        spread, highest = one_row(values, ties="spread"), one_row(values, ties="upper")
        np.testing.assert_array_equal(highest, upper)
        certain = lower == upper
        np.testing.assert_array_equal(spread[certain], published[certain])
        if name == "counts":
            assert (~certain).any()


def test_published_preprocessor_agrees():
    golden = np.load(MODULES)
    for row, edges, published in zip(
        golden["prep/X_log1p"], golden["prep/bin_edges"], golden["prep/X_binned"], strict=True
    ):
        values, published = row[row != 0], published[row != 0]
        upper = np.digitize(values, edges[1:])  # the first is the package's own 0
        np.testing.assert_array_equal(one_row(values, ties="upper"), upper)
        once = np.unique(values, return_counts=True)[1][np.searchsorted(np.unique(values), values)] == 1
        np.testing.assert_array_equal(one_row(values, ties="spread")[once], published[once])


def test_documented_example():
    values = np.repeat([1.0, 2.0, 5.0], [60, 30, 10])
    bins = np.array([one_row(values, ties="spread", seed=seed) for seed in range(60)])
    assert [(bins[:, values == v].min(), bins[:, values == v].max()) for v in (1, 2, 5)] == [
        (1, 30),
        (31, 45),
        (46, 50),
    ]
    assert one_row(values, ties="upper")[[0, 60, 90]].tolist() == [30, 45, 50]
    constant = np.array([one_row(np.full(40, 7.0), ties="spread", seed=seed) for seed in range(60)])
    assert (constant.min(), constant.max()) == (1, 50)
    single = [one_row([3.0], ties="spread", seed=seed)[0] for seed in range(400)]
    assert (min(single), max(single)) == (1, 50)
    assert one_row([3.0], ties="upper")[0] == 50


@pytest.mark.parametrize(
    ("values", "low", "high"), [(np.full(20_000, 2.0), 1, 50), (np.repeat([1.0, 9.0], 9000), 1, 25)]
)
def test_spread_is_uniform(values, low, high):
    for seed in (0, 1):
        bins = one_row(values, ties="spread", seed=seed)[values == values[0]]
        counts = np.bincount(bins, minlength=high + 1)[low:]
        assert counts.sum() == len(bins)
        assert len(counts) == high - low + 1
        assert stats.chisquare(counts).pvalue > 1e-3
    # over cells too: one gene of many cells that differ elsewhere
    keys = name_keys("ABC")
    first = [one_row([1.0, 1.0, 1.0 + i], ties="spread", keys=keys)[0] for i in range(1, 3001)]
    lower, upper = interval(np.array([1.0, 1.0, 9.0]))
    assert stats.chisquare(np.bincount(first, minlength=upper[0] + 1)[lower[0] :]).pvalue > 1e-3


def test_every_tied_bin_is_reached_and_no_other():
    """Twenty values of one share each span two or three bins: all of these, about equally often."""
    values = np.repeat(np.arange(1.0, 21.0), 500)
    lower, upper = interval(values)
    bins = one_row(values, ties="spread")
    for value in np.unique(values):
        here = values == value
        low, high = lower[here][0], upper[here][0]
        counts = np.bincount(bins[here] - low, minlength=high - low + 1)
        assert high - low in (1, 2)
        assert len(counts) == high - low + 1
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n_bins", [2, 51, 256, 257, 65_536, 65_537])
def test_smallest_type_that_holds_the_bins(n_bins):
    bins = one_row(np.arange(1.0, 300.0), ties="upper", n_bins=n_bins)
    assert bins.dtype == bin_dtype(n_bins)
    assert bins.max() == n_bins - 1  # not wrapped
    assert bins.dtype.itemsize == (1 if n_bins <= 256 else 2 if n_bins <= 65_536 else 4)


def toy(seed=0, shape=(60, 40), dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = (1 + rng.poisson(1.0, shape)) * (rng.random(shape) < 0.4)
    dense[3] = 0
    return dense.astype(dtype), name_keys(f"gene{i}" for i in range(shape[1]))


def binned(dense, keys, **options):
    m = sparse.csr_matrix(dense)
    bins = bin_csr(m.indptr, m.indices, m.data, keys, **{"n_bins": 51, "ties": "spread", "seed": 0} | options)
    return sparse.csr_matrix((bins, m.indices, m.indptr), shape=m.shape).toarray()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_subset_and_type_change_nothing(seed, shuffler):
    dense, keys = toy(seed)
    whole = binned(dense, keys)
    cells = shuffler.sample(range(len(dense)), 25)
    genes = shuffler.sample(range(dense.shape[1]), dense.shape[1])
    np.testing.assert_array_equal(binned(dense[cells], keys), whole[cells])
    np.testing.assert_array_equal(binned(dense[:, genes], keys[genes]), whole[:, genes])
    for dtype in (np.float64, np.int64, np.uint8, np.bool_):
        if dtype is np.bool_:
            np.testing.assert_array_equal(binned(dense > 0, keys), binned((dense > 0).astype(np.float32), keys))
        else:
            np.testing.assert_array_equal(binned(dense.astype(dtype), keys), whole)


def test_explicit_zeros_are_no_part_of_a_cell():
    dense, keys = toy()
    whole = binned(dense, keys)
    indptr = np.arange(0, dense.size + 1, dense.shape[1])
    indices = np.tile(np.arange(dense.shape[1]), len(dense))
    bins = bin_csr(indptr, indices, dense.ravel(), keys, n_bins=51, ties="spread", seed=0)
    np.testing.assert_array_equal(bins.reshape(dense.shape), whole)


def test_seed_and_gene_names_move_the_draws_and_upper_has_none():
    dense, keys = toy()
    whole, other = binned(dense, keys), name_keys(f"other{i}" for i in range(len(keys)))
    assert (binned(dense, keys, seed=1) != whole).any()
    assert (binned(dense, other) != whole).any()
    upper = binned(dense, keys, ties="upper")
    np.testing.assert_array_equal(binned(dense, other, ties="upper", seed=1), upper)
    assert (whole <= upper).all()


def test_threads_change_nothing(monkeypatch):
    dense, keys = toy(shape=(500, 40))
    whole = binned(dense, keys)
    monkeypatch.setattr(_quantiles, "_THREAD_WORTH", 0)
    before = numba.get_num_threads()
    try:
        for n in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(n)
            np.testing.assert_array_equal(binned(dense, keys), whole)
    finally:
        numba.set_num_threads(before)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 7)
    np.testing.assert_array_equal(binned(dense, keys), whole)
    np.testing.assert_array_equal(binned(dense[:1], keys), whole[:1])
    assert binned(dense[:0], keys).shape == (0, 40)


def test_row_parts_cover_every_row_once():
    indptr = np.array([5, 5, 9, 9, 30, 31, 31])
    for n in (1, 2, 3, 10):
        rows = [row for start, stop in _quantiles._row_parts(indptr, n) for row in range(start, stop)]
        assert rows == list(range(6))


def test_bin_row_is_the_same_kernel():
    dense, keys = toy(dtype=np.float64)
    whole = binned(dense, keys)
    for row, expected in zip(dense, whole, strict=True):
        there = row != 0
        values, genes = row[there], keys[there]
        out = np.zeros(len(values), np.int64)
        bin_row(values, genes, np.uint64(cell_key(genes, values)), STREAM, 51, True, np.empty(len(values) + 5), out)
        np.testing.assert_array_equal(out, expected[there])
        bin_row(values, genes, np.uint64(0), np.uint64(0), 51, False, np.empty(len(values)), out)
        np.testing.assert_array_equal(out, one_row(values, ties="upper"))

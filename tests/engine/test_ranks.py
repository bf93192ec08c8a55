"""Rank kernels beside `scipy.stats.rankdata`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from scgpt_tl.engine import ranks
from scgpt_tl.engine.ranks import RankSums


def plainly(scores: np.ndarray) -> np.ndarray:
    """Rank by row, then by column, each divided by M."""
    m = len(scores)
    return rankdata(rankdata(scores, axis=1) / m, axis=0) / m


def ranked(scores: np.ndarray, *, step: int = 10**6, **options) -> np.ndarray:
    """One map, added by `step` rows."""
    sums = RankSums(1, len(scores), **options)
    for first in range(0, len(scores), step):
        sums.add_rows(scores[first : first + step], first)
    sums.end_map(0)
    return sums.mean()[0]


def some(kind: str, m: int) -> np.ndarray:
    rng = np.random.default_rng(m)
    scores = rng.normal(size=(m, m))
    if kind == "ties":
        scores = scores.round(0)
    elif kind == "outliers":  # nearly all of a row in one bucket
        scores[:, 0] = 1e6 * (1 + scores[:, 0])
    elif kind == "outliers and ties":
        scores = scores.round(1)
        scores[:, m // 2] = -1e30
    elif kind == "one value":
        scores[:] = 3.5
    elif kind == "tiny":
        scores *= 1e-42
    elif kind == "huge":
        scores *= 1e36
    elif kind == "zeros of both signs":
        scores = np.where(scores > 0.5, scores, np.where(scores > 0, 0.0, -0.0))
    return scores.astype(np.float32)


@pytest.fixture(params=["buckets", "counted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to rank a row, whatever the number of columns."""
    monkeypatch.setattr(ranks, "_COUNTED", 0 if request.param == "buckets" else 10**6)


KINDS = ("smooth", "ties", "outliers", "outliers and ties", "one value", "tiny", "huge", "zeros of both signs")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 2, 3, 33, 200])
def test_ranks_are_those_of_scipy(kind: str, m: int):
    scores = some(kind, m)
    np.testing.assert_allclose(ranked(scores), plainly(scores), atol=1e-6)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", ["smooth", "ties", "outliers"])
def test_chosen_columns_are_those_of_all(kind: str):
    scores, columns = some(kind, 70), np.array([5, 69, 0, 33])
    np.testing.assert_array_equal(ranked(scores, columns=columns), ranked(scores)[:, columns])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("step", [1, 32, 47, 1000])
def test_parts_and_threads_change_nothing(threads: int, step: int):
    scores = some("ties", 150)
    with ThreadPoolExecutor(threads) as pool:
        found = ranked(scores, step=step, threads=threads, share=pool.map)
    np.testing.assert_array_equal(found, ranked(scores))


def test_means_are_by_group_and_in_any_order():
    maps = [some("ties", 40) + i for i in range(5)] + [some("smooth", 40)]
    found = []
    for order in (range(6), range(5, -1, -1)):
        sums = RankSums(3, 40)
        for i in order:
            sums.add_rows(maps[i], 0)
            sums.end_map(0 if i < 2 else 2)
        found.append(sums.mean())
        assert sums.n_maps.tolist() == [2, 0, 4]
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].dtype == np.float32
    assert np.isnan(found[0][1]).all()
    np.testing.assert_allclose(found[0][0], np.mean([plainly(x) for x in maps[:2]], axis=0), atol=1e-6)
    np.testing.assert_allclose(found[0][2], np.mean([plainly(x) for x in maps[2:]], axis=0), atol=1e-6)


def test_sums_are_doubled_ranks_without_rounding():
    sums = RankSums(1, 30)
    for _ in range(3):
        sums.add_rows(some("ties", 30), 0)
        sums.end_map(0)
    assert sums.sums.dtype == np.int64
    np.testing.assert_array_equal(sums.sums[0].T, (6 * 30 * plainly(some("ties", 30))).round())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda m: st.lists(
            st.lists(
                st.floats(-(2**100), 2**100, width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=m, max_size=m
            ),
            min_size=m,
            max_size=m,
        )
    )
)
def test_any_map(rows: list[list[float]]):
    scores = np.array(rows, np.float32)
    for most in (0, 10**6):  # by buckets, by counting
        with mock.patch.object(ranks, "_COUNTED", most):
            np.testing.assert_allclose(ranked(scores), plainly(scores), atol=1e-6)


@pytest.mark.parametrize("crowded", [4, 6, 10**6])
def test_buckets_of_any_size_are_read_right(monkeypatch: pytest.MonkeyPatch, crowded: int):
    """Few values, some, many: each way to find a rank, on buckets of every size; the kernels run as plain Python."""
    for name in ("rank_rows", "_scatter", "_sort_crowded", "_among", "_place", "_range"):
        monkeypatch.setattr(ranks, name, getattr(ranks, name).py_func)
    monkeypatch.setattr(ranks, "_CROWDED", crowded)
    monkeypatch.setattr(ranks, "_COUNTED", 0)
    for kind in ("smooth", "ties", "outliers"):
        scores = some(kind, 25)
        np.testing.assert_allclose(ranked(scores), plainly(scores), atol=1e-6)


def test_too_many_genes_are_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match=r"40,000 genes: maps of 1 to 32,767 genes can be ranked"):
        RankSums(1, 40_000)

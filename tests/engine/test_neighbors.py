"""Exact neighbours: a full sort is the oracle; ties, blocks, groups; votes by a plain loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import get_num_threads, set_num_threads
from sklearn.neighbors import NearestNeighbors

from scgpt_tl.engine import neighbors as module
from scgpt_tl.engine.neighbors import check_unit, distances_to, label_votes, nearest, vote


def unit(n: int, width: int = 16, *, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def axes(n: int, width: int = 4, *, seed: int = 0) -> np.ndarray:
    """Vectors of which many are the same, and whose products are exact in any arithmetic."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, width), np.float32)
    x[np.arange(n), rng.integers(0, width, n)] = rng.choice([-1, 1], n)
    return x


def sorted_all(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By a full, stable sort in float64."""
    far = 1 - queries.astype(np.float64) @ reference.astype(np.float64).T
    rows = np.argsort(far, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(far, rows, axis=1), rows


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 300),
    m=st.integers(0, 40),
    block=st.integers(1, 350),
    at_once=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    ties=st.booleans(),
)
def test_equal_to_a_full_sort_for_any_blocks(n, m, block, at_once, seed, share, ties):
    make = axes if ties else unit
    reference, queries = make(n, seed=seed), make(m, seed=seed + 1)
    k = 1 + int(share * (n - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERIES", at_once)
        distances, rows = nearest(queries, reference, k, block=block)
    far, expected = sorted_all(queries, reference, k)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distances, far, atol=1e-7)
    assert (distances.dtype, rows.dtype, distances.shape) == (np.float32, np.int64, (m, k))


def test_agrees_with_scikit_learn():
    reference, queries = unit(500, 32), unit(40, 32, seed=1)
    far, expected = (
        NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(reference).kneighbors(queries)
    )
    distances, rows = nearest(queries, reference, 9)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distances, far, atol=1e-6)


def test_vectors_closer_than_float32_can_tell():
    """The product in float32 ranks them as rounding falls; float64 ranks them as they are."""
    queries = unit(1, 64)
    near = queries + 2e-5 * np.random.default_rng(0).standard_normal((300, 64))
    reference = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    far, expected = sorted_all(queries, reference, 50)
    assert not np.array_equal(np.argsort(-(queries @ reference.T), axis=1, kind="stable")[:, :50], expected)
    for block in (7, 300):
        _, rows = nearest(queries, reference, 50, block=block)
        np.testing.assert_allclose(1 - (reference[rows[0]].astype(np.float64) @ queries[0]), far[0], atol=1e-15)


def test_threads_and_neighbouring_queries_change_nothing():
    reference, queries = unit(400), unit(30, seed=1)
    before = get_num_threads()
    try:
        set_num_threads(1)
        one = nearest(queries, reference, 7)
        set_num_threads(2)
        two = nearest(queries, reference, 7)
    finally:
        set_num_threads(before)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    alone = [nearest(queries[i : i + 1], reference, 7) for i in range(30)]
    np.testing.assert_array_equal(np.concatenate([d for d, _ in alone]), one[0])
    np.testing.assert_array_equal(np.concatenate([r for _, r in alone]), one[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_map_is_read_a_block_at_a_time(tmp_path: Path, dtype: type):
    held = unit(90).astype(dtype)
    np.save(tmp_path / "r.npy", held)
    asked = []

    class Watched:
        shape = held.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            asked.append((rows.start, rows.stop))
            return np.load(tmp_path / "r.npy", mmap_mode="r")[rows]

    distances, rows = nearest(unit(5, seed=1), Watched(), 4, block=40)
    assert asked == [(0, 40), (40, 80), (80, 90)]
    far, expected = sorted_all(unit(5, seed=1), held, 4)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distances, far, atol=1e-6)


def test_own_rows_and_groups_are_left_out():
    cells, batch = unit(60), np.arange(60) % 3
    batch[7] = -1
    distances, rows = nearest(cells, cells, 5, own=np.arange(60), block=11)
    assert not (rows == np.arange(60)[:, None]).any()
    far = 1 - cells.astype(np.float64) @ cells.T.astype(np.float64)
    np.fill_diagonal(far, np.inf)
    np.testing.assert_array_equal(rows, np.argsort(far, axis=1, kind="stable")[:, :5])
    _, rows = nearest(cells, cells, 5, groups=(batch, batch), block=11)
    far[(batch[:, None] == batch[None]) | (batch == -1)[None]] = np.inf
    np.testing.assert_array_equal(rows, np.argsort(far, axis=1, kind="stable")[:, :5])
    np.testing.assert_array_equal(distances[:, 0], distances.min(axis=1))


def test_two_ways_to_group_at_once():
    cells, groups = unit(60), np.stack([np.arange(60) % 3, np.arange(60) // 12], axis=1)
    held = groups.copy()
    held[5, 1] = held[9, 0] = -1
    _, rows = nearest(cells, cells, 4, groups=(groups, held), block=13)
    far = 1 - cells.astype(np.float64) @ cells.T.astype(np.float64)
    far[((groups[:, None] == held[None]) | (held == -1)[None]).any(axis=2)] = np.inf
    np.testing.assert_array_equal(rows, np.argsort(far, axis=1, kind="stable")[:, :4])


def test_who_sees_too_few_is_told_so():
    distances, rows = nearest(unit(2, seed=1), unit(4), 3, groups=(np.array([0, -2]), np.array([0, 0, 0, 1])))
    assert rows[0].tolist() == [3, -1, -1]
    assert np.isinf(distances[0, 1:]).all()
    assert (rows[1] >= 0).all()
    assert label_votes([5, 6, 7, 8], rows)[0].tolist() == [8, -1, -1]


def test_distances_to_chosen_rows_are_the_same_numbers():
    reference, queries = unit(100), unit(9, seed=1)
    distances, rows = nearest(queries, reference, 6)
    np.testing.assert_array_equal(distances_to(queries, reference, rows, block=17), distances)
    rows[2, 3] = -1
    again = distances_to(queries, reference, rows)
    assert np.isinf(again[2, 3])
    assert np.isfinite(np.delete(again.ravel(), 2 * 6 + 3)).all()
    assert distances_to(queries, reference, np.full((9, 2), -1)).min() == np.inf


@pytest.mark.parametrize(
    ("queries", "reference", "k", "says"),
    [
        (unit(3), unit(5), 6, r"k=6 neighbours of a reference of 5 rows; give 1 to 5"),
        (unit(3), unit(5), 0, r"k=0"),
        (unit(3, 8), unit(5), 1, r"one D"),
        (unit(3)[0], unit(5), 1, r"one D"),
        (2 * unit(3), unit(5), 1, r"row 0 of queries has the length 2.*unit_norm=True"),
        (unit(3), unit(5) * np.array([[1], [1], [1], [0], [1]]), 1, r"row 3 of reference has the length 0"),
        (unit(3), unit(5) * np.array([[1], [1], [1], [1], [np.nan]]), 1, r"row 4 of reference has the length nan"),
    ],
)
def test_what_cannot_be_searched(queries, reference, k, says):
    with pytest.raises(ValueError, match=says):
        nearest(queries.astype(np.float32), reference.astype(np.float32), k, block=2)


def test_what_is_compared_is_left_as_it_is():
    queries, reference = unit(3), unit(5)
    for x in (queries, reference):
        x.flags.writeable = False
    nearest(queries, reference, 2)
    check_unit(queries, "queries")


# ---- votes


def voted(distances: np.ndarray, labels: np.ndarray, n: int, temperature: float, prior: float) -> np.ndarray:
    """By the formula, a cell at a time."""
    shares = np.full((len(labels), n), prior / n)
    for i in range(len(labels)):
        there = [(d, c) for d, c in zip(distances[i], labels[i], strict=True) if c >= 0 and np.isfinite(d)]
        for d, c in there:
            shares[i, c] += np.exp(-(d - there[0][0]) / temperature)
    total = shares.sum(axis=1, keepdims=True)
    return np.where(total > 0, shares / np.where(total > 0, total, 1), 0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    k=st.integers(1, 6),
    n=st.integers(1, 5),
    temperature=st.sampled_from((1e-3, 0.1, 5.0, np.inf)),
    prior=st.sampled_from((0.0, 0.5, 3.0)),
    seed=st.integers(0, 1000),
)
def test_votes_by_the_formula(k, n, temperature, prior, seed):
    rng = np.random.default_rng(seed)
    distances, labels = np.sort(rng.random((7, k)).astype(np.float32), axis=1), rng.integers(-1, n, (7, k))
    distances[0, k // 2 :] = np.inf
    shares = vote(distances, labels, n, temperature=temperature, prior=prior)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, voted(distances, labels, n, temperature, prior), atol=1e-6)


def test_votes_in_numbers():
    """exp(-(0.3 - 0.1) / 0.1) = 0.1353: 1.1353 for the first class of 1.5032 in all."""
    distances, labels = np.array([[0.1, 0.2, 0.3]]), np.array([[0, 1, 0]])
    np.testing.assert_allclose(vote(distances, labels, 3, temperature=0.1), [[0.75527, 0.24473, 0]], atol=1e-5)
    np.testing.assert_allclose(vote(distances, labels, 3, temperature=np.inf), [[2 / 3, 1 / 3, 0]], atol=1e-6)
    prior = vote(distances, labels, 3, temperature=np.inf, prior=3.0)
    np.testing.assert_allclose(prior, [[3 / 6, 2 / 6, 1 / 6]], atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        ([[0, 3]], {"temperature": 1}, "from -1 to 2"),
        ([[0, -2]], {"temperature": 1}, "from -1 to 2"),
        ([[0]], {"temperature": 1}, r"\(1, 2\) and labels \(1, 1\)"),
        ([[0, 1]], {"temperature": 0}, "temperature=0"),
        ([[0, 1]], {"temperature": np.nan}, "temperature=nan"),
        ([[0, 1]], {"temperature": 1, "prior": -1}, "prior=-1"),
    ],
)
def test_votes_that_cannot_be_counted(labels, options, says):
    with pytest.raises(ValueError, match=says):
        vote(np.array([[0.1, 0.2]]), np.array(labels), 3, **options)

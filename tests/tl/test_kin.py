"""Groups across batches, without labels."""

from __future__ import annotations

import numpy as np

from scgpt_tl.tl._kin import kin_groups


def two_batches(n: int = 240, *, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of three kinds in two batches that lie apart, kinds and batches."""
    rng = np.random.default_rng(0)
    kinds, batches = np.arange(n) % 3, np.arange(n) // 3 % 2
    points = 3 * np.eye(3, 8)[kinds] + rng.normal(0, 0.3, (n, 8))
    points[:, 7] += shift * batches
    return points.astype(np.float32), kinds, batches


def test_groups_hold_one_kind_of_both_batches():
    points, kinds, batches = two_batches()
    groups = kin_groups(points, batches)
    assert groups.dtype == np.int64
    for group in np.unique(groups):
        assert len(np.unique(kinds[groups == group])) == 1
    mixed = [len(np.unique(batches[groups == group])) == 2 for group in groups]
    assert np.mean(mixed) > 0.7


def test_the_same_seed_gives_the_same_groups():
    points, _, batches = two_batches()
    np.testing.assert_array_equal(kin_groups(points, batches, seed=3), kin_groups(points, batches, seed=3))


def test_a_kind_of_one_batch_finds_no_kin():
    points, kinds, batches = two_batches()
    own = (kinds == 2) & (batches == 1)
    points[own] = points[own] * [1, 1, 0, 1, 1, 1, 1, 1] + 9 * np.eye(8)[5]
    groups = kin_groups(points, batches)
    for group in np.unique(groups[own]):
        assert (kinds[groups == group] == 2).all()
        assert (batches[groups == group] == 1).all()


def test_batches_of_one_and_two_cells():
    points, _, batches = two_batches(30)
    batches = batches.copy()
    batches[0], batches[1:3] = 2, 3
    assert len(kin_groups(points, batches)) == 30

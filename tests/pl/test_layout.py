from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scgpt_tl.pl._layout import apart, layout


def overlapping(places, boxes):
    """Pairs of rectangles that lie on each other, one by one."""
    return [
        (i, j)
        for i in range(len(places))
        for j in range(i)
        if (np.abs(places[i] - places[j]) < (boxes[i] + boxes[j]) / 2 - 1e-6).all()
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.booleans())
def test_no_rectangle_lies_on_another(n, seed, same):
    rng = np.random.default_rng(seed)
    places = np.zeros((n, 2)) if same else rng.uniform(0, 2, (n, 2))
    boxes = np.column_stack([rng.uniform(0.2, 2, n), np.full(n, 0.3)])
    assert overlapping(apart(places, boxes), boxes) == []


def test_what_has_room_stays():
    places = np.array([[0.0, 0.0], [3.0, 0.0]])
    np.testing.assert_array_equal(apart(places, np.ones((2, 2))), places)


@pytest.mark.parametrize("ratio", [0.5, 1.25, 3])
def test_parts_stand_side_by_side_the_same_every_time(ratio):
    rng = np.random.default_rng(0)
    ends = np.concatenate([np.array(np.triu_indices(size, 1)).T + first for size, first in ((20, 0), (5, 20), (2, 25))])
    weights, boxes = rng.uniform(0.1, 1, len(ends)), np.column_stack([rng.uniform(0.3, 1.2, 28), np.full(28, 0.3)])
    places = layout(ends, weights, boxes, ratio=ratio)
    np.testing.assert_array_equal(places, layout(ends, weights, boxes, ratio=ratio))
    assert overlapping(places, boxes) == []
    assert (places - boxes / 2).min() >= -1e-9
    corners = [(places[part] - boxes[part] / 2).min(axis=0).tolist() for part in (range(20), range(20, 25))]
    sides = [(places[part] + boxes[part] / 2).max(axis=0).tolist() for part in (range(20), range(20, 25))]
    assert any(sides[a][k] <= corners[b][k] + 1e-9 for a, b in ((0, 1), (1, 0)) for k in (0, 1))


def test_strong_edges_draw_their_ends_together():
    chain = np.array([[0, 1], [1, 2]])
    places = layout(chain, np.array([1.0, 0.1]), np.full((3, 2), 0.01))
    near, far = np.linalg.norm(places[1] - places[0]), np.linalg.norm(places[2] - places[1])
    assert near < 0.7 * far

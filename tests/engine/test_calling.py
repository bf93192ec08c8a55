"""Scores to probabilities and calls: the temperature that the likelihood asks for, the threshold of doubt."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scgpt_tl.engine.calling import BOUNDS, ENOUGH, Calling


def drawn(n: int = 4000, n_classes: int = 4, *, sure: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores `sure` times those that the classes were drawn from: their temperature is `sure`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, n_classes)) * 2
    shares = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    codes = (shares.cumsum(1) < rng.random((n, 1))).sum(1)
    return true * sure, codes


def plain_loss(scores: np.ndarray, codes: np.ndarray, temperature: float) -> float:
    """Mean of -log(exp(s_y / T) / sum_c exp(s_c / T)), cell by cell."""
    total = 0.0
    for row, code in zip(scores, codes, strict=True):
        total -= math.log(math.exp(row[code] / temperature) / sum(math.exp(s / temperature) for s in row))
    return total / len(codes)


def test_the_temperature_is_that_of_plain_math():
    scores, codes = drawn(300, sure=3.0)
    found = Calling.fit(scores, codes).temperature
    grid = np.exp(np.linspace(math.log(0.5), math.log(10), 400))
    losses = [plain_loss(scores, codes, t) for t in grid]
    assert abs(math.log(found / grid[int(np.argmin(losses))])) < 0.01
    assert plain_loss(scores, codes, found) <= min(losses) + 1e-9


@pytest.mark.parametrize("sure", [0.3, 1.0, 5.0])
def test_a_network_too_sure_or_too_modest_is_put_right(sure: float):
    scores, codes = drawn(sure=sure)
    calling = Calling.fit(scores, codes)
    assert calling.temperature == pytest.approx(sure, rel=0.1)
    shown = calling.probabilities(scores)
    surest = shown.max(1)
    right = shown.argmax(1) == codes
    assert abs(surest[surest > 0.9].mean() - right[surest > 0.9].mean()) < 0.02


def test_probabilities_are_softmax():
    calling = Calling(2.0, 0.4)
    found = calling.probabilities(np.array([[2.0, 0.0], [1000.0, -1000.0]]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[math.e / (math.e + 1), 1 / (math.e + 1)], [1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(calling.probabilities(np.array([[2.0, 0.0]]) + 7), found[:1])


def test_below_the_threshold_is_unknown():
    shares = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.45, 0.45, 0.1]], np.float32)
    assert Calling(1.0, 0.5).codes(shares).tolist() == [0, 2, -1]
    assert Calling().codes(shares).tolist() == [0, 2, 0]


def test_one_held_out_cell_in_a_hundred_is_below():
    scores, codes = drawn(1000)
    calling = Calling.fit(scores, codes)
    below = (calling.codes(calling.probabilities(scores)) < 0).sum()
    assert 8 <= below <= 10
    assert calling.threshold in calling.probabilities(scores).max(1)


def test_few_cells_throw_no_cell_out_and_make_nothing_certain():
    scores, codes = np.eye(3)[[0, 1, 2] * 5] * 0.5, np.array([0, 1, 2] * 5)
    calling = Calling.fit(scores, codes)
    assert calling.temperature >= 1 - 1e-4
    assert calling.threshold == 0
    more = ENOUGH // 15 + 1
    assert Calling.fit(np.tile(scores, (more, 1)), np.tile(codes, more)).temperature < 0.1


def test_of_less_than_a_hundred_cells_none_is_below():
    scores, codes = drawn(60)
    calling = Calling.fit(scores, codes)
    shares = calling.probabilities(scores)
    assert calling.threshold == shares.max(1).min()
    assert (calling.codes(shares) >= 0).all()


def test_the_temperature_has_bounds():
    scores, codes = drawn(200)
    wrong = (codes + 1) % 4
    assert Calling.fit(scores * 100, wrong).temperature <= BOUNDS[1]
    assert Calling.fit(np.eye(4)[codes], codes).temperature >= BOUNDS[0]


def test_without_a_cell_scores_are_taken_as_they_are():
    assert Calling.fit(np.empty((0, 3)), np.empty(0, np.int64)) == Calling(1.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "codes", "said"),
    [
        (np.zeros((2, 3)), [0], "are needed, found"),
        (np.zeros(3), [0, 1, 2], "are needed, found"),
        (np.zeros((2, 3)), [0, 3], "codes run from 0 to 3"),
        (np.zeros((2, 3)), [-1, 0], "codes run from -1"),
        (np.full((2, 3), np.nan), [0, 1], "2 of 2 cells"),
    ],
)
def test_what_cannot_be_fitted_is_said(scores: np.ndarray, codes: list[int], said: str):
    with pytest.raises(ValueError, match=said):
        Calling.fit(scores, np.array(codes))


@pytest.mark.parametrize(("temperature", "threshold"), [(0, 0.5), (-1, 0.5), (math.inf, 0.5), (1, 1.5), (math.nan, 0)])
def test_a_calling_that_is_none(temperature: float, threshold: float):
    with pytest.raises(ValueError, match="a positive number and a probability"):
        Calling(temperature, threshold)

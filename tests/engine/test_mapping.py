"""Calibration of votes and distances: on cells of the reference that are asked about as if they were new."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tl.engine import mapping as module
from scgpt_tl.engine.mapping import QUANTILE, Sample, Voting, distance
from scgpt_tl.engine.neighbors import nearest, vote


def types(
    n: int, *, seed: int = 0, noise: float = 0.5, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, their types and their batches; each batch is moved by `shift` in a direction of its own."""
    rng = np.random.default_rng(seed)
    centres, moves = np.random.default_rng(5).standard_normal((2, 3, 12))
    codes, batches = rng.integers(0, 3, n).astype(np.int32), rng.integers(0, 3, n).astype(np.int32)
    x = centres[codes] + shift * moves[batches] + noise * rng.standard_normal((n, 12))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), codes, batches


def numbered(n: int, *, first: int = 1) -> np.ndarray:
    """Keys that all differ."""
    return np.random.default_rng(7).permutation(np.arange(first, first + n, dtype=np.uint64))


def test_each_sampled_cell_is_asked_about_without_itself(monkeypatch: pytest.MonkeyPatch):
    cells, codes, _ = types(120)
    codes[:10] = -1
    monkeypatch.setattr(module, "_SAMPLED", 30)
    keys = numbered(120)
    sample = Sample.take(cells, codes, None, keys=keys, seed=3)
    assert (sample.distances.shape, sample.labels.shape, sample.codes.shape) == ((30, 50), (30, 50), (30,))
    again = Sample.take(cells, codes, None, keys=keys, seed=3)
    np.testing.assert_array_equal(sample.distances, again.distances)
    assert not np.array_equal(Sample.take(cells, codes, None, keys=keys, seed=4).distances, sample.distances)
    monkeypatch.setattr(module, "_SAMPLED", 10**6)
    whole = Sample.take(cells, codes, None, keys=np.zeros(120, np.uint64), seed=3)
    labelled = np.flatnonzero(codes >= 0)
    distances, rows = nearest(cells[labelled], cells[labelled], 50, own=np.arange(110))  # equal keys: in their order
    np.testing.assert_array_equal(whole.distances, distances)
    np.testing.assert_array_equal(whole.labels, codes[labelled][rows])
    np.testing.assert_array_equal(whole.codes, codes[labelled])


def test_batches_are_left_out_whole():
    cells, codes, batches = types(200, shift=2.0)
    codes[:5] = -1
    alone, without = (Sample.take(cells, codes, b, keys=np.zeros(200, np.uint64), seed=0) for b in (None, batches))
    assert np.median(without.distances[:, 0]) > 3 * np.median(alone.distances[:, 0])
    labelled = np.flatnonzero(codes >= 0)
    for i in (0, 50, 100):
        row = labelled[i]
        others = np.flatnonzero((codes >= 0) & (batches != batches[row]))
        far = 1 - cells[others].astype(np.float64) @ cells[row].astype(np.float64)
        np.testing.assert_allclose(without.distances[i], np.sort(far)[:50], atol=1e-6)


def test_the_order_of_cells_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_SAMPLED", 30)
    cells, codes, batches = types(200)
    keys, order = numbered(200), np.random.default_rng(1).permutation(200)
    one = Sample.take(cells, codes, batches, keys=keys, seed=0)
    other = Sample.take(cells[order], codes[order], batches[order], keys=keys[order], seed=0)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.distances, other.distances)


@pytest.mark.parametrize("batched", [False, True])
def test_copies_of_a_cell_are_no_neighbours_of_it(batched: bool):
    cells, codes, batches = types(100)
    twice = [np.concatenate([x, x]) for x in (cells, codes, (batches + 1) % 3, numbered(100))]
    twice[2][:100] = batches  # the copy is of another batch
    alone = Sample.take(cells, codes, None, keys=numbered(100), seed=0)
    sample = Sample.take(twice[0], twice[1], twice[2] if batched else None, keys=twice[3], seed=0)
    assert len(sample.codes) == 200
    assert sample.distances.min() == alone.distances.min() > 1e-5
    if not batched:
        np.testing.assert_array_equal(np.unique(sample.distances[:, 0]), np.unique(alone.distances[:, 0]))


def test_a_type_of_one_batch_sets_no_threshold(caplog: pytest.LogCaptureFixture):
    """Its cells would be asked about without any of their own."""
    cells, codes, batches = types(600, noise=0.1)
    codes[codes == 2] = np.where(batches[codes == 2] == 0, 2, -1)
    sample = Sample.take(cells, codes, batches, keys=numbered(600), seed=0)
    assert set(sample.codes.tolist()) == {0, 1}
    assert "1 types lie in one batch alone" in caplog.text
    strange, _, _ = types(50, noise=0.1, seed=1)
    distances, rows = nearest(-strange, cells, 15, groups=(np.full(50, -2), codes))
    voting = Voting.fit(sample, 15, 3)
    assert (voting.codes(voting.probabilities(distances, codes[rows]), distances) == -1).all()
    assert voting.thresholds.max() < 0.1


def test_where_no_type_has_two_batches_cells_are_left_out_alone(caplog: pytest.LogCaptureFixture):
    cells, codes, batches = types(200)
    codes[batches > 0] = -1
    keys = numbered(200)
    sample = Sample.take(cells, codes, batches, keys=keys, seed=0)
    np.testing.assert_array_equal(sample.distances, Sample.take(cells, codes, None, keys=keys, seed=0).distances)
    assert "no type lies in two batches" in caplog.text


def test_nobody_to_be_compared_with_is_said(caplog: pytest.LogCaptureFixture):
    cells, _, _ = types(4)
    Sample.take(cells, np.zeros(4, np.int32), None, keys=np.ones(4, np.uint64), seed=0)
    assert "no cell will be called unknown" in caplog.text


def test_probabilities_are_calibrated():
    cells, codes, _ = types(1500, noise=1.6)
    voting = Voting.fit(Sample.take(cells, codes, None, keys=numbered(1500), seed=0), 15, 3)
    query, truth, _ = types(1500, noise=1.6, seed=1)
    distances, rows = nearest(query, cells, 15)
    p = voting.probabilities(distances, codes[rows])
    right, sure = p.argmax(axis=1) == truth, p.max(axis=1)
    assert 0.6 < right.mean() < 0.95  # hard enough to be unsure
    bins = np.digitize(sure, np.linspace(0, 1, 11))
    gaps = [abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    assert sum(gaps) < 0.08  # chance alone gives 0.03
    heads = vote(distances, codes[rows], 3, temperature=np.inf, prior=1e-6)
    loss = -np.log(p[np.arange(1500), truth]).mean()
    assert loss < -np.log(np.maximum(heads[np.arange(1500), truth], 1e-6)).mean()


def test_cells_unlike_all_are_unknown_and_others_are_not():
    cells, codes, _ = types(1500)
    voting = Voting.fit(Sample.take(cells, codes, None, keys=numbered(1500), seed=0), 15, 3)
    query, _, _ = types(1000, seed=1)
    distances, rows = nearest(query, cells, 15)
    called = voting.codes(voting.probabilities(distances, codes[rows]), distances)
    assert (called == -1).mean() == pytest.approx(1 - QUANTILE, abs=0.01)
    strange = -query
    distances, rows = nearest(strange, cells, 15)
    called = voting.codes(voting.probabilities(distances, codes[rows]), distances)
    assert (called == -1).mean() > 0.8


def test_a_label_has_its_own_threshold_where_enough_cells_have_it():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [100, 100, 5]).astype(np.int32)
    distances = np.sort(rng.random((205, 10)) * np.where(codes == 1, 0.1, 1.0)[:, None], axis=1).astype(np.float32)
    voting = Voting.fit(Sample(distances, np.repeat(codes[:, None], 10, axis=1), codes), 10, 4)
    far = distance(distances)
    own = [np.quantile(far[codes == code], QUANTILE, method="higher") for code in (0, 1)]
    pooled = np.quantile(far, QUANTILE, method="higher")
    np.testing.assert_allclose(voting.thresholds, [*own, pooled, pooled])
    assert own[1] < 0.1 < own[0]


def test_the_distance_of_a_cell():
    some = np.array([[1, 2, 3, 4, 5, 60], [1, 2, np.inf, np.inf, np.inf, np.inf], [np.inf] * 6], np.float32)
    np.testing.assert_array_equal(distance(some), [3, 1.5, np.inf])
    np.testing.assert_array_equal(distance(some[:, :2]), [1.5, 1.5, np.inf])


def test_odd_samples():
    """Nobody to ask about; all at one distance; only one neighbour."""
    nobody = Sample(np.full((4, 3), np.inf, np.float32), np.full((4, 3), -1, np.int32), np.zeros(4, np.int32))
    voting = Voting.fit(nobody, 3, 2)
    assert np.isinf(voting.thresholds).all()
    assert voting.probabilities(np.array([[0.1, 0.2, 0.3]]), np.array([[0, 0, 1]])).argmax() == 0
    level = Sample(np.full((9, 3), 0.5, np.float32), np.zeros((9, 3), np.int32), np.zeros(9, np.int32))
    voting = Voting.fit(level, 3, 2)
    assert voting.temperature == np.inf
    assert voting.thresholds.tolist() == [0.5, 0.5]
    cells, _, _ = types(2)
    one = Sample.take(cells, np.array([0, 1], np.int32), None, keys=numbered(2), seed=0)
    assert one.distances.shape == (2, 1)
    assert Voting.fit(one, 1, 2).k == 1
    with pytest.raises(ValueError, match="k=2: 1 to 1 neighbours"):
        Voting.fit(one, 2, 2)

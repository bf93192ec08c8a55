"""What two embeddings of the same cells have in common, and what is said where one lost something."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from scgpt_tl.tl import _lost
from scgpt_tl.tl._lost import what_was_lost


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def points() -> np.ndarray:
    rng = np.random.default_rng(0)
    return unit(rng.normal(size=(120, 6)))


def by_hand(before: np.ndarray, after: np.ndarray, batches: np.ndarray) -> float:
    """Overlap from full tables of cosines."""
    shares = []
    for batch in np.unique(batches):
        a, b = (x[batches == batch].astype(float) @ x[batches == batch].astype(float).T for x in (before, after))
        np.fill_diagonal(a, -9)
        np.fill_diagonal(b, -9)
        near = (np.argsort(-x, axis=1)[:, :15] for x in (a, b))
        shares += [len(np.intersect1d(i, j)) / 15 for i, j in zip(*near, strict=True)]
    return float(np.mean(shares))


def test_overlap_is_that_by_hand(points):
    batches = np.arange(120) // 40
    other = unit(points + np.random.default_rng(1).normal(0, 0.2, points.shape))
    found = what_was_lost(points, other, batches, None)
    assert found["overlap"] == pytest.approx(by_hand(points, other, batches))
    assert what_was_lost(points, points, batches, None)["overlap"] == 1


def test_mixing_is_one_by_chance_and_zero_apart(points):
    batches = np.arange(120) % 2
    apart = unit(np.column_stack([points, 5.0 * batches, 5.0 * (1 - batches)]))
    found = what_was_lost(apart, points, batches, None)
    assert found["mixing_before"] == 0
    assert found["mixing_after"] == pytest.approx(1, abs=0.1)


def test_lost_structure_is_said(points, caplog):
    with caplog.at_level(logging.WARNING):
        what_was_lost(points, points, np.zeros(120, int), None)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        many = unit(np.random.default_rng(3).normal(size=(600, 6)))
        found = what_was_lost(many, many[::-1].copy(), np.zeros(600, int), None)
    assert found["overlap"] < _lost.LEAST_OVERLAP
    assert "changed the structure within batches" in caplog.text


def test_lost_types_are_said(caplog):
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"], dtype=object)[np.arange(150) % 3]
    labels[:4] = None
    clear = unit(4 * np.eye(3, 6)[np.arange(150) % 3] + rng.normal(0, 0.4, (150, 6)))
    blurred = unit(rng.normal(size=(150, 6)))
    with caplog.at_level(logging.WARNING):
        found = what_was_lost(clear, blurred, np.zeros(150, int), labels)
    assert "NMI fell from" in caplog.text
    assert "ASW fell from" in caplog.text
    assert found["nmi_before"] > 0.9 > 0.5 > found["nmi_after"]


def test_types_that_are_not_drawn_are_not_scored(points, monkeypatch, caplog):
    monkeypatch.setattr(_lost, "_SCORED", 3)
    labels = np.array([f"t{i}" for i in range(60)] * 2, dtype=object)
    with caplog.at_level(logging.WARNING):
        found = what_was_lost(points, points, np.zeros(120, int), labels)
    assert set(found) == {"overlap", "mixing_before", "mixing_after"}
    assert "3 cell types on 3 cells that were drawn" in caplog.text


def test_few_of_many_cells_are_looked_at(points, monkeypatch):
    monkeypatch.setattr(_lost, "_QUERIES", 30)
    found = what_was_lost(points, points, np.arange(120) % 2, None, seed=1)
    assert found["overlap"] == 1


def test_a_batch_of_one_cell_has_no_neighbours(points):
    batches = np.array([1] + [0] * 119)
    assert what_was_lost(points, points, batches, None)["overlap"] == 1

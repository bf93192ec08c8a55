from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import chisquare

from scgpt_tl import metrics
from scgpt_tl.metrics import _mixing as m


@pytest.fixture(scope="module")
def cells():
    """Two types of 60 cells, two batches that lie in each other."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(8 * i, 1, (60, 4)) for i in range(2)])
    return points, np.repeat(["B", "T"], 60), np.tile(["x", "y", "y"], 40)


@pytest.fixture(scope="module")
def scib():
    return pytest.importorskip("scib_metrics", reason="the extra 'scib' is not installed")


def test_kbet_is_the_chi_squared_test():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, 50)
    near = rng.integers(0, 50, (50, 12))
    shares = np.bincount(codes) / 50
    expected = [chisquare(np.bincount(codes[row], minlength=3), shares * 12).pvalue for row in near]
    np.testing.assert_allclose(m.kbet_pvalues(codes, near), expected)


def test_kbet_tells_mixed_from_apart(cells):
    points, labels, batches = cells
    assert m.kbet(points, labels, batches) > 0.85
    apart = points + 40 * (batches == "x")[:, None]
    assert m.kbet(apart, labels, batches) == 0
    assert m.kbet(points, labels, batches, alpha=0) == 1
    # what differs between types is not held against the batches: each type is tested by itself
    uneven = np.where((labels == "B") & (np.arange(120) % 4 > 0), "x", batches)
    assert m.kbet(points, labels, uneven) > 0.8


def test_kbet_leaves_out_small_types_and_types_of_one_batch(cells):
    points, labels, batches = cells
    few = np.where(np.arange(120) < 5, "rare", labels)
    pure = np.where(few == "B", "x", batches)
    kept = few == "T"
    assert m.kbet(points, few, pure) == pytest.approx(m.kbet(points[kept], few[kept], batches[kept]))
    assert np.isnan(m.kbet(points[:12], ["a"] * 6 + ["b"] * 6, ["x", "y"] * 6))


def test_kbet_has_no_word_on_types_of_one_neighbourhood(cells):
    """The ten nearest of ten cells are all of them, mixed or apart."""
    points, labels, batches = cells
    apart = points + 40 * (batches == "x")[:, None]
    few = np.where((labels == "B") & (np.arange(120) >= 18), None, labels)  # 18 of B
    assert m.kbet(apart, few, batches) == m.kbet(apart[60:], labels[60:], batches[60:])
    enough = np.where((labels == "B") & (np.arange(120) >= 20), None, labels)
    kept = enough == "B"
    assert np.isfinite(m.kbet(apart[kept], enough[kept], batches[kept]))


def test_scib_metrics_is_asked_for_by_its_extra(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'scgpt_tl\[scib\]'"):
        metrics.mixing_scores(*cells)


@pytest.mark.filterwarnings("default")  # jax and scib-metrics warn as they load
def test_scores(cells, scib):
    points, labels, batches = cells
    found = m.mixing_scores(points, labels, batches)
    apart = m.mixing_scores(points + 40 * (batches == "x")[:, None], labels, batches)
    for name in ("bras", "ilisi", "kbet"):
        assert 0 <= getattr(apart, name) < getattr(found, name) <= 1
    assert found.clisi > 0.9
    assert found.kbet == m.kbet(points, labels, batches)
    assert (found.n_cells, found.n_left_out) == (120, 0)
    assert list(found.to_dict()) == ["BRAS", "iLISI", "cLISI", "kBET", "n_cells", "n_left_out"]
    assert found.bras == pytest.approx(bras(points, labels, batches), abs=1e-4)


def bras(points, labels, batches):
    """1 - |s| with cosine distances and the mean distance to all cells of other batches."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    means = []
    for one in np.unique(labels):
        rows = np.flatnonzero(labels == one)
        distance, batch = 1 - unit[rows] @ unit[rows].T, batches[rows]
        widths = []
        for i in range(len(rows)):
            own = batch == batch[i]
            a = distance[i, own].sum() / (own.sum() - 1)
            other = np.mean([distance[i, batch == name].mean() for name in set(batch) - {batch[i]}])
            widths.append(1 - abs((other - a) / max(a, other)))
        means.append(np.mean(widths))
    return np.mean(means)


@pytest.mark.filterwarnings("default")
def test_kbet_against_scib_metrics(scib):
    rng = np.random.default_rng(2)
    points, codes = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    near = m._near(scib, points).subset_neighbors(10)
    rate, _, pvalues = scib.kbet(near, codes)
    np.testing.assert_allclose(m.kbet_pvalues(codes, near.indices), pvalues, atol=1e-5)
    assert rate == pytest.approx((m.kbet_pvalues(codes, near.indices) >= 0.05).mean())


@pytest.mark.filterwarnings("default")
def test_one_type_and_missing_labels(cells, scib):
    points, labels, batches = cells[0], cells[1].astype(object), cells[2]
    labels[:7] = None
    found = m.mixing_scores(points, labels, batches)
    assert (found.n_cells, found.n_left_out) == (113, 7)
    one = m.mixing_scores(points[:60], ["B"] * 60, batches[:60])
    assert np.isnan(one.clisi)
    assert np.isfinite([one.bras, one.ilisi, one.kbet]).all()
    assert np.isnan(m.mixing_scores(points[:60], batches[:60], batches[:60]).bras)

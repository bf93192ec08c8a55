from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.metrics import silhouette_score

from scgpt_tl.metrics import _batches as b
from scgpt_tl.metrics import _clustering as c


@pytest.fixture(scope="module")
def cells():
    """Three clouds of 40 cells, each of two batches that lie in each other, a fourth type in one batch only."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(8 * np.eye(4, 5)[i], 1, (40, 5)) for i in range(4)])
    batches = np.tile(["x", "y"], 80)
    batches[120:] = "x"
    return points, np.repeat(["B", "NK", "T", "mono"], 40), batches


def silhouettes(points, codes):
    """(b - a) / max(a, b) of each cell, from all distances; 0 for a group of one cell."""
    codes = np.asarray(codes)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = np.zeros(len(points))
    for i in range(len(points)):
        own = codes == codes[i]
        if own.sum() == 1:
            continue
        a = distance[i, own].sum() / (own.sum() - 1)
        nearest = min(distance[i, codes == other].mean() for other in set(codes) - {codes[i]})
        found[i] = (nearest - a) / max(a, nearest)
    return found


def components(edges, rows):
    """Size of the largest set of `rows` that edges among them join, by walking."""
    left, best = set(rows), 0
    while left:
        heap, seen = [left.pop()], 1
        while heap:
            i = heap.pop()
            near = {j for j in left if edges[i, j] or edges[j, i]}
            left -= near
            seen += len(near)
            heap += near
        best = max(best, seen)
    return best


def test_by_the_formulas(cells):
    points, labels, batches = cells
    scores = b.batch_scores(points, labels, batches)
    assert scores.asw_batch == pytest.approx(1 - abs(silhouettes(points, batches).mean()))
    assert scores.asw_batch == pytest.approx(1 - abs(silhouette_score(points, batches)))
    per_type = [1 - np.abs(silhouettes(points[labels == t], batches[labels == t])).mean() for t in ("B", "NK", "T")]
    assert scores.asw_batch_per_type == pytest.approx(np.mean(per_type))
    graph = c.neighbour_graph(points).toarray()
    shares = [components(graph, np.flatnonzero(labels == t)) / 40 for t in ("B", "NK", "T", "mono")]
    assert scores.graph_connectivity == pytest.approx(np.mean(shares))
    assert scores.avg_batch == pytest.approx((scores.asw_batch + scores.graph_connectivity) / 2)
    assert (scores.n_cells, scores.n_left_out) == (160, 0)
    assert scores == b.batch_scores(points, labels, batches, graph=c.neighbour_graph(points))
    assert b.asw_batch(points, batches) == scores.asw_batch
    assert b.asw_batch_per_type(points, labels, batches) == scores.asw_batch_per_type
    assert scores.to_dict()["AvgBATCH"] == scores.avg_batch


def test_a_sign_is_lost_over_all_cells_and_each_cells_within_types():
    # two batches, silhouettes of both signs: the mean of absolute values is not the absolute mean
    points = np.array([[0.0], [1], [5], [2], [8], [9], [30], [31]])
    labels, batches = np.repeat(["a", "b"], [6, 2]), np.array(list("xxxyyyxx"))
    within = silhouettes(points[:6], batches[:6])
    assert np.abs(within).mean() > abs(within.mean())
    assert b.asw_batch_per_type(points, labels, batches) == pytest.approx(1 - np.abs(within).mean())
    # cells nearer to the other batch than to their own: below 0 is no better than above
    line = np.arange(4.0)[:, None]
    assert silhouettes(line, list("xyxy")).mean() < 0
    assert b.asw_batch(line, list("xyxy")) == pytest.approx(1 + silhouettes(line, list("xyxy")).mean())


def test_graph_connectivity_by_hand():
    #  0 - 1   2 | 3 -> 4 - 5, and 2 - 3 joins two types
    edges = np.zeros((6, 6))
    edges[[0, 1, 3, 4, 5, 2, 3], [1, 0, 4, 5, 4, 3, 2]] = 1
    assert b.graph_connectivity(csr_matrix(edges), list("aaabbb")) == pytest.approx((2 / 3 + 3 / 3) / 2)
    assert b.graph_connectivity(edges, ["a", "a", None, "b", "b", "c"]) == pytest.approx((1 + 1 + 1) / 3)
    assert b.graph_connectivity(np.zeros((3, 3)), ["a", "a", "a"]) == pytest.approx(1 / 3)
    for bad in (["a"] * 5, [None] * 6):
        with pytest.raises(ValueError, match=r"\(6, 6\) cells needs as many labels"):
            b.graph_connectivity(edges, bad)


def test_batches_apart_score_low(cells):
    points, labels, batches = cells
    apart = points + 50 * (batches == "y")[:, None]
    assert b.batch_scores(apart, labels, batches).asw_batch < 0.3
    assert b.batch_scores(apart, labels, batches).graph_connectivity == pytest.approx((3 * 0.5 + 1) / 4)


@pytest.mark.parametrize("missing", [None, np.nan, ""])
def test_cells_without_label_or_batch_are_left_out_and_counted(cells, missing):
    points, labels, batches = cells[0], cells[1].astype(object), cells[2].astype(object)
    labels[:5] = missing
    batches[3:9] = missing
    found = b.batch_scores(points, pd.Series(labels), batches)
    assert (found.n_cells, found.n_left_out) == (151, 9)
    plain = b.batch_scores(points[9:], labels[9:], batches[9:])
    assert found.graph_connectivity == pytest.approx(plain.graph_connectivity)
    assert found.asw_batch == pytest.approx(plain.asw_batch)
    with pytest.raises(ValueError, match="9 cells have no label or no batch"):
        b.batch_scores(points, labels, batches, graph=c.neighbour_graph(points))


def test_one_cell_types_and_batches():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 3))
    labels = np.repeat(["a", "b"], [29, 1])
    batches = np.repeat(["x", "y", "z"], [20, 9, 1])
    scores = b.batch_scores(points, labels, batches)
    assert np.isfinite([scores.asw_batch, scores.graph_connectivity, scores.asw_batch_per_type]).all()
    # every type in one batch: nothing can be said within types
    assert np.isnan(b.asw_batch_per_type(points, batches, batches))


@pytest.mark.parametrize(
    ("labels", "batches", "says"),
    [
        (["a"] * 4, ["x"] * 4, "1 distinct batches on 4 labelled cells"),
        (["a"] * 4, list("wxyz"), "more cells than batches"),
        (["a"] * 4, [None] * 4, "0 distinct batches"),
        ([None] * 4, list("xxyy"), "none of the 4 cells has a label"),
        (["a"] * 3, list("xxyy"), "4 cells in the embedding but 3 labels"),
        (["a"] * 4, list("xxy"), "4 cells in the embedding but 3 batches"),
    ],
)
def test_bad_input(labels, batches, says):
    with pytest.raises(ValueError, match=says):
        b.batch_scores(np.arange(8.0).reshape(4, 2), labels, batches)


def test_overall_and_avg_batch():
    assert b.overall(0.5, 1.0) == pytest.approx(0.7)
    assert b.avg_batch(0.4, 0.8) == pytest.approx(0.6)


@pytest.mark.filterwarnings("default")  # jax and scib-metrics warn as they load
def test_against_scib_metrics(cells):
    scib = pytest.importorskip("scib_metrics", reason="the extra 'scib' is not installed")
    theirs = scib.silhouette_batch(*(np.asarray(one) for one in cells))
    assert b.asw_batch_per_type(*cells) == pytest.approx(theirs, abs=1e-4)

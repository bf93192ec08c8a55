from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csr_matrix

from scgpt_tl.metrics import _clustering as c


@pytest.fixture(scope="module")
def blobs():
    """Three clouds of 40 cells in 5 dimensions, far apart, and their names."""
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(3, 5)
    points = np.concatenate([rng.normal(centre, 1, (40, 5)) for centre in centres]).astype(np.float32)
    return points, np.repeat(["B", "NK", "T"], 40)


def test_resolutions_are_the_preprints():
    assert len(c.RESOLUTIONS) == 20
    assert c.RESOLUTIONS[0] == 0.1
    assert c.RESOLUTIONS[2] == 0.3  # and not 0.30000000000000004
    assert c.RESOLUTIONS[-1] == 2.0


def test_nmi_and_ari_by_hand():
    labels = ["a", "a", "a", "b", "b", "b"]
    assert c.nmi(labels, [5, 5, 5, 2, 2, 2]) == pytest.approx(1)
    assert c.ari(labels, [5, 5, 5, 2, 2, 2]) == 1
    assert c.nmi(labels, [0] * 6) == pytest.approx(0)
    # one cell astray. H(labels) = ln 2; sums over the table 3 0 / 1 2, clusters of 4 and 2
    clusters = [0, 0, 0, 0, 1, 1]
    h_clusters = -(4 / 6 * np.log(4 / 6) + 2 / 6 * np.log(2 / 6))
    cells = [(3 / 6, 1 / 2, 4 / 6), (1 / 6, 1 / 2, 4 / 6), (2 / 6, 1 / 2, 2 / 6)]
    mutual = sum(p * np.log(p / (q * r)) for p, q, r in cells)
    assert c.nmi(labels, clusters) == pytest.approx(mutual / ((np.log(2) + h_clusters) / 2))
    # pairs together in both: 3 + 1 = 4; in labels 6, in clusters 7, of 15
    assert c.ari(labels, clusters) == pytest.approx((4 - 6 * 7 / 15) / ((6 + 7) / 2 - 6 * 7 / 15))


def test_cells_without_label_are_no_group_of_their_own():
    assert c.nmi(["a", "a", "b", "b", None, None], [0, 0, 1, 1, 0, 1]) == pytest.approx(1)
    assert c.ari(["a", "a", "b", "b", None, None], [0, 0, 1, 1, 0, 1]) == 1


def test_asw_by_hand():
    # silhouettes of 0 1 | 10 12 on a line, (b - a) / max(a, b)
    points = np.array([[0.0], [1.0], [10.0], [12.0]])
    silhouettes = [(11 - 1) / 11, (10 - 1) / 10, (9.5 - 2) / 9.5, (11.5 - 2) / 11.5]
    assert c.asw_label(points, ["a", "a", "b", "b"]) == pytest.approx((np.mean(silhouettes) + 1) / 2)


def test_avg_bio_is_the_mean():
    assert c.avg_bio(0.3, 0.6, 0.9) == pytest.approx(0.6)


def test_separate_clouds_are_found(blobs):
    scores = c.cluster_scores(*blobs)
    assert scores.nmi == pytest.approx(1)
    assert scores.ari == 1
    assert scores.n_clusters == 3
    assert scores.asw > 0.8
    assert scores.avg_bio == pytest.approx((scores.nmi + scores.ari + scores.asw) / 3)


def test_noise_scores_low(blobs):
    noise = np.random.default_rng(1).normal(size=blobs[0].shape)
    scores = c.cluster_scores(noise, blobs[1])
    assert scores.nmi < 0.15
    assert abs(scores.ari) < 0.1
    assert scores.asw == pytest.approx(0.5, abs=0.05)


def test_same_answer_twice():
    noise = np.random.default_rng(2).normal(size=(150, 4))
    graph = c.neighbour_graph(noise)
    first = c.leiden(graph, resolutions=(0.5, 1.5), rng=3)
    assert (c.leiden(graph, resolutions=(0.5, 1.5), rng=3) == first).all()
    assert (c.leiden(graph, resolutions=(1.5,), rng=3)[0] == first[1]).all()


def test_best_resolution_is_the_best_nmi():
    rng = np.random.default_rng(3)
    points = rng.normal(np.repeat(np.arange(6), 30)[:, None] * 2.2, 1, (180, 3))
    labels = np.repeat(np.arange(6), 30)
    graph = c.neighbour_graph(points)
    every = [c.nmi(labels, row) for row in c.leiden(graph)]
    scores = c.cluster_scores(points, labels)
    assert scores.nmi == max(every)
    assert scores.resolution == c.RESOLUTIONS[int(np.argmax(every))]
    assert scores.ari == c.ari(labels, c.leiden(graph, resolutions=(scores.resolution,))[0])


def test_medians_over_seeds():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(200, 3))
    labels = rng.integers(4, size=200)
    single = [c.cluster_scores(points, labels, seeds=(seed,)).nmi for seed in range(3)]
    assert c.cluster_scores(points, labels, seeds=range(3)).nmi == sorted(single)[1]


@pytest.mark.parametrize("missing", [None, np.nan, "", " "])
def test_unlabelled_cells_are_left_out_and_counted(blobs, missing):
    points, labels = blobs
    labels = labels.astype(object)
    labels[::10] = missing
    kept = np.arange(120) % 10 != 0
    scores = c.cluster_scores(points, labels)
    assert scores.n_unlabelled == 12
    assert scores.n_cells == 108
    plain = c.cluster_scores(points[kept], labels[kept])
    assert scores.asw == pytest.approx(plain.asw)
    assert c.asw_label(points, labels) == pytest.approx(plain.asw)
    assert c.nmi(labels, labels.astype(str)) == pytest.approx(1)


def test_categorical_with_nan(blobs):
    labels = pd.Series(pd.Categorical(blobs[1]))
    labels.iloc[:2] = np.nan
    assert c.cluster_scores(blobs[0], labels).n_unlabelled == 2


def test_fewer_cells_than_neighbours():
    points = np.array([[0.0, 0], [0.1, 0], [5, 0], [5.1, 0]])
    assert c.cluster_scores(points, ["a", "a", "b", "b"]).n_cells == 4


@pytest.mark.parametrize(
    ("points", "labels", "says"),
    [
        (np.zeros((4, 2, 2)), list("aabb"), "shape"),
        (np.zeros((2, 2)), list("ab"), "at least 3 cells"),
        (np.array([[0.0], [np.nan], [1], [2]]), list("aabb"), "1 of 4 cells"),
        (np.zeros((4, 2)), list("aab"), "4 cells in the embedding but 3 labels"),
        (np.zeros((4, 2)), list("aaaa"), "1 distinct labels"),
        (np.zeros((4, 2)), list("abcd"), "more cells than labels"),
        (np.zeros((4, 2)), [None] * 4, "0 distinct labels on 0 labelled"),
    ],
)
def test_bad_input(points, labels, says):
    with pytest.raises(ValueError, match=says):
        c.cluster_scores(points, labels)


def test_labels_and_clusters_of_two_lengths():
    with pytest.raises(ValueError, match="3 labels but 2 cluster"):
        c.nmi(list("aab"), [0, 1])


@pytest.mark.parametrize("score", [c.nmi, c.ari])
@pytest.mark.parametrize(
    ("labels", "clusters", "says"),
    [
        ([None, None, np.nan], [1, 2, 3], "none of the 3 cells has a label; is this the right column"),
        ([], [], "none of the 0 cells has a label"),
        (["a", "b", "a", None], [1, np.nan, 1, np.nan], "1 of 3 labelled cells have no cluster: leave them out"),
        (["a", "b", "a"], ["x", None, "x"], "1 of 3 labelled cells have no cluster"),
    ],
)
def test_what_is_missing_is_no_agreement(score, labels, clusters, says):
    with pytest.raises(ValueError, match=says):
        score(labels, clusters)


@pytest.mark.parametrize("score", [c.nmi, c.ari])
def test_clusters_may_be_named_in_any_way(score):
    for clusters in (["x", 1, "x"], pd.Categorical(["x", "y", "x"]), [1.0, 2.0, 1.0]):
        assert score(["a", "b", "a"], clusters) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": ()}, "seeds is empty"),
        ({"resolutions": []}, "resolutions is empty"),
        ({"n_neighbors": 1}, "n_neighbors=1: a whole number of at least 2"),
        ({"n_neighbors": 2.5}, "n_neighbors=2.5: a whole number"),
    ],
)
def test_bad_options(blobs, options, says):
    with pytest.raises(ValueError, match=says):
        c.cluster_scores(*blobs, **options)


def test_one_seed_and_one_resolution_need_no_list(blobs):
    one = c.cluster_scores(*blobs, seeds=1, resolutions=0.5)
    assert one == c.cluster_scores(*blobs, seeds=(1,), resolutions=(0.5,))


def test_clusters_are_scanpys(blobs):
    """The same well-parted clouds, clustered by scanpy's own call."""
    graph = c.neighbour_graph(blobs[0])
    holder = ad.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(120)]))
    sc.tl.leiden(
        holder, adjacency=graph.tocsr(), resolution=0.3, flavor="igraph", n_iterations=2, directed=False, random_state=0
    )
    assert c.ari(holder.obs["leiden"], c.leiden(graph, resolutions=(0.3,))[0]) == 1


@pytest.mark.filterwarnings("ignore:In the future, the default backend for leiden:FutureWarning")  # scanpy's
def test_leidenalg_finds_the_same_clouds(blobs):
    pytest.importorskip("leidenalg")
    graph = c.neighbour_graph(blobs[0])
    holder = ad.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(120)]))
    sc.tl.leiden(holder, adjacency=graph.tocsr(), resolution=2.0, flavor="leidenalg", n_iterations=-1, directed=False)
    found = c.leiden(graph, resolutions=(0.3, 2.0), flavor="leidenalg")
    assert found.dtype == np.int32
    assert c.ari(blobs[1], found[0]) == 1
    assert c.ari(holder.obs["leiden"], found[1]) > 0.8
    np.testing.assert_array_equal(found[1], c.leiden(graph, resolutions=(2.0,), flavor="leidenalg")[0])


def test_neighbours_are_exact_where_asked_for(blobs, monkeypatch: pytest.MonkeyPatch):
    asked = []
    neighbors = sc.pp.neighbors
    monkeypatch.setattr(sc.pp, "neighbors", lambda *x, **how: asked.append(how["transformer"]) or neighbors(*x, **how))
    first, exact = c.neighbour_graph(blobs[0]), c.neighbour_graph(blobs[0], exact=True)
    assert abs(first - exact).max() == 0
    assert asked == [None, "sklearn"]


@pytest.mark.filterwarnings("default")  # jax and scib-metrics warn as they load
def test_against_scib_metrics(blobs):
    scib = pytest.importorskip("scib_metrics")
    points = blobs[0] + np.random.default_rng(5).normal(0, 3, blobs[0].shape).astype(np.float32)
    assert c.asw_label(points, blobs[1]) == pytest.approx(scib.silhouette_label(points, blobs[1]), abs=1e-5)
    graph = SimpleNamespace(knn_graph_connectivities=csr_matrix(c.neighbour_graph(points)))
    theirs = scib.nmi_ari_cluster_labels_leiden(graph, blobs[1], optimize_resolution=True)
    ours = c.cluster_scores(points, blobs[1], resolutions=[0.2 * step for step in range(1, 11)])
    assert ours.nmi == pytest.approx(theirs["nmi"], abs=0.02)  # Leiden's seed is another
    assert ours.ari == pytest.approx(theirs["ari"], abs=0.02)

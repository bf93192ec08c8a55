from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scgpt_tl import metrics


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    labels = np.repeat(["B", "T"], 30).astype(object)
    labels[0] = None
    data = ad.AnnData(
        np.ones((60, 2), np.float32),
        obs=pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[str(i) for i in range(60)]),
    )
    data.obsm["X_scGPT"] = np.repeat([[0.0, 0], [9, 9]], 30, axis=0) + rng.normal(size=(60, 2))
    data.obsm["X_noise"] = rng.normal(size=(60, 2))
    return data


def test_table(adata):
    table = metrics.compare(adata, embeddings={"scGPT": "X_scGPT", "noise": "X_noise"}, labels_key="cell_type")
    assert list(table.index) == ["scGPT", "noise"]
    assert list(table.columns[:4]) == ["NMI", "ARI", "ASW", "AvgBIO"]
    expected = metrics.cluster_scores(adata.obsm["X_noise"], adata.obs["cell_type"], seeds=range(5)).to_dict()
    assert table.loc["noise"].to_dict() == pytest.approx(expected)
    assert table.loc["scGPT", "n_cells"] == 59
    assert table.loc["scGPT", "n_unlabelled"] == 1
    assert table["n_cells"].dtype == int
    own, other = table["AvgBIO"]
    assert table.attrs["verdict"] == f"scGPT: AvgBIO {own:.2f} on 59 labelled cells, above noise ({other:.2f})."


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_cells_that_are_left_out_may_have_no_place(mixed, batch_key):
    options = {"embeddings": {"a": "X_scGPT"}, "labels_key": "cell_type", "batch_key": batch_key, "seeds": (0,)}
    whole = metrics.compare(mixed, **options)
    mixed.obsm["X_scGPT"][0] = np.nan  # has no label
    pd.testing.assert_frame_equal(metrics.compare(mixed, **options), whole)
    mixed.obsm["X_scGPT"][1] = np.nan
    with pytest.raises(ValueError, match="1 of 60 cells have NaN"):
        metrics.compare(mixed, **options)


@pytest.mark.parametrize("keys", ["kept", ["kept"]])
@pytest.mark.parametrize("kind", [csr_matrix, pd.DataFrame, np.asarray])
def test_keys_alone_are_their_own_names_and_any_storage_is_read(adata, keys, kind):
    options = {"labels_key": "cell_type", "seeds": 0, "resolutions": (0.5,)}
    points = pd.DataFrame(adata.obsm["X_noise"], index=adata.obs_names)
    adata.obsm["kept"] = points if kind is pd.DataFrame else kind(points)
    expected = metrics.compare(adata, embeddings={"kept": "X_noise"}, **options)
    pd.testing.assert_frame_equal(metrics.compare(adata, embeddings=keys, **options), expected)


def test_missing_slots_are_named(adata):
    with pytest.raises(KeyError, match="cell_type"):
        metrics.compare(adata, embeddings={"scGPT": "X_scGPT"}, labels_key="celltype")
    with pytest.raises(KeyError, match="X_other"):
        metrics.compare(adata, embeddings={"other": "X_other"}, labels_key="cell_type")
    del adata.obsm["X_scGPT"]
    with pytest.raises(KeyError, match=r"tl\.scgpt_embed"):
        metrics.compare(adata, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type")
    with pytest.raises(ValueError, match="empty"):
        metrics.compare(adata, embeddings={}, labels_key="cell_type")


@pytest.fixture
def mixed(adata):
    """The same with two batches, one of them unknown for one cell, and counts that tell the types."""
    rng = np.random.default_rng(1)
    adata = ad.AnnData(
        rng.poisson(np.where(np.arange(30) < 15, [[4.0]] * 30 + [[1.0]] * 30, 2)), adata.obs, obsm=adata.obsm
    )
    adata.obs["batch"] = pd.Categorical(np.tile(["x", "y"], 30))
    adata.obs.loc["7", "batch"] = None
    return adata


def test_batches_add_their_scores_and_overall(mixed):
    table = metrics.compare(
        mixed, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type", batch_key="batch", seeds=(0,)
    )
    assert list(table.columns) == [
        "NMI", "ARI", "ASW", "AvgBIO", "ASW_batch", "GraphConn", "AvgBATCH", "Overall",
        "resolution", "n_clusters", "n_cells", "n_unlabelled",
    ]  # fmt: skip
    row = table.loc["scGPT"]
    assert (row["n_cells"], row["n_unlabelled"]) == (58, 2)
    kept = np.delete(np.arange(60), [0, 7])
    points, labels = mixed.obsm["X_scGPT"][kept], mixed.obs["cell_type"].iloc[kept]
    bio = metrics.cluster_scores(points, labels)
    batch = metrics.batch_scores(points, labels, mixed.obs["batch"].iloc[kept])
    assert row["AvgBIO"] == pytest.approx(bio.avg_bio)
    assert row["AvgBATCH"] == pytest.approx(batch.avg_batch)
    assert row["Overall"] == pytest.approx(0.6 * bio.avg_bio + 0.4 * batch.avg_batch)
    assert table.attrs["verdict"].startswith(f"scGPT: Overall {row['Overall']:.2f} on 58 labelled cells")


def test_baselines_are_made_on_the_spot_and_nothing_is_written(mixed):
    before = mixed.copy()
    table = metrics.compare(mixed, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type", baselines=("hvg_pca",))
    expected = metrics.cluster_scores(metrics.hvg_pca(mixed.X), mixed.obs["cell_type"], seeds=range(5))
    assert table.loc["HVG + PCA", "AvgBIO"] == pytest.approx(expected.avg_bio)
    options = metrics.compare(
        mixed, embeddings={"a": "X_scGPT"}, labels_key="cell_type", baselines={"hvg_pca": {"n_components": 2}}
    )
    assert options.loc["HVG + PCA", "ASW"] == pytest.approx(
        metrics.asw_label(metrics.hvg_pca(mixed.X, n_components=2), mixed.obs["cell_type"])
    )
    assert list(mixed.obsm) == list(before.obsm)
    assert (mixed.X == before.X).all()
    pd.testing.assert_frame_equal(mixed.obs, before.obs)


def test_harmony_sees_cells_that_have_a_batch(mixed):
    pytest.importorskip("harmonypy", reason="the extra 'harmony' is not installed")
    table = metrics.compare(
        mixed, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type", batch_key="batch", seeds=(0,),
        baselines=["hvg_pca", "harmony"],
    )  # fmt: skip
    assert list(table.index) == ["scGPT", "HVG + PCA", "Harmony"]
    rows = np.delete(np.arange(60), 7)
    corrected = metrics.harmony(mixed.X[rows], mixed.obs["batch"].iloc[rows])[1:]
    batch = metrics.batch_scores(corrected, mixed.obs["cell_type"].iloc[rows[1:]], mixed.obs["batch"].iloc[rows[1:]])
    assert table.loc["Harmony", "AvgBATCH"] == pytest.approx(batch.avg_batch)


def test_layer_is_what_baselines_are_made_of(mixed):
    mixed.layers["counts"] = mixed.X.copy()
    mixed.X = np.zeros(mixed.shape)
    table = metrics.compare(
        mixed, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type", baselines=("hvg_pca",), layer="counts"
    )
    expected = metrics.asw_label(metrics.hvg_pca(mixed.layers["counts"]), mixed.obs["cell_type"])
    assert table.loc["HVG + PCA", "ASW"] == pytest.approx(expected)
    with pytest.raises(KeyError, match="'nowhere' is not in"):
        metrics.compare(
            mixed, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type", baselines=("hvg_pca",), layer="nowhere"
        )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"baselines": ("hvg",)}, "no baseline 'hvg'; there are 'hvg_pca', 'harmony', 'scvi'"),
        ({"baselines": "hvg_pca"}, "one name: give a sequence"),
        ({"baselines": ("harmony",)}, "harmony is about batches"),
        ({"extended": True}, "extended=True is about batches"),
        ({"embeddings": {"HVG + PCA": "X_noise"}, "baselines": ("hvg_pca",)}, "asked for twice"),
        ({"embeddings": []}, "embeddings is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"resolutions": ()}, "resolutions is empty"),
        ({"n_neighbors": 1}, "n_neighbors=1: a whole number of at least 2"),
    ],
)
def test_bad_options(adata, options, says):
    with pytest.raises(ValueError, match=says):
        metrics.compare(adata, **{"embeddings": {"scGPT": "X_scGPT"}, "labels_key": "cell_type", **options})


def test_bad_batches_and_labels_come_before_the_work(mixed, monkeypatch):
    from scgpt_tl.metrics import _compare

    monkeypatch.setattr(_compare, "_made", lambda *_: pytest.fail("a baseline was made"))
    asked = {"embeddings": {"scGPT": "X_scGPT"}, "labels_key": "cell_type", "baselines": ("hvg_pca",)}
    with pytest.raises(KeyError, match="batch_key may be one of"):
        metrics.compare(mixed, batch_key="donor", **asked)
    mixed.obs["one"] = "x"
    with pytest.raises(ValueError, match="1 distinct batches"):
        metrics.compare(mixed, batch_key="one", **asked)
    with pytest.raises(ValueError, match="1 distinct labels"):
        metrics.compare(mixed, **{**asked, "labels_key": "one"})
    mixed.obs["none"] = np.nan
    with pytest.raises(ValueError, match="0 distinct"):
        metrics.compare(mixed, **{**asked, "labels_key": "none"})
    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r"scgpt_tl\[scib\]"):
        metrics.compare(mixed, batch_key="batch", extended=True, **asked)


@pytest.mark.filterwarnings("default")  # jax and scib-metrics warn as they load
def test_extended(mixed):
    pytest.importorskip("scib_metrics", reason="the extra 'scib' is not installed")
    table = metrics.compare(
        mixed, embeddings={"scGPT": "X_scGPT"}, labels_key="cell_type", batch_key="batch", extended=True, seeds=(0,)
    )
    kept = np.delete(np.arange(60), [0, 7])
    expected = metrics.mixing_scores(
        mixed.obsm["X_scGPT"][kept], mixed.obs["cell_type"].iloc[kept], mixed.obs["batch"].iloc[kept]
    )
    assert list(table.columns[8:13]) == ["ASW_batch (per type)", "BRAS", "iLISI", "cLISI", "kBET"]
    assert table.loc["scGPT", "BRAS"] == pytest.approx(expected.bras)
    assert table.loc["scGPT", "iLISI"] == pytest.approx(expected.ilisi)

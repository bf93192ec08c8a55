from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get, metrics


@pytest.fixture
def adata():
    data = ad.AnnData(np.ones((2, 2), np.float32))
    data.uns["scgpt"] = {
        "scgpt_tl": "0.1",
        "params": {"model": "pbmc-mini", "genes": {"matched": 2}},
        "history": {"step": np.array([10, 20]), "loss": np.array([2.0, 1.5])},
    }
    return data


def test_run_params_are_flat_and_tidy(adata):
    table = get.run_params(adata)
    assert table.index.name == "parameter"
    assert table["value"].to_dict() == {"scgpt_tl": "0.1", "params.model": "pbmc-mini", "params.genes.matched": 2}


def test_run_params_missing(adata):
    with pytest.raises(KeyError, match=r"'mine'.*scgpt_embed.*\['scgpt'\]"):
        get.run_params(adata, key="mine")


def test_history_in_every_form(adata):
    history = adata.uns["scgpt"]["history"]
    records = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}]
    frame = pd.DataFrame(history)
    model = SimpleNamespace(provenance={"history": records})
    for data in (adata, history, {"history": history}, records, frame, frame.set_index("step"), model):
        table = get.history_df(data)
        assert table.index.name == "step"
        assert table["loss"].to_dict() == {10: 2.0, 20: 1.5}


def test_history_without_steps_counts_records():
    table = get.history_df([{"loss": "3"}, {"loss": 2}])
    assert table.index.name == "record"
    assert table["loss"].tolist() == [3.0, 2.0]


def test_history_missing_empty_or_strange(adata):
    del adata.uns["scgpt"]["history"]
    with pytest.raises(KeyError, match="no training history"):
        get.history_df(adata, key="scgpt")
    with pytest.raises(KeyError, match=r"no result.*scgpt_annotate.*scgpt_integrate"):
        get.history_df(adata)
    with pytest.raises(ValueError, match="empty"):
        get.history_df([])
    with pytest.raises(TypeError, match="not int"):
        get.history_df(3)


def test_history_of_several_results_and_through_h5ad(adata, tmp_path):
    """A name with a slash comes back from an h5ad as a group: both ways of keeping it read alike."""
    history = {
        "epoch": np.array([0, 1]),
        "train": {"loss": np.array([3.0, 2.0])},
        "held_out": {"loss": np.array([4.0, 3.0])},
    }
    adata.uns["scgpt_pred"] = {"scgpt_tl": "tl.scgpt_annotate", "history": history}
    with pytest.raises(KeyError, match=r"several.*'scgpt', 'scgpt_pred'.*key="):
        get.history_df(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    flat = {"epoch": [0, 1], "train/loss": [3.0, 2.0], "held_out/loss": [4.0, 3.0]}
    expected = pd.DataFrame(flat).set_index("epoch")
    for data in (adata, read):
        pd.testing.assert_frame_equal(get.history_df(data, key="scgpt_pred")[["train/loss", "held_out/loss"]], expected)
    pd.testing.assert_frame_equal(get.history_df(flat), expected)


@pytest.fixture
def annotated():
    shares = np.array(
        [[0.7, 0.2, 0.1], [0.2, 0.35, 0.45], [0.05, 0.9, 0.05], [0.5, 0.5, 0.0], [np.nan] * 3], np.float32
    )
    obs = pd.DataFrame(
        {
            "truth": ["B", "T", "NK", np.nan, "B"],
            "scgpt_pred": pd.Categorical(
                ["B", "unknown", "NK", "B", "unknown"], categories=["B", "NK", "T", "unknown"]
            ),
            "scgpt_probability": shares.max(axis=1),
        },
        index=list("abcde"),
    )
    data = ad.AnnData(obs=obs, obsm={"scgpt_probabilities": shares})
    data.uns["scgpt_pred"] = {"scgpt_tl": "tl.scgpt_annotate", "classes": np.array(["B", "NK", "T"])}
    return data


def test_annotation_tells_call_runner_up_and_margin(annotated):
    before = annotated.copy()
    table = get.annotation_df(annotated)
    assert table.index.tolist() == list("abcde")
    assert table["pred"].tolist() == ["B", "unknown", "NK", "B", "unknown"]
    assert table["first"].iloc[:4].tolist() == ["B", "T", "NK", "B"]
    assert table["second"].iloc[:4].tolist() == ["NK", "NK", "B", "NK"]
    np.testing.assert_allclose(table["first_probability"], table["probability"])
    np.testing.assert_allclose(table["second_probability"].iloc[:4], [0.2, 0.35, 0.05, 0.5])
    np.testing.assert_allclose(table["margin"].iloc[:4], [0.5, 0.1, 0.85, 0], atol=1e-6)
    assert table.iloc[4][["first", "second", "margin"]].isna().all()
    pd.testing.assert_frame_equal(annotated.obs, before.obs)


def test_annotation_without_probabilities_or_of_one_class(annotated):
    annotated.obs["scgpt_mapped"], annotated.obs["scgpt_mapped_probability"] = "B", 0.5
    table = get.annotation_df(annotated, key="scgpt_mapped")
    assert table["probability"].tolist() == [0.5] * 5
    assert table[["first", "second", "margin"]].isna().all(axis=None)
    annotated.obsm["scgpt_mapped_probabilities"] = np.ones((5, 1))
    annotated.uns["scgpt_mapped"] = {"classes": np.array(["B"])}
    table = get.annotation_df(annotated, key="scgpt_mapped")
    assert table["first"].tolist() == ["B"] * 5
    assert table["second"].isna().all()


def test_another_methods_probabilities_name_their_own_columns(annotated):
    annotated.obs["mine"], annotated.obs["mine_probability"] = "B", 0.6
    shares = pd.DataFrame({"B": [0.6] * 5, "T": [0.4] * 5}, index=annotated.obs_names)
    annotated.obsm["mine_probabilities"] = shares
    assert get.annotation_df(annotated, key="mine")["second"].tolist() == ["T"] * 5


def test_annotation_survives_h5ad(annotated, tmp_path):
    annotated.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(
        get.annotation_df(ad.read_h5ad(tmp_path / "a.h5ad")), get.annotation_df(annotated), check_index_type=False
    )


def test_missing_slots_name_their_makers(annotated):
    with pytest.raises(KeyError, match=r"'scgpt_mapped'; scgpt_tl\.tl\.scgpt_map\(query, reference\) makes it"):
        get.annotation_df(annotated, key="scgpt_mapped")
    with pytest.raises(KeyError, match=r"no column 'cell_type'; there are"):
        get.confusion_df(annotated, truth_key="cell_type")
    annotated.obsm["scgpt_probabilities"] = np.ones((5, 2))
    with pytest.raises(ValueError, match=r"shape \(5, 2\).*3 classes"):
        get.annotation_df(annotated)
    del annotated.uns["scgpt_pred"]["classes"]
    with pytest.raises(KeyError, match=r"names no classes.*scgpt_annotate"):
        get.annotation_df(annotated)
    del annotated.uns["scgpt_pred"]
    with pytest.raises(KeyError, match=r"no result 'scgpt_pred'; scgpt_tl\.tl\.scgpt_annotate"):
        get.annotation_df(annotated)
    del annotated.obs["scgpt_pred"]
    with pytest.raises(KeyError, match=r"no column 'scgpt_pred'; scgpt_tl\.tl\.scgpt_annotate"):
        get.confusion_df(annotated, truth_key="truth")


def pairs(truth, pred):
    """A confusion table of two lists."""
    obs = pd.DataFrame({"truth": truth, "pred": pred}, index=[str(i) for i in range(len(truth))])
    return get.confusion_df(ad.AnnData(obs=obs), truth_key="truth", pred_key="pred")


def test_confusion_counts_every_pair(annotated):
    table = get.confusion_df(annotated, truth_key="truth")
    assert table.columns.tolist() == ["truth", "pred", "n", "share"]
    assert table.attrs["n_missing"] == 1
    found = {(t, p): (n, s) for t, p, n, s in table.itertuples(index=False) if n}
    assert found == {("B", "B"): (1, 0.5), ("B", "unknown"): (1, 0.5), ("NK", "NK"): (1, 1), ("T", "unknown"): (1, 1)}
    assert table["pred"].cat.categories.tolist() == ["B", "NK", "T", "unknown"]
    np.testing.assert_allclose(table.groupby("truth", observed=True)["share"].sum(), 1)


def test_confusion_agrees_with_class_scores(annotated):
    rng = np.random.default_rng(0)
    truth = rng.choice(["B", "T", "NK", None], 200)
    pred = rng.choice(["B", "T", "Mono", "unknown", None], 200)
    table = pairs(truth, pred)
    scores = metrics.class_scores(truth, pred)
    right = table.loc[table["truth"].astype(str) == table["pred"].astype(str), "n"].sum()
    assert table["n"].sum() == scores.n_cells
    assert right / table["n"].sum() == pytest.approx(scores.accuracy)
    assert table.loc[table["pred"] == "unknown", "n"].sum() == scores.n_unknown
    assert table.attrs["n_missing"] == scores.n_unlabelled


def test_confusion_orders_other_names_along_the_diagonal():
    truth = ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + ["d"] * 5 + ["new"] * 4
    pred = ["a"] * 4 + ["z"] + ["z"] * 5 + ["y"] * 4 + ["x"] + ["y"] * 2 + ["unknown"] * 3 + ["z"] * 3 + ["unknown"]
    table = pairs(truth, pred)
    assert table["truth"].cat.categories.tolist() == ["a", "b", "new", "c", "d"]
    assert table["pred"].cat.categories.tolist() == ["a", "z", "y", "x", "unknown"]


def test_confusion_reads_numbers_and_keeps_the_order_of_categories():
    table = pairs(pd.Categorical(["T", "B", "T"], categories=["T", "B", "none"]), ["T", "B", ""])
    assert table["truth"].cat.categories.tolist() == ["T", "B"]
    assert table["pred"].cat.categories.tolist() == ["T", "B", "unknown"]
    numbers = pairs([1.0, np.nan, 2.0], ["1", "1", "2"])
    assert numbers["n"].tolist() == [1, 0, 0, 1]


def test_confusion_refuses_measurements_and_truths_that_are_none():
    with pytest.raises(ValueError, match="holds measurements"):
        pairs([0.5, 1.5], ["a", "b"])
    with pytest.raises(ValueError, match="no true type"):
        pairs([np.nan, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match=r"2 cells.*'unknown'.*NaN"):
        pairs(["unknown", "unknown", "a"], ["a", "b", "a"])


def test_calibration_is_the_mean_gap_over_cells():
    """Guo et al., equation 3, by hand: 3 of 4 right at 0.9, 0 of 2 at 0.6 -> (4 * 0.15 + 2 * 0.6) / 6."""
    shares = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    obs = pd.DataFrame({"truth": ["a", "a", "a", "b", "a", "c"]}, index=list("uvwxyz"))
    obs["scgpt_pred"], obs["scgpt_probability"] = "unknown", shares.max(axis=1)
    data = ad.AnnData(
        obs=obs, obsm={"scgpt_probabilities": shares}, uns={"scgpt_pred": {"classes": np.array(["a", "b"])}}
    )
    table = get.calibration_df(data, truth_key="truth", n_bins=2)
    assert table["n"].tolist() == [0, 6]
    table = get.calibration_df(data, truth_key="truth", n_bins=10)
    assert table.loc[table["n"] > 0, "accuracy"].tolist() == [0, 0.75]
    assert table.attrs["ece"] == pytest.approx((4 * 0.15 + 2 * 0.6) / 6)
    np.testing.assert_allclose(table["high"] - table["low"], 0.1)
    assert table.loc[table["n"] == 0, ["confidence", "accuracy"]].isna().all(axis=None)


@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_calibration_agrees_with_the_metric(n_bins):
    rng = np.random.default_rng(1)
    shares = rng.dirichlet([0.3, 0.3, 0.3], size=500).astype(np.float32)
    shares[:3] = [[0.2, 0.4, 0.4], [1, 0, 0], [0.6, 0.4, 0]]  # edges of bins
    codes = rng.integers(-1, 3, 500)
    obs = pd.DataFrame({"truth": np.array(["a", "b", "c", "not in the reference"])[codes]}, index=map(str, range(500)))
    obs["k"], obs["k_probability"] = "a", shares.max(axis=1)
    data = ad.AnnData(obs=obs, obsm={"k_probabilities": shares}, uns={"k": {"classes": np.array(["a", "b", "c"])}})
    table = get.calibration_df(data, truth_key="truth", key="k", n_bins=n_bins)
    assert table.attrs["ece"] == pytest.approx(metrics.ece(shares, codes, n_bins=n_bins), abs=1e-9)
    assert table.attrs["n_cells"] == 500


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    obs = pd.DataFrame({"truth": ["a", "a"], "k": ["a", "a"], "k_probability": [0.5, 0.75]}, index=["x", "y"])
    table = get.calibration_df(ad.AnnData(obs=obs), truth_key="truth", key="k", n_bins=4)
    assert table["n"].tolist() == [0, 1, 1, 0]


def test_calibration_of_calls_alone_leaves_unknown_out():
    obs = pd.DataFrame({"truth": ["a", "b", "a", None], "k": ["a", "a", "unknown", "a"]}, index=list("wxyz"))
    obs["k_probability"] = [0.75, 0.75, 0.3, 0.9]
    table = get.calibration_df(ad.AnnData(obs=obs), truth_key="truth", key="k")
    assert table.attrs == {"ece": 0.25, "n_cells": 2, "n_missing": 2}


def test_calibration_refuses(annotated):
    with pytest.raises(ValueError, match="n_bins is 0"):
        get.calibration_df(annotated, truth_key="truth", n_bins=0)
    annotated.obsm["scgpt_probabilities"] = annotated.obsm["scgpt_probabilities"] * 9
    with pytest.raises(ValueError, match=r"not within \[0, 1\]"):
        get.calibration_df(annotated, truth_key="truth")
    annotated.obsm["scgpt_probabilities"][:] = np.nan
    annotated.obs["scgpt_probability"] = np.nan
    with pytest.raises(ValueError, match="no cell has both"):
        get.calibration_df(annotated, truth_key="truth")
    annotated.obs["truth"] = np.nan
    with pytest.raises(ValueError, match="no true type"):
        get.calibration_df(annotated, truth_key="truth")

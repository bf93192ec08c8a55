from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get, metrics


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

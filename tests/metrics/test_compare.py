from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

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


@pytest.mark.parametrize(
    ("other", "stand"), [(0.50, "above"), (0.595, "level with"), (0.605, "level with"), (0.62, "below")]
)
def test_verdict(other, stand):
    from scgpt_tl.metrics._compare import verdict

    table = pd.DataFrame({"AvgBIO": [0.6, other], "n_cells": [1234, 1234]}, index=["scGPT", "PCA"])
    assert verdict(table) == f"scGPT: AvgBIO 0.60 on 1,234 labelled cells, {stand} PCA ({other:.2f})."
    assert verdict(table[:1]) == "scGPT: AvgBIO 0.60 on 1,234 labelled cells."


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

"""Cells with results in their slots, made by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest


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

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get


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
        get.history_df(adata)
    with pytest.raises(ValueError, match="empty"):
        get.history_df([])
    with pytest.raises(TypeError, match="not int"):
        get.history_df(3)

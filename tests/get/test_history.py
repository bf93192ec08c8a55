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

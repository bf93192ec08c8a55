from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get


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

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get, metrics


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


def test_cells_may_share_a_name(annotated):
    expected = get.confusion_df(annotated, truth_key="truth")
    annotated.obs_names = ["a", "b", "a", "b", "a"]
    pd.testing.assert_frame_equal(get.confusion_df(annotated, truth_key="truth"), expected)


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


@pytest.mark.parametrize(
    ("truth", "pred"),
    [
        (["B ", "T", " B"], ["B", "T", "B"]),
        (pd.Categorical([0.0, 1.0, 0.0]), ["0", "1", "0"]),
        (np.array([0.0, 1.0, 0.0], dtype=object), ["0", "1", "0"]),
        (np.array([1, 2, 1]), pd.Categorical([1.0, 2.0, 1.0])),
    ],
)
def test_names_are_those_that_annotation_reads(truth, pred):
    table = pairs(truth, pred)
    assert table.loc[table["truth"].astype(str) == table["pred"].astype(str), "n"].sum() == 3


def test_measurements_are_no_names_as_categories_either():
    with pytest.raises(ValueError, match="holds measurements"):
        pairs(pd.Categorical([0.5, 1.0]), ["a", "b"])

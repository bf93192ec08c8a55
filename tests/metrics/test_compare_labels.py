from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import metrics


@pytest.fixture
def sides():
    """A reference of 80 cells and a query of 40 with calls, two of them unknown, and probabilities."""
    rng = np.random.default_rng(0)
    kind = np.arange(120) % 2
    X = rng.poisson(np.where(np.arange(30) % 2 == kind[:, None], 4.0, 1.0)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(["B", "T"])[kind]}, index=[f"c{i}" for i in range(120)])
    both = ad.AnnData(X, obs, pd.DataFrame(index=[f"G{i}" for i in range(30)]))
    reference, query = both[:80].copy(), both[80:].copy()
    called = query.obs["cell_type"].astype(object).to_numpy()
    called[:2] = "unknown"
    called[2] = "B" if called[2] == "T" else "T"
    query.obs["scgpt_pred"] = pd.Categorical(called)
    share = np.where(called == "B", 0.9, 0.2)
    query.obsm["scgpt_probabilities"] = np.column_stack([share, 1 - share]).astype(np.float32)
    query.uns["scgpt_pred"] = {"classes": np.array(["B", "T"])}
    return query, reference


def test_table(sides):
    query, reference = sides
    table = metrics.compare_labels(
        query, predictions={"scGPT": "scgpt_pred"}, labels_key="cell_type", reference=reference
    )
    assert list(table.index) == ["scGPT", "logistic regression", "kNN on PCA", "commonest type"]
    assert list(table.columns[:2]) == ["accuracy", "balanced accuracy"]
    assert table.loc["scGPT", "accuracy"] == 37 / 40
    assert table.loc["scGPT", "n_unknown"] == 2
    assert table["n_cells"].dtype == int
    shares = query.obsm["scgpt_probabilities"]
    codes = (query.obs["cell_type"] == "T").to_numpy().astype(int)
    assert table.loc["scGPT", "ECE"] == pytest.approx(metrics.ece(shares, codes))
    called = metrics.knn_pca(reference.X, reference.obs["cell_type"], query.X)
    expected = metrics.class_scores(
        query.obs["cell_type"], called.labels, probabilities=called.probabilities, classes=called.classes
    )
    assert table.loc["kNN on PCA"].to_dict() == pytest.approx(expected.to_dict())
    assert table.loc["commonest type", "balanced accuracy"] == 0.5
    own, best = table.loc["scGPT", "F1 (macro)"], table["F1 (macro)"].iloc[1:].max()
    assert table.attrs["verdict"].startswith(f"scGPT: F1 (macro) {own:.2f} on 40 labelled cells, below ")
    assert f"({best:.2f}, the best of them)" in table.attrs["verdict"]


def test_without_reference_and_without_probabilities(sides):
    query = sides[0]
    del query.obsm["scgpt_probabilities"], query.uns["scgpt_pred"]
    table = metrics.compare_labels(query, predictions={"a": "scgpt_pred", "b": "cell_type"}, labels_key="cell_type")
    assert list(table.index) == ["a", "b"]
    assert table["ECE"].isna().all()
    assert table.loc["b", "accuracy"] == 1


@pytest.mark.parametrize("keys", ["scgpt_pred", ["scgpt_pred"]])
def test_columns_alone_are_their_own_names(sides, keys):
    expected = metrics.compare_labels(sides[0], predictions={"scgpt_pred": "scgpt_pred"}, labels_key="cell_type")
    found = metrics.compare_labels(sides[0], predictions=keys, labels_key="cell_type")
    pd.testing.assert_frame_equal(found, expected)


def test_probabilities_of_other_keys_and_as_a_table(sides):
    query = sides[0]
    query.obs["mine"] = query.obs["scgpt_pred"]
    query.obsm["mine_probabilities"] = pd.DataFrame(
        query.obsm["scgpt_probabilities"][:, ::-1], columns=["T", "B"], index=query.obs_names
    )
    table = metrics.compare_labels(query, predictions={"a": "scgpt_pred", "b": "mine"}, labels_key="cell_type")
    assert table.loc["a", "ECE"] == pytest.approx(table.loc["b", "ECE"])
    query.obsm["mine_probabilities"] = query.obsm["scgpt_probabilities"]
    with pytest.raises(KeyError, match=r"\.uns\['mine'\]\['classes'\] does not name"):
        metrics.compare_labels(query, predictions={"b": "mine"}, labels_key="cell_type")


def test_genes_are_matched_by_name(sides):
    query, reference = sides
    asked = {"predictions": {"scGPT": "scgpt_pred"}, "labels_key": "cell_type"}
    plain = metrics.compare_labels(query, reference=reference, **asked)
    shuffled = metrics.compare_labels(query[:, ::-1], reference=reference, **asked)
    pd.testing.assert_frame_equal(plain, shuffled)
    # what one side lacks, or has twice, is left out
    renamed = reference[:, :20].copy()
    renamed.var_names = ["G0", "G0", *renamed.var_names[2:]]
    fewer = metrics.compare_labels(query, reference=renamed, **asked)
    named = [f"G{i}" for i in range(2, 20)]
    expected = metrics.compare_labels(query[:, named], reference=reference[:, named], **asked)
    pd.testing.assert_frame_equal(fewer, expected)
    renamed.var_names = [f"other{i}" for i in range(20)]
    with pytest.raises(ValueError, match=r"0 genes.*harmonize_genes"):
        metrics.compare_labels(query, reference=renamed, **asked)


def test_other_column_layer_and_options(sides):
    query, reference = sides
    reference.obs = reference.obs.rename(columns={"cell_type": "type"})
    for side in sides:
        side.layers["counts"] = side.X.copy()
        side.X = np.zeros(side.shape, np.float32)
    asked = {"predictions": {"scGPT": "scgpt_pred"}, "labels_key": "cell_type", "reference": reference}
    with pytest.raises(KeyError, match="reference_labels_key may be one of"):
        metrics.compare_labels(query, **asked)
    table = metrics.compare_labels(
        query, **asked, reference_labels_key="type", layer="counts", baselines={"knn_pca": {"k": 3}}
    )
    called = metrics.knn_pca(reference.layers["counts"], reference.obs["type"], query.layers["counts"], k=3)
    assert list(table.index) == ["scGPT", "kNN on PCA"]
    assert table.loc["kNN on PCA", "accuracy"] == (called.labels == query.obs["cell_type"]).mean()


def test_bad_input(sides):
    query, reference = sides
    with pytest.raises(ValueError, match="predictions is empty"):
        metrics.compare_labels(query, predictions={}, labels_key="cell_type")
    with pytest.raises(KeyError, match="labels_key may be one of"):
        metrics.compare_labels(query, predictions={"a": "scgpt_pred"}, labels_key="truth")
    with pytest.raises(KeyError, match="predictions may be one of"):
        metrics.compare_labels(query, predictions={"a": "pred"}, labels_key="cell_type")
    with pytest.raises(KeyError, match=r"tl\.scgpt_map\("):
        metrics.compare_labels(query, predictions={"a": "scgpt_mapped"}, labels_key="cell_type")
    with pytest.raises(ValueError, match="no baseline 'knn'"):
        metrics.compare_labels(
            query, predictions={"a": "scgpt_pred"}, labels_key="cell_type", reference=reference, baselines=("knn",)
        )
    query.obsm["scgpt_probabilities"] *= 2
    with pytest.raises(ValueError, match="do not sum to one"):
        metrics.compare_labels(query, predictions={"a": "scgpt_pred"}, labels_key="cell_type")
    query.obs["none"] = np.nan
    with pytest.raises(ValueError, match="none of the 40 cells has a true label"):
        metrics.compare_labels(query, predictions={"b": "cell_type"}, labels_key="none")


def test_baselines_learn_from_what_has_a_type(sides):
    """The cells, and their names, that the judged method learns from."""
    query, reference = sides
    more = {"predictions": {"m": "scgpt_pred"}, "labels_key": "cell_type"}
    types = reference.obs["cell_type"].to_numpy(object).copy()
    types[:30] = None
    reference.obs["cell_type"] = types
    expected = metrics.compare_labels(query, reference=reference, **more)
    types[:10], types[10:20] = "unknown", "nan"
    reference.obs["cell_type"] = np.where(np.arange(80) % 3 == 0, [f" {name} " for name in types], types)
    pd.testing.assert_frame_equal(metrics.compare_labels(query, reference=reference, **more), expected)


def test_baselines_know_genes_by_the_names_that_were_found(sides, caplog):
    query, reference = sides
    more = {"predictions": {"m": "scgpt_pred"}, "labels_key": "cell_type", "reference": reference}
    expected = metrics.compare_labels(query, **more)
    assert caplog.text == ""
    query.var["scgpt_gene"] = query.var_names.to_numpy()
    query.var_names = [f"ENSG{i}.1" if i < 25 else name for i, name in enumerate(query.var_names)]
    pd.testing.assert_frame_equal(metrics.compare_labels(query, **more), expected)
    query.var["scgpt_gene"] = ["", None, *query.var["scgpt_gene"].tolist()[2:]]
    reference.var["scgpt_gene"] = pd.Categorical(query.var["scgpt_gene"])
    metrics.compare_labels(query, **more)
    assert caplog.text == ""
    del query.var["scgpt_gene"]
    metrics.compare_labels(query, **more)
    assert "5 genes of the reference" in caplog.text
    assert "pp.harmonize_genes, on both, gives them the same names" in caplog.text
    query.var_names = [f"ENSG{i}.1" for i in range(30)]
    with pytest.raises(ValueError, match=r"0 genes of the reference .*harmonize_genes, on both"):
        metrics.compare_labels(query, **more)

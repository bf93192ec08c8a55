from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scgpt_tl.metrics._classifiers import knn_pca, logistic_regression, majority

METHODS = [logistic_regression, knn_pca, majority]


@pytest.fixture(scope="module")
def sides():
    """Counts of 90 reference cells of three types and of 30 query cells, 24 genes, and both sides' types."""
    rng = np.random.default_rng(0)
    kind = np.arange(120) % 3
    rate = np.where(np.arange(24) % 3 == kind[:, None], 3.0, 1.5)
    counts, names = rng.poisson(rate).astype(np.float32), np.array(["B", "NK", "T"])[kind]
    return counts[:90], names[:90], counts[90:], names[90:]


def scaled(reference, query):
    """Log-normalised, in deviations of the reference."""
    a, b = (np.log1p(x / x.sum(1, keepdims=True) * 1e4) for x in (reference, query))
    return (a - a.mean(0)) / a.std(0), (b - a.mean(0)) / a.std(0)


def test_logistic_regression_against_scikit_learn(sides):
    reference, names, query, truth = sides
    a, b = scaled(reference, query)
    expected = LogisticRegression(C=0.01, max_iter=1000).fit(a, names)
    found = logistic_regression(reference, names, query)
    np.testing.assert_allclose(found.probabilities, expected.predict_proba(b), atol=1e-3)
    assert list(found.classes) == list(expected.classes_)
    assert (found.labels == truth).mean() > 0.7


def test_knn_against_scikit_learn(sides):
    reference, names, query, truth = sides
    a, b = scaled(reference, query)
    pca = PCA(10, svd_solver="full").fit(a)
    expected = KNeighborsClassifier(15).fit(pca.transform(a), names)
    found = knn_pca(reference, names, query, n_components=10)
    np.testing.assert_allclose(found.probabilities, expected.predict_proba(pca.transform(b)), atol=1e-6)
    assert (found.labels == truth).mean() > 0.6


def test_majority(sides):
    found = majority(sides[0], ["T"] * 60 + ["B"] * 20 + [None] * 10, sides[2])
    assert set(found.labels) == {"T"}
    assert list(found.classes) == ["B", "T"]
    np.testing.assert_allclose(found.probabilities, np.tile([0.25, 0.75], (30, 1)))


@pytest.mark.parametrize("method", METHODS)
def test_shapes_sums_and_the_same_answer_for_any_matrix(sides, method):
    reference, names, query, _ = sides
    found = method(reference, names, query)
    assert found.probabilities.shape == (30, 3)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    assert (found.labels == found.classes[found.probabilities.argmax(1)]).all()
    again = method(csr_matrix(reference), names, csc_matrix(query))
    np.testing.assert_allclose(again.probabilities, found.probabilities, atol=1e-5)
    one = method(reference, names, query[:1])  # a query cell's call does not depend on its neighbours
    np.testing.assert_allclose(one.probabilities, found.probabilities[:1], atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_reference_cells_without_label_are_left_out(sides, method):
    reference, names, query, _ = sides
    some = names.astype(object)
    some[::4] = np.nan
    kept = np.arange(90) % 4 > 0
    expected = method(reference[kept], names[kept], query)
    np.testing.assert_allclose(method(reference, some, query).probabilities, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_type_one_cell_and_types_of_one_cell(sides, method):
    reference, names, query, _ = sides
    assert set(method(reference, ["B"] * 90, query).labels) == {"B"}
    assert set(method(reference[:1], ["B"], query).labels) == {"B"}
    rare = names.astype(object)
    rare[0] = "rare"
    assert method(reference, rare, query).probabilities.shape == (30, 4)
    assert (method(reference, np.arange(90) % 2, query).classes == ["0", "1"]).all()


@pytest.mark.parametrize("method", METHODS)
def test_bad_input(sides, method):
    reference, names, query, _ = sides
    with pytest.raises(ValueError, match="same genes on both sides"):
        method(reference, names, query[:, :5])
    with pytest.raises(ValueError, match="do not agree"):
        method(reference, names[:5], query)
    with pytest.raises(ValueError, match="none of the 90 reference cells"):
        method(reference, [None] * 90, query)


@pytest.mark.parametrize("method", METHODS[:2])
def test_variable_genes_are_the_references(sides, method):
    reference, names, query, _ = sides
    rng = np.random.default_rng(1)
    wide = np.hstack([reference, rng.poisson(2, (90, 200))])
    asked = np.hstack([query, rng.poisson(2, (30, 200))])
    found = method(wide, names, asked, n_genes=40)
    asked[:, 24:] = rng.permuted(asked[:, 24:], axis=1)  # totals stay, so only chosen genes can matter
    assert found.probabilities.shape == method(wide, names, asked, n_genes=40).probabilities.shape
    with pytest.raises(ValueError, match="negative"):
        method(wide, names, asked - 1)

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from scgpt_tl import metrics
from scgpt_tl.metrics._labels import class_scores, ece


@pytest.fixture
def called():
    """200 cells of three types, six in ten called right."""
    rng = np.random.default_rng(0)
    truth = rng.choice(["B", "NK", "T"], 200)
    return truth, np.where(rng.random(200) < 0.6, truth, rng.choice(["B", "NK", "T"], 200))


def test_by_hand():
    # B: 2 cells, one called right, one unknown; NK: never called; T: right, and one of the calls that are T is an NK
    scores = class_scores(["B", "B", "NK", "T", None], ["B", "unknown", "T", "T", "T"])
    assert scores.accuracy == scores.recall_micro == 2 / 4
    assert scores.balanced_accuracy == scores.recall_macro == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert scores.precision_macro == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert scores.f1_macro == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert scores.precision_micro == 2 / 3  # three cells were called
    assert scores.f1_micro == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert (scores.n_cells, scores.n_unknown, scores.n_unlabelled) == (4, 1, 1)
    assert np.isnan(scores.ece)


def test_against_scikit_learn(called):
    truth, predicted = called
    scores = class_scores(truth, predicted)
    assert scores.accuracy == pytest.approx(sk.accuracy_score(truth, predicted))
    assert scores.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    for average in ("macro", "micro"):
        for name in ("precision", "recall", "f1"):
            expected = getattr(sk, f"{name}_score")(truth, predicted, average=average)
            assert getattr(scores, f"{name}_{average}") == pytest.approx(expected)


def test_a_type_that_is_called_and_never_true_is_no_class_of_the_mean(called):
    truth, predicted = called
    predicted = np.where(np.arange(200) < 20, "platelet", predicted)
    scores = class_scores(truth, predicted)
    assert scores.f1_macro == pytest.approx(sk.f1_score(truth, predicted, average="macro", labels=["B", "NK", "T"]))
    assert scores.precision_micro == scores.accuracy == (truth == predicted).mean()


@pytest.mark.parametrize("missing", [None, np.nan, "", " ", pd.NA])
def test_missing_truth_is_left_out_and_missing_calls_are_unknown(called, missing):
    truth, predicted = (one.astype(object) for one in called)
    truth[:10] = missing
    predicted[10:15] = missing
    predicted[15:17] = "unknown"
    scores = class_scores(pd.Series(truth), predicted)
    assert (scores.n_cells, scores.n_unlabelled, scores.n_unknown) == (190, 10, 7)
    assert scores.accuracy == np.mean([a == b for a, b in zip(truth[17:], predicted[17:], strict=True)]) * 183 / 190


def test_one_class_one_cell_classes_and_categories_that_do_not_occur():
    assert class_scores(["a", "a"], ["a", "a"]).f1_macro == 1
    assert class_scores(["a", "b", "c"], ["a", "b", "b"]).recall_macro == pytest.approx(2 / 3)
    spare = pd.Categorical(["a", "b", "b"], categories=["a", "b", "z"])
    assert class_scores(spare, pd.Categorical(["a", "b", "a"], categories=["z", "b", "a"])).n_cells == 3
    nothing = class_scores(["a", "b"], ["unknown", "unknown"])
    assert nothing.accuracy == nothing.precision_micro == nothing.f1_macro == 0


def test_numbers_name_the_same_class_as_int_float_and_text():
    scores = class_scores(np.array([1.0, 2.0, np.nan, 10.0]), pd.Categorical(["1", "2", "1", "3"]))
    assert (scores.accuracy, scores.n_unlabelled) == (2 / 3, 1)
    assert class_scores([1, 2], [1, 2]).accuracy == 1
    assert class_scores([0.5, 1.5], ["0.5", "1.5"]).accuracy == 1


def test_unknown_may_have_another_name_or_none():
    truth, predicted = ["a", "unknown"], ["a", "unknown"]
    with pytest.raises(ValueError, match=r"1 cells have the true label 'unknown'.*unknown=None"):
        class_scores(truth, predicted)
    assert class_scores(truth, predicted, unknown=None).accuracy == 1
    assert class_scores(["a", "b"], ["a", "?"], unknown="?").n_unknown == 1


def test_calibration_of_labelled_cells_by_named_columns():
    shares = np.array([[0.8, 0.2], [0.4, 0.6], [0.9, 0.1], [0.5, 0.5]])
    scores = class_scores(["b", "a", "other", None], list("baab"), probabilities=shares, classes=["b", "a"])
    # confidences 0.8 (right), 0.6 (right), 0.9 (no column is right), each in a bin of its own
    assert scores.ece == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    numbers = class_scores([1.0, 0.0], [1, 0], probabilities=shares[:2], classes=np.array([1, 0]))
    assert numbers.ece == pytest.approx((0.2 + 0.4) / 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"probabilities": np.full((2, 2), 0.5)}, "no classes"),
        ({"probabilities": np.full((2, 2), 0.5), "classes": ["a"]}, r"shape \(2, 2\) for 2 cells and 1 classes"),
        ({"probabilities": np.full((3, 2), 0.5), "classes": ["a", "b"]}, "one row per cell"),
        ({"probabilities": np.full(2, 1.0), "classes": ["a", "b"]}, "one row per cell"),
        ({"probabilities": np.full((2, 2), 0.5), "classes": ["a", "a"]}, "1 different names"),
        ({"probabilities": np.full((2, 2), 0.6), "classes": ["a", "b"]}, "do not sum to one"),
        ({"probabilities": np.array([[np.nan, 1], [0, 1]]), "classes": ["a", "b"]}, "1 of 2 rows"),
        ({"probabilities": np.array([[-1.0, 2], [0, 1]]), "classes": ["a", "b"]}, "1 of 2 rows"),
    ],
)
def test_bad_probabilities(options, says):
    with pytest.raises(ValueError, match=says):
        class_scores(["a", "b"], ["a", "b"], **options)


def test_bad_labels():
    with pytest.raises(ValueError, match="2 true labels but 3"):
        class_scores(["a", "b"], ["a", "b", "b"])
    with pytest.raises(ValueError, match="none of the 2 cells"):
        class_scores([None, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match="shape"):
        class_scores([["a", "b"]], ["a"])


def by_bins(shares, codes, n_bins):
    """ECE as Guo et al. 2017 write it, a bin at a time."""
    confidence, right = shares.max(1), shares.argmax(1) == codes
    total = 0.0
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.sampled_from([1, 2, 15]), st.integers(0, 2**32 - 1))
def test_ece_is_the_formula(n, n_classes, n_bins, seed):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(n_classes), n)
    codes = rng.integers(-1, n_classes, n)
    found = ece(shares, codes, n_bins=n_bins)
    assert found == pytest.approx(by_bins(np.minimum(shares, 1), codes, n_bins), abs=1e-9)
    assert 0 <= found <= 1
    assert ece(shares[::-1].astype(np.float32), codes[::-1], n_bins=n_bins) == pytest.approx(found, abs=2 / n + 1e-6)


def test_ece_of_the_sure_and_of_the_calibrated():
    sure = np.eye(2)[[0, 0, 0, 1]]
    assert ece(sure, np.array([0, 0, 0, 1])) == 0
    assert ece(sure, np.array([1, 1, 1, 0])) == 1
    assert ece(sure, np.array([0, 0, 0, 0])) == pytest.approx(1 / 4)
    # a bin is closed on its right: 0.5 is of the lower half, so that the two cells are told apart
    assert ece(np.array([[0.5, 0.5], [0.8, 0.2]]), np.array([0, 1]), n_bins=2) == pytest.approx((0.5 + 0.8) / 2)
    rng = np.random.default_rng(0)
    share = rng.uniform(0.5, 1, 20_000)
    right = rng.random(20_000) < share
    assert ece(np.column_stack([share, 1 - share]), np.where(right, 0, 1)) < 0.02


@pytest.mark.parametrize(
    ("shares", "codes", "says"),
    [
        (np.full((2, 2), 0.5), [0, 2], "2 columns"),
        (np.full((2, 2), 0.5), [0, -2], "from -2"),
        (np.full((2, 2), 0.5), [0.0, 1.0], "integers"),
        (np.full((2, 2), 0.5), [0], "one per row"),
        (np.full(2, 0.5), [0, 1], "shape"),
        (np.zeros((0, 2)), np.zeros(0, int), "neither of them 0"),
        (np.array([[3.0, -2.0]]), [0], "negative"),
        (np.array([[1.0, 2.0]]), [0], "softmax"),
    ],
)
def test_ece_refuses(shares, codes, says):
    with pytest.raises(ValueError, match=says):
        ece(shares, np.array(codes))
    with pytest.raises(ValueError, match="at least one"):
        ece(np.full((1, 2), 0.5), np.array([0]), n_bins=0)


def test_names_of_the_table(called):
    scores = metrics.class_scores(*called).to_dict()
    assert list(scores)[:2] == ["accuracy", "balanced accuracy"]
    assert "F1 (macro)" in scores
    assert len(scores) == 12

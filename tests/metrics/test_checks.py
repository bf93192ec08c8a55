from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgpt_tl.metrics import _checks


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "", " ", None, np.nan, pd.NA], ["a", None, None, None, None, None]),
        ([1, 2.0, 2.5, "3"], ["1", "2", "2.5", "3"]),
        (np.array([1.0, np.nan]), ["1", None]),
        (np.array([1, 10], np.int8), ["1", "10"]),
        (pd.Categorical(["b", None, "a"]), ["b", None, "a"]),
        (pd.Series([True, False]), ["True", "False"]),
        ([np.inf], ["inf"]),
        ([" B ", "B", "nan", "<NA>", "NaT", "none", "unknown"], ["B", "B", None, None, None, "none", "unknown"]),
        ([], []),
    ],
)
def test_names(values, expected):
    assert _checks.names(values).tolist() == expected


def test_what_is_no_type():
    given = ["B ", "Unknown", "unknown", "None", "nan", None, 1.0]
    assert _checks.types(given).tolist() == ["B", None, None, None, None, None, "1"]


def test_codes_are_sorted_and_missing_is_minus_one():
    codes, names = _checks.codes(["b", None, "a", "b"])
    assert codes.tolist() == [1, -1, 0, 1]
    assert names.tolist() == ["a", "b"]


def test_one_column_at_a_time():
    with pytest.raises(ValueError, match=r"shape \(cells,\), found \(2, 1\)"):
        _checks.names(pd.DataFrame({"a": [1, 2]}))


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_array, pd.DataFrame, list])
def test_points_may_be_kept_in_anything(kind):
    points = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(_checks.points(kind(points)), points)
    np.testing.assert_array_equal(_checks.points(points.astype(object)), points)


@pytest.mark.parametrize("values", [[["a", "b"]] * 3, np.full((3, 2), "x", object), np.ones((3, 2), complex)])
def test_points_are_real_numbers(values):
    with pytest.raises(ValueError, match="an embedding must hold real numbers, found "):
        _checks.points(values)

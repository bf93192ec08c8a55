from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scgpt_tl.metrics._expression import checked, log_normalised, looks_logged, variable_genes


@pytest.mark.parametrize(
    ("values", "answer"),
    [([[0, 1], [3, 2]], False), ([[0, 1.5], [3, 2]], True), ([[0.5, 900.0]], False), ([[0.0, 0.0]], False)],
)
def test_looks_logged(values, answer):
    assert looks_logged(np.array(values)) is answer
    assert looks_logged(csr_matrix(np.array(values, dtype=float))) is answer


def test_counts_to_ten_thousand_and_log1p():
    counts = np.array([[1.0, 3, 0], [0, 0, 0], [2, 2, 4]])
    found = log_normalised(counts, None).X.toarray()
    expected = np.log1p(counts / np.array([[4], [1], [8]]) * 1e4)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(log_normalised(expected, None).X.toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(log_normalised(counts, True).X.toarray(), counts)


def test_all_genes_where_there_are_no_more():
    holder = log_normalised(np.ones((3, 4)), None)
    assert variable_genes(holder, 4, None).all()
    assert variable_genes(holder, 9, ["x", "x", "y"]).all()


def test_least():
    assert checked(np.ones((1, 1)), 1).shape == (1, 1)
    with pytest.raises(ValueError, match="at least 3 cells"):
        checked(np.ones((2, 5)), 3)

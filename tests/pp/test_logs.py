"""Logarithms of normalised counts, a block at a time."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scgpt_tl.pp._logs import log_blocks


def whole(adata: ad.AnnData, rows: int = 7, layer: str | None = None) -> np.ndarray:
    return sparse.vstack([block for _, block in log_blocks(adata, layer, rows=rows)]).toarray()


@pytest.mark.filterwarnings("ignore:Some cells have zero counts:UserWarning")  # scanpy's, of the empty cell
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_counts_are_normalised_as_scanpy_does(counts: ad.AnnData, rows: int):
    counts.X.data[counts.X.indptr[3] : counts.X.indptr[4]] = 0
    before = counts.X.copy()
    own = counts.copy()
    own.X = own.X.astype(np.float64)
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    np.testing.assert_allclose(whole(counts, rows), own.X.toarray(), rtol=1e-12)
    assert abs(counts.X - before).nnz == 0


def test_what_is_no_count_is_left(counts: ad.AnnData):
    counts.layers["logs"] = np.log1p(counts.X)
    np.testing.assert_array_equal(whole(counts, layer="logs"), counts.layers["logs"].toarray())
    np.testing.assert_array_equal(whole(ad.AnnData(counts.layers["logs"])), counts.layers["logs"].toarray())


def test_whole_numbers_are_judged_over_all_cells(counts: ad.AnnData):
    counts.X.data[-1] += 0.5
    np.testing.assert_array_equal(whole(counts), counts.X.toarray())


def test_equal_shares_tie():
    """1 of 3 and 2 of 6 are the same share, to the last bit."""
    x = sparse.csr_matrix(np.array([[1, 2], [2, 4], [100_003, 200_006]]))
    found = whole(ad.AnnData(x))
    assert len(np.unique(found[:, 0])) == 1

"""Activity of programs: scanpy's score, in any order."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scgpt_tl.tl._activity import activity


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """90 cells x 400 genes, counts: at most 50 genes of like mean, so that scanpy takes them all for controls."""
    rng = np.random.default_rng(4)
    x = rng.poisson(rng.gamma(0.4, 2, 400), (90, 400))
    adata = ad.AnnData(sparse.csr_matrix(x.astype(np.float32)))
    adata.var_names = [f"G{i}" for i in range(400)]
    return adata


PROGRAMS = [np.array([3, 50, 51, 120]), np.array([7, 8]), np.arange(200, 260)]


def test_the_score_is_scanpys(cells: ad.AnnData):
    found = activity(cells, PROGRAMS, layer=None, seed=0)
    assert (found.shape, found.dtype) == ((90, 3), np.float32)
    own = ad.AnnData(cells.X.astype(np.float64), var=cells.var)
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    state = np.random.get_state()  # noqa: NPY002 - scanpy seeds the global stream
    for number, genes in enumerate(PROGRAMS):
        sc.tl.score_genes(own, own.var_names[genes].tolist(), score_name="s")
        np.testing.assert_allclose(found[:, number], own.obs["s"], atol=1e-6)
    np.random.set_state(state)  # noqa: NPY002


def test_of_many_genes_of_like_mean_fifty_are_drawn():
    x = np.random.default_rng(0).poisson(1.0, (40, 3000)).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(x))
    genes = [np.arange(6)]
    first, other = (activity(adata, genes, layer=None, seed=seed) for seed in (0, 1))
    assert not np.allclose(first, other)
    assert np.corrcoef(first[:, 0], other[:, 0])[0, 1] > 0.9
    np.testing.assert_array_equal(first, activity(adata, genes, layer=None, seed=0))
    order = np.random.default_rng(1).permutation(3000)
    moved = [np.argsort(order)[genes[0]]]
    np.testing.assert_allclose(activity(adata[:, order].copy(), moved, layer=None, seed=0), first, atol=1e-6)
    rows = np.random.default_rng(2).permutation(40)
    np.testing.assert_allclose(activity(adata[rows].copy(), genes, layer=None, seed=0), first[rows], atol=1e-6)


def test_numpys_global_stream_is_left_alone(cells: ad.AnnData):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    activity(cells, PROGRAMS, layer=None, seed=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("kind", ["counts", "logs"])
def test_columns_of_one_gene_are_one(cells: ad.AnnData, kind: str):
    """Part of a gene's values in a column that stands elsewhere: summed before the logarithm, one control among 400."""
    x = cells.X.toarray().astype(np.float64) * (1 if kind == "counts" else 1.5)
    part = np.floor(x[:, [3, 77]] * 0.7)
    more = np.concatenate([part[:, :1], x, part[:, 1:]], axis=1)
    more[:, [4, 78]] -= part
    several = ad.AnnData(sparse.csr_matrix(more))
    several.var_names = ["A", *cells.var_names, "Z"]
    stands = np.arange(402)
    stands[[0, 401]] = 4, 78
    whole = ad.AnnData(sparse.csr_matrix(x), var=cells.var)
    expected = activity(whole, PROGRAMS, layer=None, seed=0)
    moved = [genes + 1 for genes in PROGRAMS]
    found = activity(several, moved, layer=None, seed=0, stands=stands)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(activity(several, moved, layer=None, seed=0) - expected).max() > 0.05


def test_a_program_of_nearly_all_genes(cells: ad.AnnData):
    few = cells[:, :6].copy()
    found = activity(few, [np.arange(5), np.arange(6)], layer=None, seed=0)
    assert np.isfinite(found).all()

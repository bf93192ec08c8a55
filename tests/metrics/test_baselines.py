from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from scgpt_tl.metrics.baselines import hvg_pca, looks_logged


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(1.5, (60, 40)).astype(np.float32)


def by_hand(logged, n_components):
    """PCA of clipped z-scores by SVD."""
    scaled = (logged - logged.mean(0)) / logged.std(0, ddof=1)
    scaled = np.minimum(scaled, 10)
    u, s, _ = np.linalg.svd(scaled - scaled.mean(0), full_matrices=False)
    return (u * s)[:, :n_components]


def test_counts_are_normalised_logged_scaled_projected(counts):
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    expected = by_hand(logged.astype(np.float64), 5)
    found = hvg_pca(counts, n_components=5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    # logs given are taken as they are
    np.testing.assert_allclose(np.abs(hvg_pca(logged, n_components=5)), np.abs(expected), atol=1e-3)


def test_logged_can_be_said(counts):
    assert np.abs(hvg_pca(counts, logged=True) - hvg_pca(counts)).max() > 0.1


def test_unscaled(counts):
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float64)
    u, s, _ = np.linalg.svd(logged - logged.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(hvg_pca(counts, scale=False, n_components=5)), np.abs(u * s)[:, :5], atol=1e-3)


@pytest.mark.parametrize("kind", [csr_matrix, csc_matrix, lambda x: x.astype(np.int64), lambda x: x.astype(np.float64)])
def test_any_matrix_same_answer_input_untouched(counts, kind):
    given = kind(counts)
    before = given.copy()
    np.testing.assert_allclose(np.abs(hvg_pca(given)), np.abs(hvg_pca(counts)), atol=1e-3)
    assert abs(given - before).max() == 0
    assert given.dtype == before.dtype


def test_variable_genes_are_the_ones_kept():
    rng = np.random.default_rng(1)
    counts = rng.poisson(5, (80, 300))
    counts[:40, :8] *= 2  # eight genes that part the cells, as high on average as the others
    counts[40:, :8] = 0
    first = hvg_pca(counts, n_genes=12, n_components=2)[:, 0]
    assert (first[:40].max() < first[40:].min()) or (first[:40].min() > first[40:].max())
    assert hvg_pca(counts, n_genes=12).shape == (80, 11)


def test_dimensions_shrink_with_the_data(counts):
    assert hvg_pca(counts[:8]).shape == (8, 7)
    assert hvg_pca(counts[:, :6]).shape == (60, 5)


def test_zero_cells_and_zero_genes_do_no_harm(counts):
    counts[3] = 0
    counts[:, 5] = 0
    assert np.isfinite(hvg_pca(counts)).all()


@pytest.mark.parametrize(
    ("values", "answer"),
    [([[0, 1], [3, 2]], False), ([[0, 1.5], [3, 2]], True), ([[0.5, 900.0]], False), ([[0.0, 0.0]], False)],
)
def test_looks_logged(values, answer):
    assert looks_logged(np.array(values)) is answer
    assert looks_logged(csr_matrix(np.array(values, dtype=float))) is answer


def test_bad_input(counts):
    with pytest.raises(ValueError, match=r"adata\.raw"):
        hvg_pca(counts - 1)
    counts[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        hvg_pca(counts)
    with pytest.raises(ValueError, match="2 x 40"):
        hvg_pca(counts[1:3])

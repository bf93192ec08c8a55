from __future__ import annotations

import logging
import os
import random  # noqa: TID251 - to see that it is left alone
import sys

import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from scgpt_tl.metrics._embeddings import harmony, hvg_pca, scvi


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


def test_bad_input(counts):
    with pytest.raises(ValueError, match=r"adata\.raw"):
        hvg_pca(counts - 1)
    counts[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        hvg_pca(counts)
    with pytest.raises(ValueError, match="2 x 40"):
        hvg_pca(counts[1:3])


@pytest.fixture(scope="module")
def shifted():
    """Two types of cells in two batches, of which the second has a third of the genes at four times the level."""
    rng = np.random.default_rng(3)
    kind, batch = np.arange(120) % 2, np.arange(120) // 60
    rate = np.where((np.arange(40) % 2 == kind[:, None]), 6.0, 1.0) * np.where(
        np.arange(40) < 13, 1 + 3 * batch[:, None], 1
    )
    return rng.poisson(rate).astype(np.float32), np.array(["x", "y"])[batch], kind


def gap(embedding, batch, kind):
    """Distance between the batches of a type, in units of the distance between types."""
    centre = {(b, k): embedding[(batch == b) & (kind == k)].mean(0) for b in "xy" for k in (0, 1)}
    between = np.linalg.norm(centre["x", 0] - centre["x", 1])
    return np.mean([np.linalg.norm(centre["x", k] - centre["y", k]) for k in (0, 1)]) / between


def test_harmony_brings_batches_together_and_keeps_types_apart(shifted):
    pytest.importorskip("harmonypy", reason="the extra 'harmony' is not installed")
    X, batch, kind = shifted
    plain, found = hvg_pca(X, n_components=10), harmony(X, batch, n_components=10)
    assert (found.shape, found.dtype) == ((120, 10), np.float32)
    assert gap(found, batch, kind) < 0.3 * gap(plain, batch, kind)
    np.testing.assert_array_equal(found, harmony(X, batch, n_components=10))
    # rows are cells even where there are as many dimensions as cells could be
    assert np.corrcoef(found[:, 0], plain[:, 0])[0, 1] ** 2 > 0.2


def test_harmony_of_few_cells(shifted):
    pytest.importorskip("harmonypy", reason="the extra 'harmony' is not installed")
    X, batch, _ = shifted
    few = np.r_[0:4, 60:64]
    assert np.isfinite(harmony(X[few], batch[few])).all()


def test_harmony_of_before_version_2_has_cells_in_columns(shifted, monkeypatch):
    class Old:
        @staticmethod
        def run_harmony(points, table, key, **options):
            assert list(table[key]) == list(shifted[1])
            return type("Run", (), {"Z_corr": points.T})

    monkeypatch.setitem(sys.modules, "harmonypy", Old)
    X, batch, _ = shifted
    np.testing.assert_allclose(harmony(X, batch), hvg_pca(X, batches=batch))


def test_genes_that_part_batches_only_are_not_chosen():
    rng = np.random.default_rng(4)
    kind, batch, rate = np.arange(200) % 2 == 0, np.arange(200) < 100, np.full((200, 300), 4)
    rate[:, :10] = np.where(kind, 7, 1)[:, None]  # ten genes tell types, in both batches
    rate[:, 10:20] = np.where(batch, 7, 1)[:, None]  # ten tell batches, as loudly
    X = rng.poisson(rate).astype(np.float32)
    names = np.where(batch, "x", "y")
    within, over = hvg_pca(X, n_genes=10, batches=names), hvg_pca(X, n_genes=10)
    assert gap(within, np.array(names), kind.astype(int)) < 0.3 < gap(over, np.array(names), kind.astype(int))
    # a batch of three cells has no say; where all are so small, all cells are taken together
    tiny = np.where(np.arange(200) < 3, "z", names)
    assert hvg_pca(X, n_genes=10, batches=tiny).shape == (200, 9)
    np.testing.assert_array_equal(hvg_pca(X[:30], n_genes=10, batches=np.arange(30)), hvg_pca(X[:30], n_genes=10))


@pytest.mark.filterwarnings("default")  # scvi-tools warns as it loads
def test_scvi_same_answer_twice_and_nothing_left_behind(shifted, tmp_path, monkeypatch, capfd, caplog):
    pytest.importorskip("scvi", reason="the extra 'scvi' is not installed")
    import torch

    monkeypatch.chdir(tmp_path)
    X = shifted[0]
    rows = np.r_[0:65, 0:64]  # 129 cells: a last minibatch of one would be refused by batch norm
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    environment, level = dict(os.environ), logging.getLogger("lightning.pytorch").level
    found = scvi(X[rows], np.where(np.arange(129) < 65, "x", "y"), epochs=2, n_latent=4)
    assert (found.shape, found.dtype) == ((129, 4), np.float32)
    assert np.isfinite(found).all()
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after
    assert {k: v for k, v in os.environ.items() if environment.get(k) != v}.keys() <= {"XLA_PYTHON_CLIENT_PREALLOCATE"}
    assert logging.getLogger("lightning.pytorch").level == level
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
    np.testing.assert_array_equal(found, scvi(X[rows], np.where(np.arange(129) < 65, "x", "y"), epochs=2, n_latent=4))


def test_scvi_wants_counts(shifted):
    X, batch, _ = shifted
    with pytest.raises(ValueError, match="layer='counts'"):
        scvi(np.log1p(X), batch)
    with pytest.raises(ValueError, match="layer='counts'"):
        scvi(-X, batch)


@pytest.mark.parametrize("method", [harmony, scvi])
def test_bad_batches(shifted, method):
    X, batch, _ = shifted
    with pytest.raises(ValueError, match="120 cells in X but 3 batches"):
        method(X, ["x", "y", "x"])
    with pytest.raises(ValueError, match="1 distinct batches"):
        method(X, ["x"] * 120)
    missing = batch.astype(object)
    missing[:2] = None
    with pytest.raises(ValueError, match="2 of 120 cells have no batch"):
        method(X, missing)


@pytest.mark.parametrize(("method", "package", "extra"), [(harmony, "harmonypy", "harmony"), (scvi, "scvi", "scvi")])
def test_absent_packages_are_asked_for_by_their_extra(shifted, monkeypatch, method, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"scgpt_tl\[{extra}\]"):
        method(*shifted[:2])

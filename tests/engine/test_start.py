"""The gene table to start from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse

from scgpt_tl._random import name_keys
from scgpt_tl.engine.start import _sample, _strongest, start_from, svd_table
from scgpt_tl.engine.study import Study
from scgpt_tl.tokens.tokenize import Tokenizer

KEYS = name_keys(f"gene{i}" for i in range(61))


def study(rows: sparse.csr_matrix, name: str = "a", **options) -> Study:
    return Study(name, rows, Tokenizer(np.arange(60), KEYS, 60, spread=False, **options))


@pytest.fixture(scope="module")
def rows(toy_rows: Callable[..., sparse.csr_matrix]) -> sparse.csr_matrix:
    return toy_rows(40, 60, density=0.4, seed=2)


def plainly(studies: list[Study], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by dense algebra: |table| up to signs, through its Gram matrix; and the weights."""
    binned = []
    for one in studies:
        block = one.tokenizer(one.take(np.arange(one.n_cells)))
        dense = np.zeros((len(block.keys), 61))
        for i, (a, b) in enumerate(zip(block.offsets[:-1], block.offsets[1:], strict=True)):
            dense[i, block.gene_ids[a + 1 : b]] = block.values[a + 1 : b] / 50
        binned.append(dense)
    share = (np.concatenate(binned) > 0).mean(0)
    weight = np.log1p(1 / np.maximum(share, 1e-3))
    centred = []
    for dense in binned:
        weighted = dense * weight
        weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
        centred.append(weighted - weighted.mean(0))
    _, _, vt = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    table = vt[:width].T * weight[:, None]
    return table / np.sqrt((table**2).mean()), weight


@pytest.mark.parametrize("n_studies", [1, 2])
def test_the_table_is_the_weighted_centred_svd(rows, n_studies: int):
    studies = [study(rows[:25]), study(rows[25:], "b")] if n_studies == 2 else [study(rows)]
    found = svd_table(studies, 8, seed=0)
    expected, _ = plainly(studies, 8)
    assert (found.shape, found.dtype) == ((61, 8), np.float32)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)  # a direction has no sign
    assert (found**2).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(found[60], 0)  # <cls>


def test_a_study_has_no_direction_of_its_own(rows):
    """Two studies that differ by a common gene: what tells the studies apart is taken out with their means."""
    first, second = rows[:20].tolil(), rows[20:].tolil()
    first[:, 59], second[:, 59] = 40, 0
    table = svd_table([study(first.tocsr()), study(second.tocsr(), "b")], 3, seed=0)
    mixed = svd_table([study(sparse.vstack([first, second], format="csr"))], 3, seed=0)
    assert np.abs(table[59]).max() < np.abs(mixed[59]).max() / 3


@pytest.mark.parametrize("dense", [0, 10**9])
@pytest.mark.parametrize("width", [8, 39])
def test_it_is_the_same_every_time(rows, monkeypatch: pytest.MonkeyPatch, dense: int, width: int):
    monkeypatch.setattr("scgpt_tl.engine.start._DENSE", dense)
    first = svd_table([study(rows)], width, seed=1)
    np.testing.assert_array_equal(svd_table([study(rows)], width, seed=1), first)


def test_both_ways_to_decompose_agree(rows, monkeypatch: pytest.MonkeyPatch):
    whole = svd_table([study(rows)], 8, seed=1)
    monkeypatch.setattr("scgpt_tl.engine.start._DENSE", 0)
    np.testing.assert_allclose(np.abs(svd_table([study(rows)], 8, seed=1)), np.abs(whole), atol=1e-5)


def test_the_strongest_of_a_matrix_larger_than_the_basis():
    """Eight that stand out of noise, found in 48 of 300 dimensions."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    values = np.concatenate([2.0 ** -np.arange(8), rng.uniform(0, 1e-4, 292)])
    matrix = ((basis * values) @ basis.T).astype(np.float32)
    products = []
    found, vectors = _strongest(lambda x: products.append(x.shape[1]) or matrix @ x, 300, 8, seed=0)
    np.testing.assert_allclose(found, values[:8], rtol=1e-3)
    np.testing.assert_allclose(np.abs((vectors * basis[:, :8]).sum(0)), 1, atol=1e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-5)
    assert products == [32, 16]


def test_fewer_independent_rows_than_the_basis_is_wide():
    """A block that nothing is left of does not spoil the others."""
    part = np.random.default_rng(0).standard_normal((120, 3)).astype(np.float32)
    values, vectors = _strongest(lambda x: part @ (part.T @ x), 120, 20, seed=0)
    np.testing.assert_allclose(values[:3], np.linalg.svd(part)[1] ** 2, rtol=1e-4)
    assert np.abs(values[3:]).max() < 1e-4 * values[0]
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-4)


@pytest.mark.parametrize("dense", [0, 10**9])
def test_more_directions_than_there_are(rows, monkeypatch: pytest.MonkeyPatch, dense: int):
    """Those without strength are 0, and genes that no cell has stay exactly 0."""
    monkeypatch.setattr("scgpt_tl.engine.start._DENSE", dense)
    some = rows.tolil()
    some[:, 17] = 0
    found = svd_table([study(some.tocsr())], 60, seed=0)
    np.testing.assert_array_equal(found[[17, 60]], 0)
    np.testing.assert_array_equal(found[:, 39:], 0)
    assert (np.abs(found[:, :38]).max(0) > 1e-3).all()


def test_all_genes_of_a_long_cell_are_read(rows):
    np.testing.assert_array_equal(
        svd_table([study(rows, max_length=5)], 8, seed=1), svd_table([study(rows)], 8, seed=1)
    )


def test_fewer_cells_than_directions(rows):
    found = svd_table([study(rows[:4])], 16, seed=0)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 3:], 0)


@pytest.mark.parametrize("at", [0, 1])
def test_an_empty_study_changes_nothing(rows, at: int):
    studies = [study(rows)]
    studies.insert(at, study(rows[:0], "empty"))
    np.testing.assert_allclose(
        np.abs(svd_table(studies, 8, seed=0)), np.abs(svd_table([study(rows)], 8, seed=0)), atol=1e-4
    )


def test_one_cell_is_too_few(rows):
    with pytest.raises(ValueError, match="one cell does not tell which genes vary together; give at least two"):
        svd_table([study(rows[:1])], 8, seed=0)


def test_rows_without_cells_keep_their_random_direction():
    weight = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    table = np.array([[1, 2, 3], [0, 0, 0], [0, -5, 0], [0, 0, 0]], np.float32)
    start_from(weight, table)
    unit = torch.nn.functional.normalize(weight.detach(), dim=1)
    torch.testing.assert_close(unit[[0, 2]], torch.nn.functional.normalize(torch.from_numpy(table[[0, 2]]), dim=1))
    torch.testing.assert_close(unit[[1, 3]], torch.nn.functional.normalize(before[[1, 3]], dim=1))
    torch.testing.assert_close(weight.detach().square().mean(1), torch.ones(4))


# ---- a sample of a large corpus


def test_a_large_corpus_enters_by_a_sample_of_its_cells(toy_rows, monkeypatch: pytest.MonkeyPatch):
    whole = toy_rows(90, 60, density=0.4, seed=5)
    studies = [study(whole[:60]), study(whole[60:], "b")]
    monkeypatch.setattr("scgpt_tl.engine.start._CELLS", 40)
    rows = _sample(studies, 3)
    assert sum(map(len, rows)) == 40
    assert all(len(some) > 5 for some in rows)
    found = svd_table(studies, 8, seed=3)
    monkeypatch.setattr("scgpt_tl.engine.start._CELLS", 90)
    parts = [study(whole[:60][rows[0]]), study(whole[60:][rows[1]], "b")]
    np.testing.assert_array_equal(found, svd_table(parts, 8, seed=3))
    assert [some.tolist() for some in _sample(studies, 3)] == [list(range(60)), list(range(30))]


def test_the_sample_is_a_matter_of_cells_and_seed(toy_rows, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scgpt_tl.engine.start._CELLS", 20)
    a, b = study(toy_rows(60, 60)), study(toy_rows(30, 60), "b")
    one, other = _sample([a, b], 0), _sample([b, a], 0)
    assert [x.tolist() for x in one] == [x.tolist() for x in reversed(other)]  # of any order of the studies
    assert one[0].tolist() != _sample([a, b], 1)[0].tolist()


def test_blocks_do_not_show(rows, monkeypatch: pytest.MonkeyPatch):
    whole = svd_table([study(rows)], 8, seed=1)
    monkeypatch.setattr("scgpt_tl.engine.start._BLOCK", 7)
    np.testing.assert_array_equal(svd_table([study(rows)], 8, seed=1), whole)


def test_a_study_of_weight_0_stays_out(rows):
    left = Study("b", rows[:10], study(rows).tokenizer, weight=0.0)
    np.testing.assert_array_equal(
        np.abs(svd_table([study(rows), left], 8, seed=0)), np.abs(svd_table([study(rows)], 8, seed=0))
    )

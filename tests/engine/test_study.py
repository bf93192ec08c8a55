"""Data sets of a corpus: opened where they are read, counted, checked."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

from scgpt_tl._random import name_keys
from scgpt_tl.engine.study import LazyMatrix, Source, Study, expressed, wrong_values
from scgpt_tl.pp._blocks import Matrix, open_matrix
from scgpt_tl.tokens.tokenize import Tokenizer

TOKENS = Tokenizer(np.arange(12), name_keys(f"g{i}" for i in range(13)), 12)


class Opener:
    """Opens a dense data set and keeps count."""

    def __init__(self, path: Path):
        self.path, self.times = path, 0

    def __call__(self) -> Matrix:
        self.times += 1
        return open_matrix(h5py.File(self.path)["X"])


@pytest.fixture
def rows(toy_rows: Callable[..., sparse.csr_matrix]) -> sparse.csr_matrix:
    return toy_rows(20, 12)


@pytest.fixture
def opener(rows, tmp_path: Path) -> Opener:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["X"] = rows.toarray()
    return Opener(tmp_path / "x.h5")


def source(open_: Callable[[], Matrix], n: int = 20, **options) -> Source:
    return Source("a", [f"g{i}" for i in range(12)], open_, n, manifest={"file": "x.h5"}, **options)


def in_memory(rows: sparse.csr_matrix) -> Source:
    return source(lambda: open_matrix(rows), rows.shape[0])


def test_a_file_is_opened_when_it_is_read_and_once(opener, rows):
    matrix = LazyMatrix(opener, (20, 12), "x.h5")
    assert opener.times == 0
    for _ in range(2):
        np.testing.assert_array_equal(matrix.take([3, 1]).toarray(), rows[[3, 1]].toarray())
    assert opener.times == 1
    np.testing.assert_array_equal(sparse.vstack([b for _, b in matrix.blocks(7)]).toarray(), rows.toarray())
    matrix.close()
    matrix.take([0])
    assert opener.times == 2


def test_matrices_in_memory_are_not_let_go_of(rows):
    times = []
    matrix = LazyMatrix(lambda: times.append(1) or open_matrix(rows), (20, 12))
    for _ in range(2):
        matrix.take([0])
        matrix.close()
    assert len(times) == 1


def test_an_open_file_does_not_travel(opener, rows):
    matrix = LazyMatrix(opener, (20, 12), "x.h5")
    matrix.take([0])
    sent = pickle.loads(pickle.dumps(matrix))
    assert sent._opened is None
    np.testing.assert_array_equal(sent.take([4]).toarray(), rows[[4]].toarray())
    for one in (source(opener), Study("a", matrix, TOKENS)):
        one.matrix.take([0])
        again = pickle.loads(pickle.dumps(one))
        np.testing.assert_array_equal(again.matrix.take([4]).toarray(), rows[[4]].toarray())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_opens_for_itself(opener):
    matrix = LazyMatrix(opener, (20, 12), "x.h5")
    matrix.take([0])
    pid = os.fork()
    if pid == 0:  # exit at once: this is a copy of the test run
        matrix.take([1])
        os._exit(0 if opener.times == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert opener.times == 1


def test_a_file_that_has_changed_is_noticed(opener):
    with pytest.raises(OSError, match=r"study 'a' \(x\.h5\) cannot be read: it holds \(20, 12\) cells and genes where"):
        Study("a", LazyMatrix(opener, (19, 12), "x.h5"), TOKENS).take(np.arange(3))


def test_a_file_that_has_gone_is_named(opener):
    opener.path.unlink()
    one = source(opener)
    for read in (lambda: expressed(one), lambda: one.study(TOKENS).take(np.arange(2))):
        with pytest.raises(OSError, match=r"study 'a' \(x\.h5\) cannot be read: .*Is the file where it was, whole"):
            read()


def test_expressed_counts_cells(opener, rows):
    one = source(opener)
    expected = (rows.toarray() > 0).sum(0)
    np.testing.assert_array_equal(expressed(one), expected)
    assert expressed(one).dtype == np.int64
    assert opener.times == 1  # kept
    np.testing.assert_array_equal(expressed(in_memory(rows)), expected)
    np.testing.assert_array_equal(expressed(in_memory(rows[:0])), np.zeros(12))


def test_expressed_counts_in_blocks(toy_rows, monkeypatch):
    monkeypatch.setattr("scgpt_tl.engine.study._BLOCK", 7)
    rows = toy_rows(40, 12)
    np.testing.assert_array_equal(expressed(in_memory(rows)), (rows.toarray() > 0).sum(0))


def test_a_genes_columns_are_counted_once_a_cell():
    """Two cells express G, one of them in two of its three columns."""
    rows = sparse.csr_matrix(np.array([[1, 2, 0, 0], [0, 1, 3, 2], [0, 4, 0, 0]]))
    one = Source("a", ["G", "H", "G", "G"], lambda: open_matrix(rows), 3)
    assert expressed(one).tolist() == [2, 3, 2, 2]


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_values_that_are_no_counts(rows, value: float):
    bad = rows.copy()
    bad.data[-1] = value
    for read in (expressed, lambda one: one.study(TOKENS).take(np.arange(20))):
        with pytest.raises(ValueError, match=r"study 'a' \(x\.h5\) holds negative or non-finite values: give counts"):
            read(in_memory(bad))
    assert wrong_values(rows) == wrong_values(rows[:0]) == ""
    assert "negative" in wrong_values(bad)


@pytest.mark.parametrize("weight", [-0.1, np.nan, np.inf, "1"])
def test_weights_that_are_none(rows, weight: Any):
    for make in (lambda: source(lambda: open_matrix(rows), weight=weight), lambda: Study("a", rows, TOKENS, weight)):
        with pytest.raises(
            ValueError, match=r"study .a. has the weight .*: give 0 .left out. or more; 1 shows each cell"
        ):
            make()


def test_a_study_is_its_source_with_tokens(rows):
    one = source(lambda: open_matrix(rows), weight=0.5)
    study = one.study(TOKENS)
    assert (study.name, study.n_cells, study.weight, study.tokenizer) == ("a", 20, 0.5, TOKENS)
    assert study.matrix is one.matrix


def test_rows_of_all_studies_have_keys_of_their_own(rows):
    keys = np.concatenate([Study(name, rows, TOKENS).keys for name in "ab"])
    assert len(np.unique(keys)) == 40

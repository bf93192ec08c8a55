"""Which search answers, and that an index gives what the exact search gives, or less of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from scgpt_tl.engine import search as module
from scgpt_tl.engine.neighbors import nearest
from scgpt_tl.engine.search import chosen, search


def clouds(n: int, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.random.default_rng(9).standard_normal((6, 24))[rng.integers(0, 6, n)] + 0.3 * rng.standard_normal((n, 24))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class Graph:
    """pynndescent's face over a full scan: its own kernels take minutes to compile."""

    def __init__(self, data: np.ndarray, *, metric: str, n_neighbors: int, random_state: int) -> None:
        assert (metric, random_state) == ("euclidean", 0)
        self.data = data

    def prepare(self) -> None: ...

    def query(self, queries: np.ndarray, *, k: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        distances, rows = nearest(queries, self.data, k)
        rows[0, -1], distances[0, -1] = -1, np.inf  # one that it did not find
        return rows[:, ::-1], np.sqrt(2 * distances)[:, ::-1]


@pytest.fixture(params=["faiss", "pynndescent"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=Graph))
    monkeypatch.setattr(module, "find_spec", lambda name: name == request.param or None)
    return request.param


def test_an_index_finds_nearly_all_and_measures_exactly(package: str):
    reference, queries = clouds(1500), clouds(60, seed=1)
    assert chosen("approximate", 1500) == package
    distances, rows = search(queries, reference, 8, index="approximate")
    exact, expected = search(queries, reference, 8, index="exact")
    recall = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(rows, expected, strict=True)])
    assert recall > 0.95
    assert (distances.dtype, rows.dtype) == (exact.dtype, expected.dtype)
    assert (distances[:, 1:] >= distances[:, :-1]).all()
    same = rows == expected
    np.testing.assert_array_equal(distances[same], exact[same])
    assert (distances >= exact).all()  # what is missed makes room for what is farther


def test_an_index_leaves_out_what_has_no_label_and_oneself(package: str):
    cells = clouds(400)
    labels = np.arange(400) % 4 - 1
    same = np.arange(400) // 8  # eight of one content, of which six have a label
    _, rows = search(cells, cells, 5, index="approximate", groups=(same, np.where(labels >= 0, same, -1)))
    assert (labels[rows[rows >= 0]] >= 0).all()
    assert (rows[1:] >= 0).all()
    assert not (rows // 8 == same[:, None]).any()


def test_exact_is_the_scan():
    reference, queries, labels = clouds(50), clouds(9, seed=1), np.arange(50) % 3 - 1
    for index in ("exact", "auto"):
        groups = np.full(9, -2), labels
        found = search(queries, reference, 4, index=index, groups=groups)
        expected = nearest(queries, reference, 4, groups=groups)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


def test_what_auto_means(monkeypatch: pytest.MonkeyPatch):
    assert chosen("auto", module.EXACT_UP_TO) == "exact"
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    assert chosen("auto", module.EXACT_UP_TO + 1) == chosen("approximate", 10) == "faiss"
    assert chosen("exact", 10**9) == "exact"
    monkeypatch.setattr(module, "find_spec", lambda name: name == "pynndescent" or None)
    assert chosen("auto", 10**9) == "exact"  # its graph is for those who ask
    assert chosen("approximate", 10) == "pynndescent"
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert chosen("auto", 10**9) == "exact"
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"scgpt_tl\[faiss\]"):
        chosen("approximate", 10)


def test_a_misspelt_index():
    with pytest.raises(ValueError, match="index='aproximate' is unknown; did you mean 'approximate'"):
        search(clouds(3), clouds(9), 2, index="aproximate")

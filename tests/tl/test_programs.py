"""The kNN graph of genes and its Leiden programs, against plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scgpt_tl.tl._programs import best_resolution, coarser, gene_graph, programs, usual_resolution


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """90 genes of three kinds (50, 30 and 10), shuffled, of any length."""
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [50, 30, 10])
    points = rng.normal(size=(3, 20))[kind] * 2 + rng.normal(size=(90, 20))
    points *= rng.uniform(0.1, 10, (90, 1))
    return np.column_stack([points[order := rng.permutation(90)], kind[order]])


@pytest.fixture(scope="module")
def graph(features: np.ndarray) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    return gene_graph(features[:, :-1], 6)


def test_edges_are_those_of_the_nearest_by_cosine(features: np.ndarray, graph):
    cosines, weights = graph
    unit = features[:, :-1] / np.linalg.norm(features[:, :-1], axis=1, keepdims=True)
    every = unit @ unit.T
    np.fill_diagonal(every, -np.inf)
    joined = np.zeros((90, 90), bool)
    for gene in range(90):
        joined[gene, np.argsort(-every[gene])[:5]] = True  # six with itself
    joined |= joined.T
    np.testing.assert_array_equal(weights.toarray() > 0, joined)
    rows, columns = joined.nonzero()
    np.testing.assert_allclose(cosines.toarray()[rows, columns], every[rows, columns], atol=1e-6)
    assert cosines.nnz == joined.sum()
    assert cosines.dtype == weights.dtype == np.float32
    for matrix in graph:
        assert abs(matrix - matrix.T).max() < 1e-6
        assert matrix.diagonal().max() == 0


def test_three_genes_are_enough_for_a_graph():
    cosines, _ = gene_graph(np.eye(3) + 1)
    assert cosines.shape == (3, 3)
    assert np.isfinite(cosines.data).all()


@pytest.mark.parametrize("flavor", ["igraph", "leidenalg"])
def test_kinds_are_found_and_numbered_by_size(features: np.ndarray, graph, flavor: str):
    if flavor != "igraph":
        pytest.importorskip(flavor)
    kind = features[:, -1].astype(int)
    found, modularities = programs(graph[1], [0.1], min_genes=5, flavor=flavor)
    assert (found.dtype, found.shape, modularities.shape) == (np.int32, (90, 1), (1,))
    np.testing.assert_array_equal(found[:, 0], kind)
    found, _ = programs(graph[1], [0.1], min_genes=11, flavor=flavor)
    np.testing.assert_array_equal(found[:, 0], np.where(kind == 2, -1, kind))


def test_of_equal_size_the_one_of_the_first_gene_comes_first():
    pairs = sparse.csr_matrix(np.kron(np.eye(3), 1 - np.eye(5))[::-1, ::-1])
    found, _ = programs(pairs, [1.0], min_genes=5)
    np.testing.assert_array_equal(found[:, 0], np.repeat([0, 1, 2], 5))


def test_modularity_is_newmans(graph):
    import igraph

    found, modularities = programs(graph[1], [0.5, 3], min_genes=1)
    upper = sparse.triu(graph[1]).tocoo()
    drawn = igraph.Graph(n=90, edges=np.column_stack(upper.coords), edge_attrs={"weight": upper.data})
    for column in range(2):
        expected = drawn.modularity(found[:, column].tolist(), weights="weight")
        assert modularities[column] == pytest.approx(expected, abs=1e-6)


def test_the_resolution_with_the_most_programs_is_taken():
    found = np.array([[0, 0, 0], [1, 1, 1], [-1, 2, 2]])
    assert best_resolution(found, [1, 3, 2]) == 2
    assert best_resolution(found[:, :1], [5]) == 0


def test_the_usual_resolution_grows_with_the_graph():
    assert (usual_resolution(1200), usual_resolution(60), usual_resolution(13_206)) == (10, 0.5, 110)


def test_a_coarser_resolution_that_gives_programs(graph):
    how = {"min_genes": 8, "flavor": "igraph", "seed": 0}
    assert (programs(graph[1], [500], **how)[0] < 0).all()
    lower = coarser(graph[1], 500, **how)
    assert (programs(graph[1], [lower], **how)[0] >= 0).any()
    assert coarser(graph[1], 500, min_genes=91, flavor="igraph", seed=0) is None

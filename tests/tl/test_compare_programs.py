"""Programs of embeddings beside those of co-expression: what is counted, and against what."""

from __future__ import annotations

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from scgpt_tl import models, pp, tl
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl import _compare_programs
from scgpt_tl.tl._compare_programs import ProgramComparison, compare_programs, correlated
from scgpt_tl.tl._network import nodes_of
from scgpt_tl.tl._over_representation import PathwayTest


@pytest.fixture(scope="module")
def cells(toy_cells, tiny_genes):
    """60 cells of two kinds, each with 25 genes of its own, under names that the tiny model knows."""
    data = toy_cells(60, 50)
    data.var_names = tiny_genes[:50]
    return data


@pytest.fixture(scope="module")
def sets(cells):
    """The genes of either kind of cell, and a set of both; co-expression must find the first two."""
    even, odd = cells.var_names[::2].tolist(), cells.var_names[1::2].tolist()
    return {"even/genes": even, "odd": odd, "half": even[:6] + odd[:6], "elsewhere": ["X1", "X2", "X3"]}


@pytest.fixture(scope="module")
def compared(cells, sets, tiny):
    return compare_programs(cells, gene_sets=sets, model=tiny, resolutions=(0.5, 1, 30), n_neighbors=8, rng=1)


def test_every_method_at_every_resolution(compared):
    table = compared.table
    assert list(table) == ["method", "resolution", "n_programs", "n_genes", "n_pathways", "common", "unique"]
    assert table["method"].tolist() == ["embedding"] * 3 + ["coexpression"] * 3 + ["random"] * 3
    assert table["resolution"].tolist() == [0.5, 1.0, 30.0] * 3
    assert (table["n_genes"] <= 50).all()
    assert (table["n_pathways"] == table["common"] + table["unique"]).all()
    by = table.set_index(["method", "resolution"])
    for name in ("n_programs", "n_genes"):  # chance has the model's sizes
        assert by.loc["random", name].tolist() == by.loc["embedding", name].tolist()
    assert {"n_genes": 50, "n_background": 50, "n_pathways": 3, "correction": "bonferroni"}.items() <= (
        compared.params.items()
    )


def test_coexpression_finds_what_was_planted(compared):
    found = compared.found(1)
    assert set(found) == {"embedding", "coexpression", "random"}
    assert found["coexpression"] == {"even/genes", "odd"}
    assert not found["random"]
    row = compared.table[(compared.table["method"] == "coexpression") & (compared.table["resolution"] == 1)].iloc[0]
    assert row["n_pathways"] == 2
    assert row["common"] == len(found["coexpression"] & found["embedding"])
    hits = compared.pathways
    assert (hits["adjusted"] <= 0.05).all()
    assert list(hits)[:4] == ["method", "resolution", "program", "pathway"]


def test_the_counts_are_those_of_the_parts(compared, cells, sets):
    """Programs and tests made again by hand for co-expression: numpy's correlation, scanpy's graph, scipy's test."""
    from scgpt_tl.tl._programs import gene_graph, programs

    logged = np.log1p(cells.X.toarray() / cells.X.sum(axis=1).A1[:, None] * 1e4)
    centred = (logged - logged.mean(axis=0)).T
    order = np.argsort(cells.var_names.map({name: i for i, name in enumerate(cells.var_names)}))
    _, graph = gene_graph(centred[order], 8)
    labels, _ = programs(graph, (1.0,), min_genes=5, flavor="igraph", seed=1)
    hits = set()
    for program in range(labels.max() + 1):
        members = set(cells.var_names[order][labels[:, 0] == program])
        for name, genes in sets.items():
            inside = set(genes) & set(cells.var_names)
            p = stats.hypergeom.sf(len(inside & members) - 1, 50, len(inside), len(members)) if inside else 1
            if p * (labels.max() + 1) * 3 <= 0.05:
                hits.add(name)
    assert compared.found(1)["coexpression"] == hits


def test_a_resolution_that_was_not_compared(compared):
    with pytest.raises(ValueError, match=r"resolution 7 was not compared; there are 0\.5, 1\.0, 30\.0"):
        compared.found(7)


def test_order_of_genes_and_cells_changes_nothing(compared, cells, sets, tiny):
    rng = np.random.default_rng(5)
    mixed = cells[rng.permutation(60), rng.permutation(50)].copy()
    again = compare_programs(mixed, gene_sets=sets, model=tiny, resolutions=(0.5, 1, 30), n_neighbors=8, rng=1)
    pd.testing.assert_frame_equal(again.table, compared.table)
    pd.testing.assert_frame_equal(again.pathways, compared.pathways, rtol=1e-9)


def test_what_is_common_to_whom(cells, sets, tiny, monkeypatch):
    """Embeddings that tell the two kinds of genes apart find what co-expression finds; exchanged genes do not."""
    kind = np.arange(50) % 2
    planted = np.random.default_rng(0).normal(0, 0.1, (50, 4)) + np.eye(4)[kind]
    monkeypatch.setattr(_compare_programs, "_gene_embeddings", lambda *_: planted.astype(np.float32))
    found = compare_programs(cells, gene_sets=sets, model=tiny, resolutions=[1], n_neighbors=8)
    by = found.table.set_index("method")
    assert by["n_pathways"].to_dict() == {"embedding": 2, "coexpression": 2, "random": 0}
    assert by["common"].to_dict() == {"embedding": 2, "coexpression": 2, "random": 0}


def test_what_chance_finds_is_set_beside_the_embedding():
    names = [f"G{i}" for i in range(40)]
    sets = {"first": frozenset(names[:6]), "second": frozenset(names[6:12]), "rest": frozenset(names[12:])}
    codes = {name: np.full((40, 1), -1, np.int32) for name in ("embedding", "coexpression", "random")}
    codes["embedding"][:6] = codes["coexpression"][6:12] = codes["random"][6:12] = 0
    table, pathways, counts = _compare_programs._tested(codes, [1.0], names, (sets, frozenset(names)), PathwayTest())
    assert table["n_pathways"].tolist() == [1, 1, 1]
    assert table["common"].tolist() == [0, 0, 0]
    assert table["n_genes"].tolist() == [6, 6, 6]
    assert pathways["pathway"].tolist() == ["first", "second", "second"]
    assert counts == {"n_background": 40, "n_pathways": 3}


def test_options_reach_the_tests(cells, sets, tiny):
    options = {"cutoff": 1.0, "correction": "fdr", "max_size": 20}
    loose = compare_programs(cells, gene_sets=sets, model=tiny, resolutions=[1], n_neighbors=8, **options)
    assert loose.params["n_pathways"] == 1
    assert set(loose.pathways["pathway"]) == {"half"}
    assert len(loose.pathways) >= 2
    assert (
        compare_programs(
            cells, gene_sets=sets, model=tiny, resolutions=[1], n_neighbors=8, background=cells.var_names[:30]
        ).params["n_background"]
        == 30
    )


def test_genes_that_do_not_vary_or_that_the_model_does_not_know_are_left_out(cells, sets, tiny):
    data = cells.copy()
    dense = data.X.toarray()
    dense[:, 3] = 0
    data.X = sparse.csr_matrix(dense)
    data.var_names = ["UNKNOWN", *data.var_names[1:]]
    before = data.var_names.tolist()
    found = compare_programs(data, gene_sets=sets, model=tiny, resolutions=[1], n_neighbors=8)
    assert found.params["n_genes"] == 48
    assert data.var_names.tolist() == before
    assert list(data.uns) == list(data.varm) == []
    data.var["highly_variable"] = np.arange(50) < 30
    assert compare_programs(data, gene_sets=sets, model=tiny, resolutions=[1]).params["n_genes"] == 28


def test_a_resolution_without_programs_is_a_row_of_zeros(cells, sets, tiny):
    found = compare_programs(cells, gene_sets=sets, model=tiny, resolutions=[0.01, 30], n_neighbors=8, min_genes=20)
    fine = found.table[found.table["resolution"] == 30]
    assert (fine[["n_programs", "n_genes", "n_pathways"]] == 0).all(axis=None)
    assert (found.table[found.table["resolution"] == 0.01]["n_programs"] > 0).all()
    assert found.found(30) == dict.fromkeys(("embedding", "coexpression", "random"), frozenset())


def test_no_program_at_all(cells, sets, tiny):
    given = {"gene_sets": sets, "model": tiny, "n_neighbors": 8}
    with pytest.raises(ValueError, match=r"no program of min_genes=51 genes or more by .*; 50 genes are too few"):
        compare_programs(cells, **given, resolutions=[1], min_genes=51)
    with pytest.raises(ValueError, match=r"resolutions=30, 60: no program .* by embedding and coexpression;") as error:
        compare_programs(cells, **given, resolutions=[30, 60], min_genes=20)
    named = re.search(r"at resolutions=([\d.]+) \(embedding\) and ([\d.]+) \(coexpression\)", str(error.value))
    lower = min(map(float, named.groups()))
    assert (compare_programs(cells, **given, resolutions=[lower], min_genes=20).table["n_programs"] > 0).all()


def test_a_method_without_programs_is_told(cells, sets, tiny, monkeypatch, caplog):
    real = _compare_programs.programs

    def fake(graph, levels, **how):
        codes, modularities = real(graph, levels, **how)
        return (codes if graph is first[0] else np.full_like(codes, -1)), modularities

    first, make = [], _compare_programs.gene_graph

    def graph_of(*given):
        first.append(make(*given)[1])
        return None, first[-1]

    monkeypatch.setattr(_compare_programs, "gene_graph", graph_of)
    monkeypatch.setattr(_compare_programs, "programs", fake)
    compare_programs(cells, gene_sets=sets, model=tiny, resolutions=[1], n_neighbors=8)
    assert "resolutions=1: no program of min_genes=5 genes or more by coexpression; " in caplog.text


def test_columns_of_one_gene_are_summed(cells, sets, tiny, monkeypatch):
    """Counts of a gene that lie in two columns are those of one."""
    dense = cells.X.toarray()
    half = np.floor(dense[:, [0]] / 2)
    split = np.hstack([dense[:, [0]] - half, dense[:, 1:], half])
    var = pd.DataFrame(index=[f"E{i}" for i in range(51)])
    var["gene_name"] = [*cells.var_names, cells.var_names[0]]
    apart = ad.AnnData(sparse.csr_matrix(split), obs=cells.obs, var=var)
    given = {"model": tiny, "resolutions": [1], "n_neighbors": 8}
    seen = []
    monkeypatch.setattr(_compare_programs, "correlated", lambda values: seen.append(values) or correlated(values))
    found = compare_programs(apart, gene_sets=sets, gene_symbols="gene_name", **given)
    expected = compare_programs(cells, gene_sets=sets, **given)
    assert found.params["n_genes"] == 50
    np.testing.assert_allclose(seen[0].toarray(), seen[1].toarray())
    pd.testing.assert_frame_equal(found.table, expected.table)
    pd.testing.assert_frame_equal(found.pathways, expected.pathways)


def test_values_of_twice_a_gene(cells, tiny):
    match = genes_of(cells, models.load_model(tiny).vocab)
    nodes = nodes_of(cells, match, genes=None, regulators=None)[0]
    twin = nodes.columns[1]
    column_ids = np.where(np.arange(50) == nodes.columns[0], match.ids[twin], nodes.column_ids)
    folded = replace(nodes, ids=nodes.ids[1:], columns=nodes.columns[1:], column_ids=column_ids)
    rows, values = _compare_programs._varying(cells, folded, None)
    dense = cells.X.toarray().astype(float)
    both = dense[:, twin] + dense[:, nodes.columns[0]]
    assert rows[0] == twin
    np.testing.assert_allclose(values[:, [0]].toarray().ravel(), np.log1p(both / dense.sum(axis=1) * 1e4))


def test_a_fine_tuned_model_that_normalises_each_batch_apart(cells, sets, tiny):
    model = models.load_model(tiny)
    apart = replace(model, config=replace(model.config, input_norm="domain"))
    assert len(compare_programs(cells, gene_sets=sets, model=apart, resolutions=[1], n_neighbors=8).table) == 3


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 30), st.integers(3, 20), st.integers(0, 2**32 - 1))
def test_cosines_are_correlations(n, size, seed):
    rng = np.random.default_rng(seed)
    values = rng.random((n, size)) * (rng.random((n, size)) < 0.6)
    values[0] += 1 + np.arange(size)  # all vary
    vectors = correlated(sparse.csr_matrix(values)).astype(np.float64)
    assert vectors.shape == (size, min(n, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors @ vectors.T, np.corrcoef(values.T), atol=2e-5)


def test_chance_exchanges_genes():
    labels = np.array([[0, 1], [0, 1], [1, -1], [-1, 0]] * 10, np.int32)
    names = [f"G{i}" for i in range(40)]
    found = _compare_programs._exchanged(labels, names, 0)
    for level in range(2):
        assert (np.sort(found[:, level]) == np.sort(labels[:, level])).all()
        assert (found[:, level] != labels[:, level]).any()
    assert (found == _compare_programs._exchanged(labels, names, 0)).all()
    assert (found != _compare_programs._exchanged(labels, names, 1)).any()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"resolutions": []}, ValueError, "positive numbers, each once"),
        ({"resolutions": [1, 1.0]}, ValueError, "positive numbers, each once"),
        ({"resolutions": [-1]}, ValueError, "positive numbers"),
        ({"resolutions": [np.nan]}, ValueError, "positive numbers"),
        ({"resolutions": "a"}, ValueError, "resolutions='a': give positive numbers"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors=0; give a whole number"),
        ({"n_neighbors": 1}, ValueError, "n_neighbors=1; give a whole number"),
        ({"n_neighbors": "x"}, ValueError, "n_neighbors='x'; give a whole number"),
        ({"min_genes": 0}, ValueError, "min_genes=0; give a whole number"),
        ({"cutof": 0.1}, TypeError, "unexpected argument 'cutof'; did you mean 'cutoff'"),
        ({"resolution": [1]}, TypeError, "unexpected argument 'resolution'; did you mean 'resolutions'"),
        ({"n_neighbors": 50}, ValueError, "50 genes .* more than n_neighbors=50 are needed"),
        ({"genes": ["nowhere"]}, ValueError, "genes=: none of the 1 named"),
        ({"gene_sets": {"a": ["X"]}}, ValueError, "0 of 50 genes of the data are in a pathway"),
        ({"gene_sets": "absent.gmt"}, FileNotFoundError, "is not there"),
        ({"min_size": 99}, ValueError, "none of 4 pathways has 99"),
        ({"correction": "x"}, ValueError, "correction='x'"),
        ({"layer": "nope"}, ValueError, "layer 'nope' is not in"),
        ({"model": "nope"}, FileNotFoundError, "nope"),
        ({"gene_symbols": "nope"}, KeyError, "gene_symbols='nope'"),
    ],
)
def test_bad_input(cells, sets, tiny, options, error, says):
    with pytest.raises(error, match=says):
        tl.compare_programs(cells, **{"gene_sets": sets, "model": tiny, **options})


def test_negative_values(cells, sets, tiny):
    data = cells.copy()
    data.X = data.X - 1 * (data.X > 5)
    data.X.data[0] = -1
    with pytest.raises(ValueError, match="negative"):
        compare_programs(data, gene_sets=sets, model=tiny)


@pytest.mark.data
def test_real_data_and_reactome(data):
    adata = ad.read_h5ad(data("pbmc3k/pbmc3k.h5ad"))
    pp.select_genes(adata)
    gmt = data("gene_resources/reactome_pathways.gmt.gz")
    found = tl.compare_programs(adata, gene_sets=gmt, resolutions=[1])
    assert isinstance(found, ProgramComparison)
    assert found.params["gene_sets"] == "reactome_pathways.gmt.gz"
    by = found.table.set_index("method")["n_pathways"]
    assert by["random"] < min(by["coexpression"], by["embedding"])

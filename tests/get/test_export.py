from __future__ import annotations

import igraph
import pandas as pd
import pytest

from scgpt_tl import get


@pytest.mark.parametrize(("name", "sep"), [("a.tsv", "\t"), ("a.CSV", ",")])
def test_tables_are_those_of_grn_df(regulating_genes, tmp_path, name, sep):
    adata, which = regulating_genes(), {"setting": "difference", "regulators": "G1", "n_top": 3}
    get.write_grn(adata, tmp_path / name, **which)
    read = pd.read_csv(tmp_path / name, sep=sep)
    pd.testing.assert_frame_equal(read, get.grn_df(adata, **which), check_dtype=False, rtol=1e-6)


def test_graphml_has_names_weights_and_programs(similar_genes, tmp_path):
    adata = similar_genes(names="HLA-{} & <co>")
    get.write_grn(adata, str(tmp_path / "a.graphml"))
    graph, edges = igraph.Graph.Read_GraphML(str(tmp_path / "a.graphml")), get.grn_df(adata)
    assert not graph.is_directed()
    assert graph.ecount() == len(edges)
    programs = adata.var["scgpt_program"].astype(object)
    assert dict(zip(graph.vs["name"], graph.vs["program"], strict=True)) == {
        name: programs[name] for name in graph.vs["name"]
    }
    held = {frozenset((graph.vs[e.source]["name"], graph.vs[e.target]["name"])): e["weight"] for e in graph.es}
    assert held == {frozenset((s, t)): pytest.approx(w) for s, t, w in edges.iloc[:, :3].itertuples(index=False)}


def test_graphml_of_regulators_is_directed(regulating_genes, tmp_path):
    adata = regulating_genes()
    get.write_grn(adata, tmp_path / "a.graphml", n_top=2)
    graph, edges = igraph.Graph.Read_GraphML(str(tmp_path / "a.graphml")), get.grn_df(adata, n_top=2)
    assert graph.is_directed()
    found = [(graph.vs[e.source]["name"], graph.vs[e.target]["name"], e["group"], int(e["rank"])) for e in graph.es]
    assert found == list(edges[["source", "target", "group", "rank"]].itertuples(index=False, name=None))
    assert set(graph.es["setting"]) == {"control", "perturbed"}


def test_refusals_leave_no_file(regulating_genes, tmp_path):
    adata, there = regulating_genes(), tmp_path / "there.tsv"
    there.write_text("mine")
    with pytest.raises(ValueError, match=r"a\.gml: expected a name that ends in \.graphml, \.tsv or \.csv"):
        get.write_grn(adata, tmp_path / "a.gml")
    with pytest.raises(FileExistsError, match=r"there\.tsv exists"):
        get.write_grn(adata, there)
    with pytest.raises(FileNotFoundError, match="is not there"):
        get.write_grn(adata, tmp_path / "no" / "a.tsv")
    with pytest.raises(KeyError, match="no group"):
        get.write_grn(adata, there, group="x", overwrite=True)
    assert there.read_text() == "mine"
    get.write_grn(adata, there, overwrite=True)
    assert there.read_text().startswith("source\ttarget\tweight\trank\tgroup\tsetting\n")
    assert [path.name for path in tmp_path.iterdir()] == ["there.tsv"]


def test_a_write_that_fails_leaves_the_old_file(regulating_genes, tmp_path, monkeypatch):
    there = tmp_path / "there.tsv"
    there.write_text("mine")

    def full(*_, **__):
        msg = "no space left"
        raise OSError(msg)

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="no space"):
        get.write_grn(regulating_genes(), there, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["there.tsv"]
    assert there.read_text() == "mine"

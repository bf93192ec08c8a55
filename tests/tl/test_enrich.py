"""Pathways of programs and of lists, in their slot."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scgpt_tl import get, tl
from scgpt_tl._slots import OWNER

SETS = {
    "one/first": ["G0", "G1", "G2", "G3", "G4", "G5", "elsewhere"],
    "mixed": ["G0", "G6", "G12"],
    "third": ["G12", "G13", "G14", "G15"],
    "far": ["X", "Y", "Z"],
}


@pytest.fixture
def programs(similar_genes):
    """Three programs of six genes, G18 in none."""
    return similar_genes(3)


def table_of(adata, key="scgpt_enrichment"):
    return adata.uns[key]["table"]


def test_programs_against_scipy(programs):
    assert tl.scgpt_enrich(programs, gene_sets=SETS) is None
    held = programs.uns["scgpt_enrichment"]
    assert held[OWNER] == "tl.scgpt_enrich"
    universe = 6 + 2 + 4 - 1  # G0-G5, G6 and G12, G12-G15; G18 and "elsewhere" are of one side alone
    table = held["table"].set_index(["program", "pathway"])
    row = table.loc[("1", "one/first")]
    assert (row["overlap"], row["size"], row["n_program"]) == (6, 6, 6)
    assert row["p_value"] == pytest.approx(stats.hypergeom.sf(5, universe, 6, 6))
    assert row["adjusted"] == pytest.approx(row["p_value"] * 3 * 3)  # programs x pathways of three genes or more
    assert row["genes"] == "G0;G1;G2;G3;G4;G5"
    row = table.loc[("3", "third")]
    assert row["p_value"] == pytest.approx(stats.hypergeom.sf(3, universe, 4, 4))
    assert ("2", "third") not in table.index
    params = held["params"]
    expected = {"n_background": universe, "n_programs": 3, "n_pathways": 3, "n_tests": 9, "n_hits": 2}
    assert {name: params[name] for name in expected} == expected
    assert (params["background"], params["programs"], params["gene_sets"]) == ("network", "scgpt_program", "dict")


def test_it_survives_h5ad(programs, tmp_path):
    tl.scgpt_enrich(programs, gene_sets=SETS)
    tl.scgpt_enrich(programs, gene_lists={"a/b": ["G18"], "c": ["G7"]}, gene_sets=SETS | {"q": ["G18", "G7"]},
                    min_size=1, key_added="lists")  # fmt: skip
    tl.scgpt_enrich(programs, gene_lists={"a": ["G6"]}, gene_sets={"p": ["G1", "G2", "G3", "G6"], "x": ["G9"] * 2},
                    background=["G1", "G2", "G3", "G6"], min_size=4, key_added="few")  # fmt: skip
    programs.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    for key in ("scgpt_enrichment", "lists", "few"):
        pd.testing.assert_frame_equal(
            table_of(read, key).reset_index(drop=True), table_of(programs, key), check_index_type=False
        )
        kept, params = read.uns[key]["params"], programs.uns[key]["params"]
        assert kept.pop("tested").tolist() == params.pop("tested").tolist()
        assert kept == params
    assert set(table_of(read, "lists")["program"]) == {"a/b", "c"}
    assert get.enrichment_df(read, key="lists")["program"].cat.categories.tolist() == ["a/b", "c"]


def test_an_empty_table_survives_h5ad(programs, tmp_path):
    tl.scgpt_enrich(programs, gene_lists={"a": ["G0"]}, gene_sets={"p": ["G1", "G2", "G3"], "q": ["G0"]})
    assert table_of(programs).empty
    programs.write_h5ad(tmp_path / "a.h5ad")
    assert list(ad.read_h5ad(tmp_path / "a.h5ad").uns["scgpt_enrichment"]["table"]) == list(table_of(programs))
    assert get.enrichment_df(ad.read_h5ad(tmp_path / "a.h5ad")).empty
    assert get.enrichment_df(ad.read_h5ad(tmp_path / "a.h5ad"), program="a").empty


def test_which_lists_were_tested(programs):
    lists = {"L": ["G13"], "with": ["G0"], "outside": ["nowhere"]}
    sets = {"p": ["G0", "G1", "G2"], "q": ["G13", "G0"]}
    tl.scgpt_enrich(programs, gene_lists=lists, gene_sets=sets)  # q is too small to be tested
    assert programs.uns["scgpt_enrichment"]["params"]["tested"].tolist() == ["L", "with"]
    assert get.enrichment_df(programs, program="L").empty
    with pytest.raises(KeyError, match="no program 'outside'; there are L, with"):
        get.enrichment_df(programs, program="outside")


def test_lists_backgrounds_and_keys(programs):
    programs.uns["mine"] = programs.uns.pop("scgpt_grn")
    programs.var["mine_program"] = programs.var.pop("scgpt_program")
    programs.uns["mine"]["genes"] = programs.uns["mine"]["genes"][:-4]
    tl.scgpt_enrich(programs, gene_sets=SETS, key="mine")
    assert programs.uns["mine"]["genes"].tolist() == [f"G{i}" for i in range(15)]
    assert programs.uns["scgpt_enrichment"]["params"]["n_background"] == 10  # G15, of "third", was not chosen
    lists = {"first": ["G0", "G1", "nowhere"]}
    tl.scgpt_enrich(programs, gene_sets=SETS, gene_lists=lists)
    assert programs.uns["scgpt_enrichment"]["params"]["background"] == "var_names"
    assert programs.uns["scgpt_enrichment"]["params"]["programs"] == "gene_lists"
    assert table_of(programs)["n_program"].tolist() == [2, 2]
    tl.scgpt_enrich(programs, gene_sets=SETS, gene_lists=lists, background=["G0", "G2", "G3", "G4", "G12"], min_size=2)
    params = programs.uns["scgpt_enrichment"]["params"]
    assert (params["background"], params["n_background"], params["n_pathways"]) == ("given", 5, 2)


def test_names_in_a_column(programs):
    programs.var["symbol"] = programs.var_names
    programs.var_names = [f"ENSG{i:011d}" for i in range(programs.n_vars)]
    programs.uns["scgpt_grn"]["genes"] = programs.var_names.to_numpy(str)
    programs.var.loc[programs.var_names[-1], "symbol"] = np.nan
    with pytest.raises(ValueError, match=r"the data have Ensembl ids .*gene_symbols= \(there: 'symbol'\)"):
        tl.scgpt_enrich(programs, gene_sets=SETS)
    tl.scgpt_enrich(programs, gene_sets=SETS, gene_symbols="symbol")
    assert table_of(programs)["genes"].iloc[0] == "G0;G1;G2;G3;G4;G5"
    tl.scgpt_enrich(programs, gene_sets=SETS, gene_symbols="symbol", gene_lists={"a": [programs.var_names[0], "G1"]})
    assert table_of(programs)["genes"].iloc[0] == "G0;G1"  # a name of either kind
    with pytest.raises(KeyError, match=r"gene_symbols='nope' is not in \.var \(there: "):
        tl.scgpt_enrich(programs, gene_sets=SETS, gene_symbols="nope")


def test_copy_and_what_others_wrote(programs):
    before = set(programs.uns)
    changed = tl.scgpt_enrich(programs, gene_sets=SETS, copy=True)
    assert set(programs.uns) == before
    assert "scgpt_enrichment" in changed.uns
    tl.scgpt_enrich(changed, gene_sets=SETS)  # its own is written over
    programs.uns["scgpt_enrichment"] = {"mine": 1}
    with pytest.raises(ValueError, match=r"was not written by tl\.scgpt_enrich: give another key_added"):
        tl.scgpt_enrich(programs, gene_sets=SETS)
    tl.scgpt_enrich(programs, gene_sets=SETS, overwrite=True)


def test_no_programs(programs, regulating_genes):
    with pytest.raises(KeyError, match=r"is a network by 'attention', which makes no programs: give gene_lists="):
        tl.scgpt_enrich(regulating_genes(), gene_sets=SETS)
    with pytest.raises(KeyError, match=r"\.var has no 'other_program': scgpt_tl\.tl\.scgpt_grn\(adata\) makes"):
        tl.scgpt_enrich(programs, gene_sets=SETS, key="other")
    programs.var["scgpt_program"] = pd.Categorical([None] * programs.n_vars, ["1"])
    with pytest.raises(ValueError, match=r"holds no program: .* with a lower resolution="):
        tl.scgpt_enrich(programs, gene_sets=SETS)


def test_programs_as_a_file_gives_them_back(programs, tmp_path):
    tl.scgpt_enrich(programs, gene_sets=SETS)
    expected = table_of(programs)
    del programs.uns["scgpt_enrichment"]
    programs.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    tl.scgpt_enrich(backed, gene_sets=SETS)
    pd.testing.assert_frame_equal(table_of(backed), expected)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"gene_lists": {}}, ValueError, "gene_lists is {}; give"),
        ({"gene_lists": ["G0"]}, ValueError, r"gene_lists is \['G0'\]"),
        ({"gene_lists": {"a": "G0"}}, ValueError, r"gene_lists\['a'\] is the text 'G0'"),
        ({"gene_lists": {"a": ["cd3e"]}}, ValueError, "1 of 1 lists have no gene of the background"),
        ({"gene_lists": {"a": None}}, ValueError, r"gene_lists\['a'\] is None: give a list"),
        ({"gene_sets": {"X": None}}, ValueError, r"gene_sets\['X'\] is None: give a list"),
        ({"cutoff": "0.05"}, ValueError, "cutoff='0.05': an adjusted p is a number"),
        ({"min_size": "3"}, ValueError, "min_size='3' and max_size=None: give whole numbers"),
        ({"max_size": 7.5}, ValueError, "min_size=3 and max_size=7.5: give whole numbers"),
        ({"key_added": ""}, ValueError, "cannot be kept: a name in h5ad is text, not empty"),
        ({"background": "G0"}, ValueError, "background='G0' is one text"),
        ({"background": ["Q"]}, ValueError, "0 of 1 genes"),
        ({"correction": "holm"}, ValueError, "correction='holm'"),
        ({"gene_sets": "absent.gmt"}, FileNotFoundError, "is not there"),
    ],
)
def test_bad_input(programs, options, error, says):
    with pytest.raises(error, match=says):
        tl.scgpt_enrich(programs, **{"gene_sets": SETS, **options})
    assert "scgpt_enrichment" not in programs.uns


def test_without_gseapy(programs, monkeypatch):
    monkeypatch.setitem(sys.modules, "gseapy", None)
    with pytest.raises(ImportError, match=r"gseapy is needed here .*scgpt_tl\[enrich\]"):
        tl.scgpt_enrich(programs, gene_sets=SETS)


def test_no_anndata():
    with pytest.raises(TypeError, match="adata is DataFrame; AnnData is expected"):
        tl.scgpt_enrich(pd.DataFrame(), gene_sets=SETS)

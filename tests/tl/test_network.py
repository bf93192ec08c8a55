"""Options, genes and groups of a network: what is refused, what is told, what is left out."""

from __future__ import annotations

import logging
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scgpt_tl.models.model import load_model
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._network import Groups, Nodes, Options, groups_of, nodes_of

MODEL = load_model(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")


def nodes(adata: ad.AnnData, genes=None, regulators=None) -> tuple[Nodes, str]:
    return nodes_of(adata, genes_of(adata, MODEL.vocab), genes=genes, regulators=regulators)


def grouped(sizes: dict[object, int]) -> ad.AnnData:
    names = np.repeat(np.array(list(sizes), dtype=object), list(sizes.values()))
    obs = pd.DataFrame({"g": names}, index=[f"c{i}" for i in range(len(names))])
    return ad.AnnData(sparse.csr_matrix((len(names), 2), dtype=np.float32), obs=obs)


# ---- options


@pytest.mark.parametrize(
    ("method", "options", "error", "match"),
    [
        ("embedding", {"n_neighbors": 1}, ValueError, "n_neighbors=1; give a whole number, 2 or more"),
        ("embedding", {"min_genes": 2.5}, ValueError, "min_genes=2.5; give a whole number"),
        ("embedding", {"min_cells": 0}, ValueError, "min_cells=0; give a whole number, 1 or more"),
        ("embedding", {"resolution": 0}, ValueError, r"resolution=\(0\.0,\); give a number above 0, or several"),
        ("embedding", {"resolution": []}, ValueError, "give a number above 0, or several"),
        ("embedding", {"resolution": np.nan}, ValueError, "give a number above 0, or several"),
        ("embedding", {"resolution": "high"}, ValueError, "resolution='high'; give a number above 0"),
        ("embedding", {"flavor": "leiden"}, ValueError, "flavor='leiden' is unknown; did you mean 'leidenalg'"),
        ("knockout", {"effect": "predict"}, ValueError, "effect='predict' is unknown; did you mean 'prediction'"),
        ("embedding", {"resolutoin": 1}, TypeError, "unexpected argument 'resolutoin'; did you mean 'resolution'"),
        ("embedding", {"grupby": "x"}, TypeError, "unexpected argument 'grupby'; did you mean 'groupby'"),
        ("embedding", {"max_token": 5}, TypeError, "did you mean 'max_tokens'"),
        ("embedding", {"attention_layer": 0}, ValueError, "is heard by 'attention' alone: leave it out"),
        ("attention", {"context": True}, ValueError, "context= is heard by 'embedding' alone"),
        ("coexpression", {"shuffled": True}, ValueError, "'embedding' and 'attention' and 'knockout' alone"),
        ("embedding", {"batch_key": "b"}, ValueError, "static gene embeddings need no cells"),
        ("attention", {"attention_layer": None}, ValueError, "attention_layer=None; give a whole number"),
        ("attention", {"attention_layer": 1.5}, ValueError, "attention_layer=1.5; give a whole number"),
        ("attention", {"batch_key": ["b"]}, ValueError, r"batch_key=\['b'\]; give the name of one column of .obs"),
    ],
)
def test_options_that_cannot_be(method, options, error, match):
    with pytest.raises(error, match=match):
        Options.of(method, options, beside=("groupby",))


def test_options_as_they_are_told():
    asked = Options.of("embedding", {"resolution": [1, 5, 1], "device": "cpu", "attention_layer": -1}, beside=())
    assert asked.resolution == (1.0, 5.0)
    assert asked.compute.device == "cpu"
    told = asked.told("embedding")
    assert (told["batch_key"], told["n_neighbors"]) == ("", 15)
    assert Options.of("embedding", {"resolution": None}, beside=()).resolution is None
    assert "attention_layer" not in told
    assert "min_cells" in asked.told("coexpression")


# ---- genes


def test_all_genes_the_marked_ones_or_those_named(counts: ad.AnnData, caplog):
    names = counts.var_names
    found, how = nodes(counts)
    assert (len(found.ids), how) == (60, "all 60 genes")
    counts.var["highly_variable"] = pd.array([True] * 7 + [None] + [False] * 52, dtype="boolean")
    found, how = nodes(counts)
    assert how == 'the 7 of .var["highly_variable"]'
    assert set(names[found.columns]) == set(names[:7])
    found, how = nodes(counts, genes="all")
    assert (len(found.ids), how) == (60, "all 60 genes")
    with caplog.at_level(logging.WARNING):
        found, how = nodes(counts, genes=(name for name in [*names[20:25], names[20]]))
    assert how == "the 5 of genes="
    assert set(names[found.columns]) == set(names[20:25])
    assert caplog.text == ""


def test_regulators_are_among_the_genes_in_the_order_asked(counts: ad.AnnData):
    names = counts.var_names
    found, _ = nodes(counts, genes=names[:4], regulators=[names[9], names[2]])
    assert names[found.columns[found.regulators]].tolist() == [names[9], names[2]]
    assert len(found.ids) == 5
    assert (np.diff(found.ids) > 0).all()
    assert (found.column_ids >= 0).sum() == 5
    np.testing.assert_array_equal(found.places[found.columns], np.arange(5))
    single, _ = nodes(counts, regulators=names[9])  # a text is one name
    assert len(single.regulators) == 1


def test_genes_by_their_name_in_the_vocabulary(counts: ad.AnnData):
    symbols = counts.var_names.tolist()
    counts.var["gene_symbols"], counts.var_names = symbols, [f"ENSG{i:011d}" for i in range(60)]
    by_symbol, _ = nodes(counts, genes=symbols[:5], regulators=symbols[0])
    by_id, _ = nodes(counts, genes=counts.var_names[:5], regulators=counts.var_names[0])
    np.testing.assert_array_equal(by_symbol.columns, by_id.columns)
    np.testing.assert_array_equal(by_symbol.regulators, by_id.regulators)


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(counts: ad.AnnData, caplog):
    counts.var_names = [*counts.var_names[:-1], "ODD"]
    with caplog.at_level(logging.WARNING):
        found, _ = nodes(counts, regulators=["NONSENSE", "ODD", counts.var_names[0]])
    assert len(found.regulators) == 1
    assert "regulators= that are left out, not in the data: NONSENSE; not in the model's vocabulary: ODD" in caplog.text


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"regulators": ["NONSENSE", "ODD"]}, r"none of the 2 named can be used \(not in the data: NONSENSE"),
        ({"regulators": []}, "regulators=: none of the 0 named can be used .none was named"),
        ({"genes": ["ODD"]}, "genes=: none of the 1 named can be used .not in the model's vocabulary: ODD"),
    ],
)
def test_none_that_can_be_used(counts: ad.AnnData, asked, match):
    counts.var_names = [*counts.var_names[:-1], "ODD"]
    with pytest.raises(ValueError, match=match):
        nodes(counts, **asked)


def test_a_misspelt_gene_is_told_its_nearest(counts: ad.AnnData):
    name = max(counts.var_names, key=len)
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        nodes(counts, regulators=[f"{name}x"])


def test_fewer_than_three_genes(counts: ad.AnnData):
    with pytest.raises(ValueError, match=r"2 genes are left of the 2 of genes=; .* needs 3 or more .*select_genes"):
        nodes(counts, genes=counts.var_names[:2])
    counts.var["highly_variable"] = False
    with pytest.raises(ValueError, match=r"0 genes are left of the 0 of \.var\[.highly_variable.\]"):
        nodes(counts)


def test_one_gene_in_several_columns(counts: ad.AnnData, caplog):
    names = counts.var_names.tolist()
    counts.var["gene_symbols"] = [*names[:57], names[5], names[5], names[6]]
    counts.var_names = [*names[:5], "zz", *names[6:57], "bb", "aa", "A0"]
    with caplog.at_level(logging.WARNING):
        found, _ = nodes(counts)
    assert "2 genes stand in several columns: values are summed" in caplog.text
    assert f"{names[5]} (by 'aa')" in caplog.text
    assert f"{names[6]} (by '{names[6]}')" in caplog.text
    assert len(found.ids) == 57
    assert {58, 6} <= set(found.columns)
    assert not {5, 57, 59} & set(found.columns)
    assert (found.column_ids >= 0).all()  # all columns are read
    assert len(set(found.places[[5, 57, 58]])) == 1


@pytest.mark.parametrize(
    "marks", [np.arange(60) < 4, (np.arange(60) < 4).astype(int), [1.0] * 4 + [np.nan] * 56, [True] * 4 + [None] * 56]
)
def test_marks_of_several_types(counts: ad.AnnData, marks):
    counts.var["highly_variable"] = marks
    assert nodes(counts)[1] == 'the 4 of .var["highly_variable"]'
    counts.var["highly_variable"] = pd.Categorical(counts.var["highly_variable"])
    assert nodes(counts)[1] == 'the 4 of .var["highly_variable"]'


@pytest.mark.parametrize("marks", [["True", "False"] * 30, ["True", None] * 30, [0, 2] * 30])
def test_marks_that_are_none(counts: ad.AnnData, marks):
    """As text, "False" would count as true."""
    for held in (marks, pd.Categorical(marks)):
        counts.var["highly_variable"] = held
        with pytest.raises(ValueError, match=r'\.var\["highly_variable"\] holds (\'True\'|2).*make it boolean'):
            nodes(counts)


@pytest.mark.parametrize("argument", ["genes", "regulators"])
def test_a_mask_names_no_genes(counts: ad.AnnData, argument):
    mask = np.arange(60) < 5
    for given in (mask, mask.tolist(), pd.Series(mask, index=counts.var_names)):
        with pytest.raises(ValueError, match=rf"{argument}= is a mask .* give {argument}=adata\.var_names\[mask\]"):
            nodes(counts, **{argument: given})


# ---- groups


def test_groups_in_the_order_of_their_categories(caplog):
    adata = grouped({"b": 3, "a": 4, None: 2, "few": 1})
    with caplog.at_level(logging.WARNING):
        found = groups_of(adata, "g", None, min_cells=2)
    assert isinstance(found, Groups)
    assert (found.names, found.counts.tolist(), found.control) == (("a", "b"), [4, 3], "")
    assert found.codes.tolist() == [1] * 3 + [0] * 4 + [-1] * 3
    assert "2 of 10 cells have no group in 'g' and are left out" in caplog.text
    assert "groups of fewer than min_cells=2 cells are left out: 'few' (1)" in caplog.text
    adata.obs["g"] = pd.Categorical(adata.obs["g"], categories=["none", "few", "b", "a"])
    assert groups_of(adata, "g", "b", min_cells=1).names == ("few", "b", "a")


def test_groups_may_be_numbers():
    found = groups_of(grouped({3: 4, 10: 5}), "g", 10, min_cells=1)
    assert (found.names, found.control) == (("10", "3"), "10")


@pytest.mark.parametrize(
    ("control", "least", "match"),
    [
        ("crtl", 1, r"control='crtl' is no group of \.obs\['g'\]; did you mean 'ctrl'\? \(groups: ctrl, few, stim\)"),
        ("few", 3, "the control 'few' has 2 cells; min_cells=3 is the least"),
        ("ctrl", 8, r"beside the control 'ctrl' no group of .* enough cells: 'few' \(2\), 'stim' \(7\)"),
        (None, 20, r"no group of \.obs\['g'\] has enough cells: .*join groups, or give a smaller min_cells"),
    ],
)
def test_controls_and_groups_that_cannot_be(control, least, match):
    with pytest.raises(ValueError, match=match):
        groups_of(grouped({"ctrl": 9, "stim": 7, "few": 2}), "g", control, min_cells=least)


def test_groupby_is_one_column():
    with pytest.raises(ValueError, match=r"groupby=\['g'\]; give the name of one column of \.obs"):
        groups_of(grouped({"a": 4}), ["g"], None, min_cells=1)


@pytest.mark.parametrize("categorical", [False, True])
def test_groups_that_read_alike_are_one(categorical: bool):
    adata = grouped({1: 3, "1": 4, "a": 2})
    if categorical:
        adata.obs["g"] = pd.Categorical(adata.obs["g"], categories=[1, "1", "a"])
    found = groups_of(adata, "g", None, min_cells=1)
    assert (found.names, found.counts.tolist()) == (("1", "a"), [7, 2])
    for control in (1, "1", 1.0):
        assert groups_of(adata, "g", control, min_cells=1).control == "1"


def test_without_groups():
    adata = grouped({"a": 4})
    found = groups_of(adata, None, None, min_cells=4)
    assert (found.names, found.codes.tolist()) == (("all",), [0] * 4)
    with pytest.raises(ValueError, match=r"no group of the data has enough cells: 'all' \(4\)"):
        groups_of(adata, None, None, min_cells=5)
    with pytest.raises(ValueError, match="control='a' names a group, and groupby= no column"):
        groups_of(adata, None, "a", min_cells=1)
    with pytest.raises(KeyError, match=r"groupby='h' is not in \.obs"):
        groups_of(adata, "h", None, min_cells=1)
    adata.obs["h"] = np.linspace(0, 1, 4)
    with pytest.raises(ValueError, match="groupby='h' holds numbers with fractions"):
        groups_of(adata, "h", None, min_cells=1)


@pytest.mark.parametrize(
    ("method", "dtype", "told"),
    [
        ("knockout", "auto", "float32"),
        ("knockout", "bfloat16", "bfloat16"),
        ("attention", "auto", "bfloat16"),
    ],
)
def test_the_type_that_is_told_is_the_one_that_computes(method: str, dtype: str, told: str):
    options = Options.of(method, {"dtype": dtype}, beside=())
    assert options.dtype_told(method, torch.device("cuda")) == told

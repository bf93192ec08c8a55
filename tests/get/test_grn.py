from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scgpt_tl import get

COLUMNS = ["source", "target", "weight", "rank", "group", "setting"]


def by_hand(weights, genes, regulators, *, by_size=False):
    """Edges `(source, target, weight, rank)` of scores `(targets, regulators)`, one by one."""
    rows = []
    for column, source in enumerate(regulators):
        edges = [(name, w) for name, w in zip(genes, weights[:, column], strict=True) if name != source and w == w]
        edges.sort(key=lambda edge: (-(abs(edge[1]) if by_size else edge[1]), edge[0]))
        rows += [(source, name, w, rank) for rank, (name, w) in enumerate(edges, start=1)]
    return rows


def rows(table):
    return list(table[["source", "target", "weight", "rank"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("setting", ["control", "perturbed", "difference"])
def test_regulators_and_settings_equal_a_list_by_hand(regulating_genes, setting):
    adata = regulating_genes(8, regulators=2)
    held, genes = adata.varm["scgpt_grn"][:-1], adata.var_names[:-1]
    weights = {"control": held[:, 0], "perturbed": held[:, 1], "difference": held[:, 1] - held[:, 0]}[setting]
    table = get.grn_df(adata, setting=setting)
    assert table.columns.tolist() == COLUMNS
    assert rows(table) == by_hand(weights, genes, ["G0", "G1"], by_size=setting == "difference")
    assert set(table["setting"]) == {setting}
    assert set(table["group"]) == {"ctrl" if setting == "control" else "stim"}
    if setting == "difference":
        assert (table["weight"] < 0).any()
        assert (table.groupby("source")["weight"].apply(lambda w: (w.abs().diff().dropna() <= 0).all())).all()


def test_every_group_as_it_is(regulating_genes):
    table = get.grn_df(regulating_genes(8, groups=("ctrl", "a", "b")))
    assert table[["group", "setting"]].drop_duplicates().to_numpy().tolist() == [
        ["ctrl", "control"], ["a", "perturbed"], ["b", "perturbed"],
    ]  # fmt: skip
    assert len(table) == 3 * 2 * 6
    one = get.grn_df(regulating_genes(8, groups=("ctrl", "a", "b")), group="b", setting="difference")
    assert set(one["group"]) == {"b"}
    assert set(get.grn_df(regulating_genes(8, groups=("all",), control=""))["setting"]) == {""}


@pytest.mark.parametrize("groups", [("all",), ("a/b", "c")])
def test_without_regulators_every_gene_is_one(regulating_genes, groups):
    adata = regulating_genes(8, regulators=None, groups=groups, control="")
    table = get.grn_df(adata, n_top=3)
    genes = adata.var_names[:-1]
    for number, group in enumerate(groups):
        held = adata.varp["scgpt_grn" if len(groups) == 1 else f"scgpt_grn_{number}"].toarray()[:-1, :-1]
        expected = [row for row in by_hand(held, genes, genes) if row[3] <= 3]
        assert rows(table[table["group"] == group]) == expected
    assert "G7" not in set(table["source"]) | set(table["target"])


def test_ties_fall_by_name_whatever_the_order_of_genes(regulating_genes):
    adata = regulating_genes(30, regulators=3)
    adata.varm["scgpt_grn"] = np.round(adata.varm["scgpt_grn"] * 2) / 2
    expected = get.grn_df(adata, n_top=5)
    order = np.random.default_rng(1).permutation(30)
    pd.testing.assert_frame_equal(get.grn_df(adata[:, order].copy(), n_top=5), expected)
    assert (expected["rank"] <= 5).all()


def test_chosen_regulators_come_in_the_order_asked(regulating_genes):
    adata = regulating_genes(8, regulators=3)
    table = get.grn_df(adata, regulators=["G2", "G0", "G2"], n_top=1)
    assert table["source"].tolist() == ["G2", "G0"] * 2
    assert set(get.grn_df(adata, regulators="G1")["source"]) == {"G1"}


def test_genes_that_are_gone_are_left_out(regulating_genes):
    adata = regulating_genes(8)
    less = get.grn_df(adata[:, 2:].copy())
    full = get.grn_df(adata)
    kept = full[~full["target"].isin(["G0", "G1"])]
    assert rows(less.drop(columns="rank").assign(rank=0)) == rows(kept.drop(columns="rank").assign(rank=0))


def test_an_embedding_network_has_each_pair_once(similar_genes):
    adata = similar_genes()
    table = get.grn_df(adata)
    dense = adata.varp["scgpt_grn"].toarray()
    assert len(table) == (dense > 0).sum() / 2
    assert (table["source"] < table["target"]).all()
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert table["weight"].is_monotonic_decreasing
    place = {name: i for i, name in enumerate(adata.var_names)}
    assert all(dense[place[s], place[t]] == w for s, t, w, _ in rows(table))
    assert (set(table["group"]), set(table["setting"])) == ({"all"}, {""})
    pd.testing.assert_frame_equal(get.grn_df(adata, n_top=4), table.iloc[:4])
    order = np.random.default_rng(2).permutation(adata.n_vars)
    pd.testing.assert_frame_equal(get.grn_df(adata[:, order].copy()), table)


def test_a_gene_is_no_neighbour_of_itself(similar_genes):
    adata = similar_genes()
    expected = get.grn_df(adata)
    adata.varp["scgpt_grn"] = adata.varp["scgpt_grn"] + sparse.identity(adata.n_vars, np.float32, format="csr")
    pd.testing.assert_frame_equal(get.grn_df(adata), expected)


def test_neighbours_of_asked_genes(similar_genes):
    table = get.grn_df(similar_genes(), regulators=["G6", "G0"], n_top=3)
    assert table["source"].tolist() == ["G6"] * 3 + ["G0"] * 3
    assert table["rank"].tolist() == [1, 2, 3] * 2
    every = get.grn_df(similar_genes(), regulators=["G6", "G0"])
    assert {("G0", "G6"), ("G6", "G0")} <= set(zip(every["source"], every["target"], strict=True))


def test_it_survives_h5ad(similar_genes, regulating_genes, tmp_path):
    made = [similar_genes(), regulating_genes(), regulating_genes(regulators=None), regulating_genes(groups=("a",))]
    for adata in made:
        adata.write_h5ad(tmp_path / "a.h5ad")
        pd.testing.assert_frame_equal(get.grn_df(ad.read_h5ad(tmp_path / "a.h5ad")), get.grn_df(adata))


def test_a_net_as_decoupler_reads_it(regulating_genes):
    net = get.grn_df(regulating_genes(), group="stim")
    assert not net.duplicated(["source", "target"]).any()
    assert net["source"].map(type).eq(str).all()
    assert net["weight"].dtype.kind == "f"


def test_missing_results_name_their_makers(similar_genes, regulating_genes):
    adata = regulating_genes()
    with pytest.raises(KeyError, match=r"no result 'mine'; scgpt_tl\.tl\.scgpt_grn.*\['scgpt_grn'\]"):
        get.grn_df(adata, key="mine")
    adata.uns["scgpt"] = {"scgpt_tl": "tl.scgpt_embed"}
    with pytest.raises(KeyError, match=r"'scgpt'\] is no gene network; scgpt_tl\.tl\.scgpt_grn.*\['scgpt_grn'\]"):
        get.grn_df(adata, key="scgpt")
    del adata.varm["scgpt_grn"]
    with pytest.raises(KeyError, match=r"adata\.varp has no 'scgpt_grn_0'; scgpt_tl\.tl\.scgpt_grn"):
        get.grn_df(adata)
    adata = similar_genes()
    del adata.varp["scgpt_grn"]
    with pytest.raises(KeyError, match=r"adata\.varp has no 'scgpt_grn'; scgpt_tl\.tl\.scgpt_grn"):
        get.grn_df(adata)


def test_what_is_not_there_is_refused(similar_genes, regulating_genes, monkeypatch):
    adata = regulating_genes()
    with pytest.raises(KeyError, match=r"no regulator STAT1, G11 \(did you mean G1\?\); it was made with 2: G0, G1"):
        get.grn_df(adata, regulators=["G0", "STAT1", "G11"])
    with pytest.raises(KeyError, match="no group 'stimm'; did you mean 'stim'"):
        get.grn_df(adata, group="stimm")
    with pytest.raises(ValueError, match="setting is 'diference'; did you mean 'difference'"):
        get.grn_df(adata, setting="diference")
    with pytest.raises(ValueError, match=r"group 'ctrl' has no 'difference' setting.*stim"):
        get.grn_df(adata, group="ctrl", setting="difference")
    with pytest.raises(ValueError, match=r"group 'stim' has no 'control' setting.*leave group= out"):
        get.grn_df(adata, group="stim", setting="control")
    with pytest.raises(ValueError, match=r"without a control.*control=\.\.\."):
        get.grn_df(regulating_genes(control=""), setting="difference")
    for n_top in (0, 1.5, "3"):
        with pytest.raises(ValueError, match=f"n_top is {n_top!r}; a whole number"):
            get.grn_df(adata, n_top=n_top)
    with pytest.raises(ValueError, match=r"one network of gene embeddings, of 'all'.*setting 'control'.*attention"):
        get.grn_df(similar_genes(), setting="control")
    with pytest.raises(ValueError, match=r"without a group 'B'.*context=GROUP"):
        get.grn_df(similar_genes(), group="B")
    monkeypatch.setattr("scgpt_tl.get._grn._MOST_ROWS", 10)
    with pytest.raises(ValueError, match=r"table of 28 rows, and 10 are the most: give regulators=, n_top= or group="):
        get.grn_df(adata)


def test_a_network_of_one_group_bears_its_name(similar_genes):
    adata = similar_genes()
    adata.uns["scgpt_grn"]["params"]["context"] = "T"
    assert set(get.grn_df(adata, group="T")["group"]) == {"T"}


def test_a_dense_network_reads_alike(regulating_genes):
    adata = regulating_genes(regulators=None)
    expected = get.grn_df(adata)
    for name in list(adata.varp):
        adata.varp[name] = sparse.csr_matrix(adata.varp[name]).toarray()
    pd.testing.assert_frame_equal(get.grn_df(adata), expected)


def test_the_size_of_what_was_asked_for_is_counted(regulating_genes, monkeypatch):
    adata = regulating_genes()  # 2 groups, 2 regulators, 7 targets
    monkeypatch.setattr("scgpt_tl.get._grn._MOST_ROWS", 14)
    assert len(get.grn_df(adata, group="stim")) == 12
    assert len(get.grn_df(adata, setting="control")) == 12
    assert len(get.grn_df(adata, n_top=3)) == 12
    monkeypatch.setattr("scgpt_tl.get._grn._MOST_ROWS", 13)
    with pytest.raises(ValueError, match=r"table of 14 rows, .* give fewer regulators= or a lower n_top=$"):
        get.grn_df(adata, group="stim", n_top=100)


@pytest.mark.parametrize("regulators", [2, None])
@pytest.mark.parametrize("twin", ["G2", "G0"])
def test_a_second_column_of_a_name_is_no_gene(regulating_genes, regulators, twin):
    """Scores lie at one column of a gene, before the other or behind it."""
    adata = regulating_genes(8, regulators=regulators)
    expected = get.grn_df(adata)
    names = [*adata.var_names[:-1], twin]  # of the one that was not chosen
    for order in (np.arange(8), np.arange(8)[::-1]):
        mixed = adata[:, order].copy()
        mixed.var_names = np.array(names)[order]
        pd.testing.assert_frame_equal(get.grn_df(mixed), expected)
        one = get.grn_df(mixed, regulators="G0")
        pd.testing.assert_frame_equal(one, expected[expected["source"] == "G0"].reset_index(drop=True))


def test_rows_do_not_follow_the_order_of_genes(regulating_genes):
    adata = regulating_genes(12, regulators=None, control="", names="G{:02}")
    expected = get.grn_df(adata, n_top=4)
    order = np.random.default_rng(3).permutation(12)
    pd.testing.assert_frame_equal(get.grn_df(adata[:, order].copy(), n_top=4), expected)
    assert expected[expected["group"] == "stim"]["source"].is_monotonic_increasing


@pytest.mark.parametrize("regulators", [2, None])
def test_variables_that_were_renamed(regulating_genes, regulators, caplog):
    adata = regulating_genes(8, regulators=regulators)
    adata.var_names = [f"ENSG{i}" for i in range(8)]
    with pytest.raises(KeyError, match=r"7 of the 7 genes of 'scgpt_grn' are not in .*\(G0, G1.*scgpt_grn again, or"):
        get.grn_df(adata)
    adata.var_names = ["G0", *adata.var_names[1:]]
    with caplog.at_level(logging.WARNING):
        get.grn_df(adata)
    assert "6 of the 7 genes of 'scgpt_grn' are not in adata.var_names (G1, " in caplog.text


def test_similar_genes_that_were_renamed(similar_genes):
    adata = similar_genes()
    expected = get.grn_df(adata)
    adata.var_names = [f"X{i}" for i in range(adata.n_vars)]
    assert get.grn_df(adata)["weight"].tolist() == expected["weight"].tolist()  # pairs lie by column
    with pytest.raises(KeyError, match="19 of the 19 genes"):
        get.grn_df(adata, regulators="G0")


def test_groups_that_are_numbers(regulating_genes, similar_genes):
    adata = regulating_genes(groups=("1", "2", "3"), control="1")
    for asked in (2, np.int64(2), "2"):
        pd.testing.assert_frame_equal(get.grn_df(adata, group=asked), get.grn_df(adata, group="2"))
        assert set(get.grn_df(adata, group=asked, setting="difference")["group"]) == {"2"}
    with pytest.raises(ValueError, match="group '1' has no 'perturbed' setting"):
        get.grn_df(adata, group=1, setting="perturbed")
    adata = similar_genes()
    adata.uns["scgpt_grn"]["params"]["context"] = "2"
    assert set(get.grn_df(adata, group=2)["group"]) == {"2"}


@pytest.mark.parametrize("regulators", [2, None])
def test_genes_by_the_names_of_the_model(regulating_genes, regulators):
    adata = regulating_genes(8, regulators=regulators, names="ENSG{}")
    run = adata.uns["scgpt_grn"]
    run["gene_symbols"] = np.array([f"S{i}" for i in range(7)])
    run["regulator_symbols"] = run["gene_symbols"][: regulators or 0]
    expected = get.grn_df(adata, regulators=["ENSG1", "ENSG0"])
    pd.testing.assert_frame_equal(get.grn_df(adata, regulators=["S1", "ENSG0", "ENSG1", "S0"]), expected)
    with pytest.raises(KeyError, match=r"no regulator S11 \(did you mean S1\?\); .*: ENSG0 \(S0\), ENSG1 \(S1\)"):
        get.grn_df(adata, regulators="S11")


def test_similar_genes_by_the_names_of_the_model(similar_genes):
    adata = similar_genes(names="ENSG{}")
    adata.uns["scgpt_grn"]["gene_symbols"] = np.array([f"S{i}" for i in range(19)])
    expected = get.grn_df(adata, regulators="ENSG3")
    assert len(expected)
    pd.testing.assert_frame_equal(get.grn_df(adata, regulators="S3"), expected)


def test_duplicate_names_through_the_function(toy_cells, tiny_genes, tiny):
    from scgpt_tl import tl

    data = toy_cells(40, 12)
    names = tiny_genes[:12]
    names[1] = names[0]
    data.var_names = names
    tl.scgpt_grn(data, method="coexpression", model=tiny, genes=names[:10])
    table = get.grn_df(data)
    assert len(table) == 9 * 8
    assert not table.duplicated(["source", "target"]).any()
    assert len(get.grn_df(data, regulators=names[0])) == 8

"""Names in a data set -> genes of a vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgpt_tl.genes.match import HOW, guess_species, match_genes
from scgpt_tl.genes.table import GeneTable, hgnc_table
from scgpt_tl.genes.vocab import GeneVocab


def make_table(genes: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]]) -> GeneTable:
    """Table from symbol -> (previous, aliases, Ensembl id)."""
    previous: dict[str, tuple[str, ...]] = {}
    alias: dict[str, tuple[str, ...]] = {}
    for symbol, (before, also, _) in genes.items():
        for index, names in ((previous, before), (alias, also)):
            for name in names:
                index[name] = (*index.get(name, ()), symbol)
    names = {symbol: (before, also) for symbol, (before, also, _) in genes.items()}
    ensembl = {stable: (symbol,) for symbol, (_, _, stable) in genes.items()}
    return GeneTable(names, previous, alias, ensembl, source="toy")


TABLE = make_table({
    "MARCHF1": (("MARCH1",), ("FLJ20668",), "ENSG00000145416"),
    "QARS1": (("QARS",), (), "ENSG00000172053"),
    "EPRS1": (("EPRS", "QARS"), ("PARS",), "ENSG00000136628"),
    "CD3E": ((), ("T3E",), "ENSG00000198851"),
    "LYZ": ((), ("SHARED",), "ENSG00000090382"),
    "GNLY": ((), ("SHARED", "CD3E"), "ENSG00000115523"),
    "NEW1": (("OLD1",), ("NICK1", "LYZ"), "ENSG00000000101"),
    "PAIR": (("PAIR1", "PAIR2"), (), "ENSG00000000102"),
})  # fmt: skip
VOCAB = GeneVocab(["MARCHF1", "QARS1", "EPRS1", "CD3E", "LYZ", "GNLY", "OLD1", "PAIR1", "PAIR2", "AL627309.1"])


def one(name: object, table: GeneTable | None = TABLE) -> tuple[str, str]:
    match = match_genes({"index": [name]}, VOCAB, table=table)
    assert match.ids[0] == (VOCAB[match.names[0]] if match.names[0] else -1)
    return str(match.names[0]), str(match.how[0])


@pytest.mark.parametrize(
    ("name", "gene", "how"),
    [
        ("CD3E", "CD3E", "symbol"),  # although it is an alias of GNLY
        ("AL627309.1", "AL627309.1", "symbol"),  # a name, no version
        ("ENSG00000198851", "CD3E", "ensembl"),
        ("ENSG00000198851.17", "CD3E", "ensembl"),
        ("ENSG00000198851.17_PAR_Y", "CD3E", "ensembl"),
        ("CD3E_ENSG00000198851", "CD3E", "ensembl"),
        ("ENSG00000000101", "OLD1", "ensembl"),  # the vocabulary holds the gene under its older name
        ("ENSG00000099999", "", "unmatched"),
        ("MARCH1", "MARCHF1", "previous"),
        ("NEW1", "OLD1", "previous"),
        ("NICK1", "OLD1", "alias"),
        ("FLJ20668", "MARCHF1", "alias"),
        ("QARS", "", "ambiguous"),
        ("SHARED", "", "ambiguous"),
        ("PAIR", "", "ambiguous"),
        ("ENSG00000000102", "", "ambiguous"),
        ("cd3e", "", "unmatched"),
        ("Gm1992", "", "unmatched"),
        ("<pad>", "", "unmatched"),
        ("", "", "unmatched"),
        (None, "", "unmatched"),
        (float("nan"), "", "unmatched"),
        (17, "", "unmatched"),
    ],
)
def test_one_name(name: object, gene: str, how: str) -> None:
    assert one(name) == (gene, how)


@pytest.mark.parametrize("name", ["ENSG00000198851", "MARCH1", "T3E", "QARS", "<cls>", "cd3e"])
def test_without_a_table_names_are_compared_exactly(name: str) -> None:
    assert one(name, table=None) == ("", "unmatched")
    assert one("CD3E", table=None) == ("CD3E", "symbol")


def test_an_approved_symbol_never_stands_for_another_genes_alias() -> None:
    vocab = GeneVocab(["GNLY"])
    match = match_genes({"index": ["CD3E", "T3E"]}, vocab, table=TABLE)
    assert match.how.tolist() == ["unmatched", "unmatched"]
    # and a name in the vocabulary that is itself approved keeps its own meaning
    assert match_genes({"index": ["NEW1"]}, GeneVocab(["LYZ"]), table=TABLE).n_matched == 0


def test_a_vocabulary_of_ensembl_ids() -> None:
    match = match_genes(
        {"index": ["ENSG00000198851.2", "ENSG00000198851"]}, GeneVocab(["ENSG00000198851"]), table=TABLE
    )
    assert match.how.tolist() == ["ensembl", "symbol"]
    assert match.duplicates == ("ENSG00000198851",)


def test_duplicates_and_ambiguous_names_are_reported() -> None:
    match = match_genes({"index": ["CD3E", "LYZ", "T3E", "ENSG00000198851", "QARS", "what"]}, VOCAB, table=TABLE)
    assert match.duplicates == ("CD3E",)
    assert match.ambiguous == ("QARS",)
    assert match.unmatched == ("what",)
    assert (match.n_matched, match.share) == (4, 4 / 6)
    np.testing.assert_array_equal(match.ids, [VOCAB["CD3E"], VOCAB["LYZ"], VOCAB["CD3E"], VOCAB["CD3E"], -1, -1])
    assert match.ids.dtype == np.int64


def test_the_best_column_is_read() -> None:
    columns = {
        "index": ["ENSG00000198851", "ENSG00000090382", "x"],
        "feature_name": pd.Categorical(["CD3E", "LYZ", None]),
        "n_cells": [1, 2, 3],
    }
    match = match_genes(columns, VOCAB)
    assert (match.column, match.n_matched, match.also) == ("feature_name", 2, ())
    assert match_genes(columns, VOCAB, table=TABLE).column == "index"  # now as good, and first
    assert match_genes({"index": ["CD3E"], "unknown_column": ["LYZ"]}, VOCAB).column == "index"


def test_other_columns_fill_what_the_best_leaves_open() -> None:
    columns = {"index": ["CD3E", "QARS", "?"], "gene_ids": ["ENSG00000090382", "ENSG00000172053", "ENSG00000090382.1"]}
    match = match_genes(columns, VOCAB, table=TABLE)
    assert match.column == "gene_ids"
    assert match.names.tolist() == ["LYZ", "QARS1", "LYZ"]
    columns["index"] = ["CD3E", "QARS", "GNLY"]
    columns["gene_ids"][0] = "?"
    match = match_genes(columns, VOCAB, table=TABLE)
    assert (match.column, match.also) == ("index", ("gene_ids",))
    assert match.names.tolist() == ["CD3E", "QARS1", "GNLY"]
    assert match.how.tolist() == ["symbol", "ensembl", "symbol"]
    assert match.ambiguous == ()


def test_empty_and_uneven() -> None:
    match = match_genes({"index": []}, VOCAB, table=TABLE)
    assert (match.n_matched, match.share, match.species, match.duplicates) == (0, 0.0, "unknown", ())
    with pytest.raises(ValueError, match="'gene_ids' has 1 names, the index has 2"):
        match_genes({"index": ["A", "B"], "gene_ids": ["A"]}, VOCAB)
    with pytest.raises(KeyError, match="index"):
        match_genes({"gene_ids": ["A"]}, VOCAB)


@pytest.mark.parametrize(
    ("names", "species"),
    [
        (["CD3E", "C1orf43", "HLA-A", "RP11-34P13.7", "MT-CO1", "AL627309.1"], "human"),
        (["Cd3e", "mt-Co1", "Gm1992", "4930432K21Rik", "H2-K1", "Rp1"], "mouse"),
        (["ENSG00000198851.2"], "human"),
        (["ENSMUSG00000032093"], "mouse"),
        (["cd3e", "lyz", "1", ""], "unknown"),
        (["CD3E", "Cd3e"], "unknown"),
        ([], "unknown"),
    ],
)
def test_species(names: list[str], species: str) -> None:
    assert guess_species(names) == species


def test_mouse_names_are_never_taken_for_human_aliases() -> None:
    table = make_table({"CD3E": ((), ("Cd3e",), "ENSG00000198851")})
    match = match_genes({"index": ["Cd3e", "Lyz2", "Gnly"]}, GeneVocab(["CD3E"]), table=table)
    assert (match.species, match.n_matched) == ("mouse", 0)


NAMES = st.sampled_from(
    [*VOCAB.genes, *TABLE.names, *TABLE.previous, *TABLE.alias, *TABLE.ensembl, "Cd3e", "nope", "", "<pad>", None]
)


@given(st.lists(NAMES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_changes_nothing_and_exact_names_always_win(names: list[str | None], random: object) -> None:
    match = match_genes({"index": names}, VOCAB, table=TABLE)
    exact = match_genes({"index": names}, VOCAB)
    plain = {gene: i for i, gene in enumerate(VOCAB.genes)}
    assert exact.ids.tolist() == [plain.get(name, -1) for name in names]  # type: ignore[arg-type]
    assert (match.ids[exact.ids >= 0] == exact.ids[exact.ids >= 0]).all()
    assert ((match.ids >= 0) == (match.names != "")).all()
    assert ((match.ids < 0) == np.isin(match.how, ["ambiguous", "unmatched"])).all()
    assert set(match.how) <= set(HOW)
    assert match.summary()["how_counts"].sum() == len(names)
    order = list(range(len(names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = match_genes({"index": [names[i] for i in order]}, VOCAB, table=TABLE)
    np.testing.assert_array_equal(shuffled.ids, match.ids[order])
    np.testing.assert_array_equal(shuffled.how, match.how[order])
    assert shuffled.duplicates == match.duplicates


def test_summary_survives_h5ad(tmp_path: Path) -> None:
    for names in (["CD3E", "T3E", "QARS", "a/b"], ["CD3E"]):
        summary = match_genes({"index": names}, VOCAB, table=TABLE).summary()
        ad.AnnData(np.ones((1, 1)), uns={"genes": summary}).write_h5ad(tmp_path / "x.h5ad")
        back = ad.read_h5ad(tmp_path / "x.h5ad").uns["genes"]
        assert set(back) == set(summary)
        for key, value in summary.items():
            np.testing.assert_array_equal(back[key], value)


def test_real_names(data: Callable[[str], Path]) -> None:
    table = hgnc_table(path=data("gene_resources/hgnc_mapping.tsv.gz"))
    assert table is not None
    assert len(table.names) == 42_017
    vocab = GeneVocab(list(table.names))
    adata = ad.read_h5ad(data("pbmc3k/pbmc3k.h5ad"), backed="r")
    exact = match_genes({"index": adata.var_names}, vocab)
    match = match_genes({"index": adata.var_names}, vocab, table=table)
    assert (exact.n_matched, match.n_matched, match.species) == (11_612, 12_400, "human")
    assert match.ambiguous == ("QARS", "C11orf48", "B3GNT1", "STRA13", "MUM1")
    assert match.names[list(adata.var_names).index("MARCH1")] == "MARCHF1"
    mouse = ad.read_h5ad(data("mouse_brain10k_1kgenes/mouse_brain10k_1kgenes.h5ad"), backed="r")
    columns = {"index": mouse.var_names, "gene_ids": mouse.var["gene_ids"]}
    wrong = match_genes(columns, vocab, table=table)
    assert (wrong.species, wrong.n_matched) == ("mouse", 0)


def test_real_ensembl_ids(data: Callable[[str], Path]) -> None:
    table = hgnc_table(path=data("gene_resources/hgnc_mapping.tsv.gz"))
    assert table is not None
    adata = ad.read_h5ad(data("kang_ctrl12k/kang_ctrl12k.h5ad"), backed="r")
    vocab = GeneVocab(list(table.names))
    ids = [f"{name}.3" for name in adata.var["ensembl"]]
    match = match_genes({"index": ids}, vocab, table=table)
    assert match.share > 0.9
    by_symbol = match_genes({"index": adata.var_names}, vocab, table=table)
    both = (match.ids >= 0) & (by_symbol.ids >= 0)
    assert (match.ids[both] == by_symbol.ids[both]).mean() > 0.99

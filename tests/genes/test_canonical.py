"""One name for each gene of a corpus, with and without a table of names."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tl.genes.canonical import canonical_names, ensembl_id, familiar_names, symbols_of_ids
from scgpt_tl.genes.table import GeneTable

TABLE = GeneTable(
    names={
        "MARCHF1": (("MARCH1",), ("FLJ20668",)),
        "CD3E": ((), ("T3E",)),
        "LYZ": ((), ("SHARED",)),
        "GNLY": ((), ("SHARED",)),
        "ACTB": ((), ()),
    },
    previous={"MARCH1": ("MARCHF1",)},
    alias={"FLJ20668": ("MARCHF1",), "T3E": ("CD3E",), "SHARED": ("LYZ", "GNLY")},
    ensembl={"ENSG00000145416": ("MARCHF1",), "ENSG00000198851": ("CD3E",), "ENSG00000090382": ("LYZ",)},
    source="toy",
)


def names(columns: dict[str, list], table: GeneTable | None = TABLE) -> list[str]:
    return canonical_names(columns, table=table)[0]


def test_two_ways_to_write_the_same_genes_give_the_same_names():
    """Ensembl ids with symbols beside them; old symbols; approved ones."""
    ids = {"index": ["ENSG00000145416.3", "ENSG00000198851", "ENSG00000090382"], "gene_symbols": ["MARCH1", "x", "LYZ"]}
    for columns in (ids, {"index": ["MARCH1", "CD3E", "LYZ"]}, {"index": ["FLJ20668", "T3E", "LYZ"]}):
        assert names(columns) == ["MARCHF1", "CD3E", "LYZ"]


def test_what_the_table_does_not_know_keeps_its_own_name():
    found = names({"index": ["CD3E", "LYZ", "AL627309.1", "SHARED", "ENSG00000999999.2"]})
    assert found == ["CD3E", "LYZ", "AL627309.1", "SHARED", "ENSG00000999999"]  # SHARED could be two genes


def test_without_a_table_symbols_are_taken_as_they_are_written():
    assert names({"index": ["MARCH1", "CD3E"]}, None) == ["MARCH1", "CD3E"]
    assert canonical_names({"index": ["MARCH1"]})[1] is False


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"index": ["ENSG00000198851.4"], "gene_symbols": ["CD3E"]}, "CD3E"),
        ({"index": ["CD3E-1"], "feature_name": ["CD3E"], "gene_ids": ["ENSG00000198851"]}, "CD3E"),
        ({"index": ["17"], "feature_id": ["ENSG00000198851"], "feature_name": ["CD3E"]}, "CD3E"),
        ({"index": ["17"], "gene_ids": ["ENSG00000198851"]}, "ENSG00000198851"),  # a number is no name
        ({"index": ["CD3E"], "gene_symbols": [None]}, "CD3E"),
        ({"index": ["CD3E"], "gene_symbols": [np.nan]}, "CD3E"),
        ({"index": ["CD3E"], "gene_symbols": [""]}, "CD3E"),
        ({"index": ["TBCE_ENSG00000284770"]}, "ENSG00000284770"),
        ({"index": ["17"]}, "17"),
        ({"index": [""]}, ""),
        ({"index": ["<pad>"]}, ""),  # no gene may be called as a special token is
        ({"index": ["ENSMUSG00000000001"], "gene_symbols": ["Gnai3"]}, "Gnai3"),
    ],
)
def test_a_symbol_rather_than_an_id(columns: dict[str, list], expected: str):
    assert names(columns, None) == [expected]


def test_a_table_that_knows_few_of_the_names_is_not_believed():
    """Made-up names, some of which are aliases of human genes."""
    made_up = {"index": [f"G{i}" for i in range(7)] + ["T3E", "MARCH1", "FLJ20668"]}
    assert canonical_names(made_up, table=TABLE) == (made_up["index"], False)
    known = {"index": ["CD3E", "ENSG00000090382", *(f"G{i}" for i in range(7)), "MARCH1"]}
    assert canonical_names(known, table=TABLE) == (["CD3E", "LYZ", *known["index"][2:-1], "MARCHF1"], True)


def test_mouse_symbols_stay_mouse_symbols():
    assert names({"index": ["Cd3e", "Lyz2", "Actb", "ACTB"]}) == ["Cd3e", "Lyz2", "Actb", "ACTB"]


def test_studies_teach_each_other_the_symbols_of_ids():
    both = {"index": ["CD3E", "LYZ"], "gene_ids": ["ENSG00000198851.1", "ENSG00000090382"]}
    other = {"index": ["LYZ2", "LYZ"], "gene_ids": ["ENSG00000090382", "ENSG00000090382"]}
    ids = {"index": ["ENSG00000198851", "ENSG00000000009"]}
    studies = [(columns, names(columns, None)) for columns in (other, both, ids)]
    expected = {"ENSG00000198851": "CD3E", "ENSG00000090382": "LYZ"}  # two say LYZ, one LYZ2
    assert symbols_of_ids(studies) == symbols_of_ids(studies[::-1]) == expected
    tied = [({"index": ["ENSG00000000001"], "gene_name": [name]}, [name]) for name in ("B", "A")]
    assert symbols_of_ids(tied) == symbols_of_ids(tied[::-1]) == {"ENSG00000000001": "A"}


def test_ids():
    assert ensembl_id("ENSG00000198851.17_PAR_Y") == "ENSG00000198851"
    assert ensembl_id("ENSMUSG00000000001") == "ENSMUSG00000000001"
    for other in ("CD3E", "", None, 3.5, "ENSG1"):
        assert ensembl_id(other) == ""


def test_a_name_that_all_studies_share_stays_as_it_is():
    """NEW was OLD; A and B are two names of one gene that studies disagree on."""
    first = (["NEW", "B", "C"], ["OLD", "A", "C"])
    second = (["NEW", "B"], ["OLD", "B"])
    assert familiar_names([first, second]) == {"NEW": "OLD"}


def test_a_name_that_one_study_could_not_resolve_is_kept_by_all():
    """Else one gene would be two: OLD where another column claims NEW, NEW in the other study."""
    assert familiar_names([(["OLD", "C"], ["OLD", "C"]), (["NEW", "C"], ["OLD", "C"])]) == {"NEW": "OLD"}


@pytest.mark.parametrize(
    ("canonical", "written"),
    [
        (["X", "Y"], ["Z", "Z"]),  # one spelling for two genes
        (["X", "Z"], ["Z", "other"]),  # the spelling is another gene's name
        (["X", "Z"], ["Z", "Z"]),
        (["X"], ["ENSG00000000001"]),
        (["X"], [""]),
        (["", "X"], ["a", "X"]),
    ],
)
def test_spellings_that_would_mislead_are_left(canonical: list[str], written: list[str]):
    assert not {"X", "Y"} & set(familiar_names([(canonical, written)]))

"""Over-representation against scipy's own tests."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scgpt_tl.tl._over_representation import COLUMNS, PathwayTest, over_representation

GENES = [f"C{i}orf{i}" if i % 3 else f"G{i}" for i in range(60)]  # a third in capitals: gseapy must not touch them


@pytest.fixture
def toy():
    """Background of 60 genes, twelve pathways that reach beyond it, four lists."""
    rng = np.random.default_rng(0)
    sets = {f"p/{i}": frozenset(rng.choice(GENES, 3 + i, replace=False)) | {"outside"} for i in range(12)}
    lists = {str(i): frozenset(rng.choice(GENES, 8, replace=False)) for i in range(3)}
    lists["planted"] = frozenset(sorted(sets["p/11"] & set(GENES))[:9]) | {"elsewhere"}
    return lists, sets, frozenset(GENES)


def by_scipy(lists, sets, background, correction="bonferroni"):
    """Every pair, those without a common gene too: Fisher's exact test of the 2 x 2 table."""
    rows = []
    for name, genes in lists.items():
        for pathway, members in sets.items():
            a, b = genes & background, members & background
            both = len(a & b)
            table = [[both, len(a) - both], [len(b) - both, len(background) - len(a) - len(b) + both]]
            p = stats.fisher_exact(table, alternative="greater")[1]
            odds = np.prod(np.diag(table) + np.array(0.5)) / ((table[0][1] + 0.5) * (table[1][0] + 0.5))
            rows.append((name, pathway, both, len(b), len(a), p, odds))
    found = pd.DataFrame(rows, columns=["program", "pathway", "overlap", "size", "n_program", "p_value", "odds_ratio"])
    if correction == "bonferroni":
        found["adjusted"] = np.minimum(1, found["p_value"] * len(lists) * len(sets))
    else:
        found["adjusted"] = stats.false_discovery_control(found["p_value"])
    return found[found["overlap"] > 0]


@pytest.mark.parametrize("correction", ["bonferroni", "fdr"])
def test_against_fishers_test(toy, correction):
    table, counts = over_representation(*toy, PathwayTest(correction, min_size=1))
    expected = by_scipy(*toy, correction)
    assert list(table) == list(COLUMNS)
    keys = ["program", "pathway"]
    merged = table.merge(expected, on=keys, suffixes=("", "_"))
    assert len(merged) == len(table) == len(expected)
    for name in ("overlap", "size", "n_program"):
        assert (merged[name] == merged[f"{name}_"]).all()
    for name in ("p_value", "adjusted", "odds_ratio"):
        np.testing.assert_allclose(merged[name], merged[f"{name}_"], rtol=1e-9)
    hits = int((expected["adjusted"] <= 0.05).sum())
    assert hits >= 1
    assert counts == {"n_background": 60, "n_programs": 4, "n_pathways": 12, "n_tests": 48, "n_hits": hits}


def test_the_surest_first_and_genes_named(toy):
    table, _ = over_representation(*toy, PathwayTest())
    assert table["program"].drop_duplicates().tolist() == list(toy[0])
    assert (table.groupby("program", sort=False)["p_value"].diff().dropna() >= 0).all()
    best = table[table["program"] == "planted"].iloc[0]
    assert (best["pathway"], best["overlap"]) == ("p/11", 9)
    assert best["genes"] == ";".join(sorted(toy[0]["planted"] - {"elsewhere"}))
    assert table.equals(over_representation(*toy, PathwayTest())[0])


def test_sizes_count_in_the_background(toy):
    lists, sets, background = toy
    table, counts = over_representation(lists, sets, background, PathwayTest(min_size=5, max_size=7))
    assert set(table["size"]) == {5, 6, 7}
    assert (counts["n_pathways"], counts["n_tests"]) == (3, 12)
    with pytest.raises(ValueError, match=r"none of 12 pathways has 40 to 60 of the 60 genes .* \(they have 3 to 14\)"):
        over_representation(lists, sets, background, PathwayTest(min_size=40))


def test_a_list_outside_the_background_is_no_test(toy, caplog):
    lists, sets, background = toy
    table, counts = over_representation({**lists, "far": frozenset({"Z"})}, sets, background, PathwayTest())
    assert counts["n_programs"] == 4
    assert "far" not in set(table["program"])
    assert "1 of 5 lists have no gene of the background's 60: far; they are not tested" in caplog.text
    with pytest.raises(ValueError, match=r"1 of 1 lists .*far; are they in another kind of name\?"):
        over_representation({"far": frozenset({"Z"})}, sets, background, PathwayTest())


def test_nothing_in_common_is_an_empty_table():
    table, counts = over_representation(
        {"a": frozenset({"x", "y"})},
        {"p": frozenset({"1", "2", "3"})},
        frozenset({"x", "y", "1", "2", "3"}),
        PathwayTest(),
    )
    assert list(table) == list(COLUMNS)
    assert table.empty
    assert counts["n_tests"] == 1


def test_a_probability_of_zero_is_no_warning():
    genes = frozenset(f"{i}" for i in range(4000))
    half = frozenset(f"{i}" for i in range(2000))
    table, _ = over_representation({"a": half}, {"p": half}, genes, PathwayTest())
    assert table["p_value"].iloc[0] == table["adjusted"].iloc[0] == 0


def test_no_log_is_left_open(toy):
    over_representation(*toy, PathwayTest())
    logs = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("enrichr")]
    assert logs
    assert [log for log in logs if any(type(handler) is logging.StreamHandler for handler in log.handlers)] == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"correction": "bonferoni"}, "did you mean 'bonferroni'"),
        ({"cutoff": 0}, "cutoff=0"),
        ({"cutoff": 2}, "cutoff=2"),
        ({"min_size": 0}, "min_size=0"),
        ({"min_size": 9, "max_size": 5}, "min_size=9 and max_size=5"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        PathwayTest(**options)

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scgpt_tl import get, pl

LONG = "Immunoregulatory interactions between a Lymphoid and a non-Lymphoid cell, number {}"


@pytest.fixture
def enriched(enrichment_table):
    def make(*sizes, **how):
        data = ad.AnnData(np.ones((2, 2), np.float32))
        data.uns["scgpt_enrichment"] = {"scgpt_tl": "tl.scgpt_enrich", "table": enrichment_table(*sizes, **how)}
        return data

    return make


def ticks(axis):
    return [label.get_text().replace("\n", " ") for label in axis.get_ticklabels()]


def test_a_dot_for_each_pair_that_passes(enriched, same):
    adata = enriched(4, 8)
    before = adata.copy()
    ax = pl.enrichment(adata, n_top=8)
    table = get.enrichment_df(adata, cutoff=0.05)
    places = ax.collections[0].get_offsets()
    rows, columns = ticks(ax.yaxis), ticks(ax.xaxis)
    found = {(columns[int(x)], rows[int(y)]) for x, y in places}
    assert found == set(zip(table["program"].astype(str), table["pathway"], strict=True))
    sizes, shades = ax.collections[0].get_sizes(), ax.collections[0].get_array()
    named = {(columns[int(x)], rows[int(y)]): (s, c) for (x, y), s, c in zip(places, sizes, shades, strict=True)}
    by = [named[str(p), w] for p, w in zip(table["program"], table["pathway"], strict=True)]
    np.testing.assert_allclose([c for _, c in by], -np.log10(table["adjusted"]))
    assert (np.diff([s for s, _ in sorted(by, key=lambda b: b[0])]) >= 0).all()
    order = np.argsort(table["overlap"].to_numpy(), kind="stable")
    assert (np.diff(np.array([s for s, _ in by])[order]) >= 0).all()
    same(before, adata)


def test_many_programs_long_pathways(enriched, apart):
    ax = pl.enrichment(enriched(40, 30, names=LONG))
    assert len(ticks(ax.xaxis)) == 12
    assert ax.get_title() == "12 of 40 programs with a pathway, 3 surest of each"
    apart([*ax.get_yticklabels(), *ax.get_xticklabels(), ax.title])
    assert all(text.count("\n") <= 1 for text in (label.get_text() for label in ax.get_yticklabels()))


def test_one_dot_given_axes(enriched):
    _, ax = plt.subplots()
    assert pl.enrichment(enriched(1, 1), title="mine", ax=ax) is ax
    assert ax.get_title() == "mine"
    assert len(ax.collections[0].get_offsets()) == 1
    ax.figure.canvas.draw()


def test_chosen_programs_stay_in_order(enriched):
    assert ticks(pl.enrichment(enriched(12, 6), programs=["10", 2]).xaxis) == ["2", "10"]


def test_nothing_passes_says_what_to_change(enriched):
    adata = enriched(3, 4)
    with pytest.raises(ValueError, match=r"no pathway at an adjusted p of 1e-30 \(its smallest is .*raise cutoff="):
        pl.enrichment(adata, cutoff=1e-30)
    with pytest.raises(KeyError, match="no program 7"):
        pl.enrichment(adata, programs=["7"])
    with pytest.raises(ValueError, match=r"pathways are more than a page shows \(80\): lower n_top="):
        pl.enrichment(enriched(2, 100), n_top=100)
    adata.uns["scgpt_enrichment"]["table"] = adata.uns["scgpt_enrichment"]["table"].iloc[:0]
    with pytest.raises(ValueError, match="no pathway at"):
        pl.enrichment(adata)
    del adata.uns["scgpt_enrichment"]
    with pytest.raises(KeyError, match=r"scgpt_enrich\(adata, gene_sets=\.\.\.\)"):
        pl.enrichment(adata)

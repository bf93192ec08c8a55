from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get


@pytest.fixture
def enriched(enrichment_table):
    data = ad.AnnData(np.ones((2, 2), np.float32))
    data.uns["scgpt_enrichment"] = {"scgpt_tl": "tl.scgpt_enrich", "params": {}, "table": enrichment_table(11, 4)}
    return data


def test_the_surest_of_each_program_first(enriched):
    table = get.enrichment_df(enriched)
    assert table["program"].cat.categories.tolist() == [str(i) for i in range(1, 12)]
    assert len(table) == 44
    assert table["program"].is_monotonic_increasing
    assert (table.groupby("program", observed=True)["adjusted"].diff().dropna() >= 0).all()


def test_cutoff_and_program(enriched):
    table = get.enrichment_df(enriched, cutoff=0.05)
    full = get.enrichment_df(enriched)
    assert 0 < len(table) < 44
    pd.testing.assert_frame_equal(table, full[full["adjusted"] <= 0.05].reset_index(drop=True))
    for asked in (10, "10"):
        assert set(get.enrichment_df(enriched, program=asked)["program"]) == {"10"}
    assert get.enrichment_df(enriched, cutoff=0).empty


def test_lists_keep_their_names_and_order(enriched):
    enriched.uns["scgpt_enrichment"]["table"]["program"] = ["up", "down"] * 22
    assert get.enrichment_df(enriched)["program"].cat.categories.tolist() == ["up", "down"]


def test_a_list_that_shares_no_gene_is_an_empty_table(enriched):
    held = enriched.uns["scgpt_enrichment"]
    held["params"]["tested"] = np.array([*map(str, range(1, 13))])
    assert get.enrichment_df(enriched, program=12).empty
    assert get.enrichment_df(enriched)["program"].cat.categories.tolist() == [str(i) for i in range(1, 13)]
    held["table"] = held["table"].iloc[:0]
    assert get.enrichment_df(enriched, program="3").empty
    with pytest.raises(KeyError, match="no program '13'; there are 1, 2"):
        get.enrichment_df(enriched, program=13)


def test_it_survives_h5ad_and_is_a_copy(enriched, tmp_path):
    enriched.write_h5ad(tmp_path / "a.h5ad")
    before = enriched.uns["scgpt_enrichment"]["table"].copy()
    read = get.enrichment_df(ad.read_h5ad(tmp_path / "a.h5ad"))
    pd.testing.assert_frame_equal(read, get.enrichment_df(enriched))
    pd.testing.assert_frame_equal(enriched.uns["scgpt_enrichment"]["table"], before)


def test_missing(enriched):
    with pytest.raises(KeyError, match=r"no program '12'; there are 1, 2"):
        get.enrichment_df(enriched, program=12)
    with pytest.raises(ValueError, match="cutoff is 5"):
        get.enrichment_df(enriched, cutoff=5)
    del enriched.uns["scgpt_enrichment"]["table"]
    with pytest.raises(KeyError, match=r"no table of pathways; scgpt_tl\.tl\.scgpt_enrich"):
        get.enrichment_df(enriched)
    del enriched.uns["scgpt_enrichment"]
    with pytest.raises(KeyError, match=r"no result 'scgpt_enrichment'; scgpt_tl\.tl\.scgpt_enrich"):
        get.enrichment_df(enriched)

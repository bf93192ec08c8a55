from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get


def test_genes_of_a_program_stand_by_what_holds_it_together(similar_genes):
    adata = similar_genes()
    table = get.programs_df(adata)
    assert table.columns.tolist() == ["gene", "program", "n_genes", "strength"]
    assert len(table) == 18
    assert table["program"].astype(str).tolist() == ["1"] * 6 + ["2"] * 6 + ["3"] * 6
    assert (table["n_genes"] == 6).all()
    dense, code = adata.varp["scgpt_grn"].toarray(), adata.var["scgpt_program"].cat.codes.to_numpy()
    expected = [(dense[i] * (code == code[i])).sum() for i in adata.var_names.get_indexer(table["gene"])]
    np.testing.assert_allclose(table["strength"], expected, rtol=1e-6)
    assert (table.groupby("program", observed=True)["strength"].diff().dropna() <= 0).all()


def test_another_resolution_another_key_a_file(similar_genes, tmp_path):
    adata = similar_genes()
    coarse = get.programs_df(adata, resolution=1)
    assert coarse["program"].astype(str).unique().tolist() == ["1"]
    pd.testing.assert_frame_equal(get.programs_df(adata, resolution=5), get.programs_df(adata))
    adata.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(get.programs_df(ad.read_h5ad(tmp_path / "a.h5ad")), get.programs_df(adata))
    for held, name in ((adata.varp, "scgpt_grn"), (adata.uns, "scgpt_grn")):
        held["mine"] = held[name]
    adata.var["mine_program"] = adata.var["scgpt_program"]
    pd.testing.assert_frame_equal(get.programs_df(adata, key="mine"), get.programs_df(adata))


def test_none_is_an_empty_table(similar_genes):
    adata = similar_genes()
    adata.var["scgpt_program"] = pd.Categorical([np.nan] * adata.n_vars, categories=[])
    assert get.programs_df(adata).empty


def test_missing(similar_genes, regulating_genes):
    with pytest.raises(ValueError, match=r"made by method='attention', which finds no programs.*method='embedding'"):
        get.programs_df(regulating_genes())
    adata = similar_genes()
    with pytest.raises(ValueError, match="no resolution 2; there are 1, 5"):
        get.programs_df(adata, resolution=2)
    del adata.var["scgpt_program"], adata.varm["scgpt_program"]
    with pytest.raises(KeyError, match=r"adata\.var has no 'scgpt_program'; scgpt_tl\.tl\.scgpt_grn"):
        get.programs_df(adata)
    with pytest.raises(KeyError, match=r"adata\.varm has no 'scgpt_program'"):
        get.programs_df(adata, resolution=1)

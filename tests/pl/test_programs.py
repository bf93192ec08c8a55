from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get, pl

LONG = ("CD14+ Monocytes", "CD4-positive, alpha-beta memory T cell of the blood", "B cells", "NK cells")


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_each_row_runs_from_its_lowest_group_to_its_highest(similar_genes, same):
    adata = similar_genes(4)
    before = adata.copy()
    ax = pl.programs(adata)
    activity = adata.uns["scgpt_grn"]["activity"]
    drawn, order = ax.collections[0].get_array(), [text.split(":")[0] for text in rows(ax)]
    expected = activity[order].T
    low, high = expected.min(axis=1), expected.max(axis=1)
    np.testing.assert_allclose(drawn, expected.sub(low, axis=0).div(high - low, axis=0))
    peaks = expected.to_numpy().argmax(axis=1)
    assert (np.diff(peaks) >= 0).all()
    assert [text.get_text() for text in ax.texts] == [f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)]
    first = get.programs_df(adata)
    head = first["gene"][first["program"] == order[0]].tolist()
    assert rows(ax)[0] == f"{order[0]}: {', '.join(head[:4])} +2"
    same(before, adata)


def test_many_programs_long_names(similar_genes, apart):
    ax = pl.programs(similar_genes(40, names="LONG-GENE-{}", groups=LONG))
    assert len(rows(ax)) == 40
    apart([*ax.get_yticklabels(), *ax.get_xticklabels(), ax.title])
    apart(ax.texts)
    assert len(rows(pl.programs(similar_genes(40), n_top=7))) == 7
    assert pl.programs(similar_genes(40), n_top=7).get_title() == "7 of 40 programs, mean activity"


def test_one_program_one_group_given_axes(similar_genes):
    _, ax = plt.subplots()
    assert pl.programs(similar_genes(1, groups=("all",)), title="mine", ax=ax) is ax
    assert ax.get_title() == "mine"
    assert np.isfinite(ax.collections[0].get_array()).all()


def test_chosen_programs(similar_genes):
    ax = pl.programs(similar_genes(), programs=[2, "1"], n_genes=8)
    assert {text.split(":")[0] for text in rows(ax)} == {"1", "2"}
    assert all(text.count(",") == 5 and "+" not in text for text in rows(ax))


def test_it_draws_what_a_file_brings_back(similar_genes, tmp_path):
    import anndata as ad

    similar_genes().write_h5ad(tmp_path / "a.h5ad")
    assert len(rows(pl.programs(ad.read_h5ad(tmp_path / "a.h5ad")))) == 3


def test_bad_input(similar_genes, regulating_genes):
    adata = similar_genes()
    with pytest.raises(KeyError, match=r"no program 9; it was made with 3"):
        pl.programs(adata, programs=["9"])
    with pytest.raises(ValueError, match="finds no programs"):
        pl.programs(regulating_genes())
    adata.uns["scgpt_grn"]["activity"] = pd.DataFrame(index=["B"])
    with pytest.raises(ValueError, match=r"no program to draw: take a lower resolution="):
        pl.programs(adata)
    del adata.uns["scgpt_grn"]["activity"]
    with pytest.raises(KeyError, match=r"scgpt_grn\(adata, groupby=\.\.\.\) computes it"):
        pl.programs(adata)

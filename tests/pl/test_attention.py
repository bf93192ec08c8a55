from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from scgpt_tl import pl


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_three_panels_of_the_genes_that_change_most(regulating_genes, same):
    adata = regulating_genes(60, regulators=1)
    before = adata.copy()
    panels = pl.attention(adata)
    assert panels.shape == (3,)
    assert [ax.get_ylabel() for ax in panels] == ["control", "perturbed", "difference"]
    held = adata.varm["scgpt_grn"][:, :, 0]
    change = (held[:, 1] - held[:, 0]).astype(float)
    change[[0, -1]] = 0  # itself, and what was not chosen
    top = sorted(np.argsort(-np.abs(change), kind="stable")[:20], key=lambda i: -change[i])
    assert ticks(panels[-1].xaxis) == [f"G{i}" for i in top]
    control, perturbed, difference = (ax.collections[0].get_array()[0] for ax in panels)
    np.testing.assert_allclose(control, held[top, 0])
    np.testing.assert_allclose(perturbed, held[top, 1])
    np.testing.assert_allclose(difference, perturbed - control, atol=1e-6)
    scales = [ax.collections[0].get_clim() for ax in panels]
    assert scales[0] == scales[1]
    assert scales[2][0] == -scales[2][1]
    same(before, adata)


def test_several_regulators_long_names(regulating_genes, apart):
    adata = regulating_genes(200, regulators=5, names="LONGGENE{}")
    panels = pl.attention(adata)
    assert ticks(panels[0].yaxis) == [f"LONGGENE{i}" for i in range(5)]
    assert len(ticks(panels[-1].xaxis)) <= 60
    apart(
        [*panels[-1].get_xticklabels(), *(label for ax in panels for label in (ax.yaxis.label, *ax.get_yticklabels()))]
    )
    masked = panels[0].collections[0].get_array().mask
    named = {(r, c) for r, c in zip(*np.nonzero(masked), strict=True)}
    columns = ticks(panels[-1].xaxis)
    assert all(columns[c] == f"LONGGENE{r}" for r, c in named)


def test_without_a_control_one_panel(regulating_genes):
    adata = regulating_genes(30, groups=("all",), control="")
    _, ax = plt.subplots()
    panels = pl.attention(adata, n_top=3, title="mine", ax=ax)
    assert panels.tolist() == [ax]
    held = adata.varm["scgpt_grn"][:, 0]
    assert ax.get_title() == "mine"
    assert f"G{np.nanargmax(np.where(np.arange(30) == 0, np.nan, held[:, 0]))}" in ticks(ax.xaxis)


def test_every_gene_a_regulator(regulating_genes):
    adata = regulating_genes(20, regulators=None)
    assert ticks(pl.attention(adata, regulators=["G3", "G1"])[0].yaxis) == ["G3", "G1"]
    with pytest.raises(ValueError, match=r"every gene is a regulator: give regulators="):
        pl.attention(adata)


def test_bad_input(regulating_genes, similar_genes):
    several = regulating_genes(groups=("ctrl", "a", "b"))
    with pytest.raises(ValueError, match=r"perturbed groups a, b: give group="):
        pl.attention(several)
    assert len(pl.attention(several, group="b")) == 3
    with pytest.raises(ValueError, match=r"groups a, b: give group="):
        pl.attention(regulating_genes(groups=("a", "b"), control=""))
    with pytest.raises(ValueError, match=r"targets of 2 regulators.*\(60\)"):
        pl.attention(regulating_genes(200), n_top=100)
    with pytest.raises(ValueError, match=r"1 Axes for 3 heat map"):
        pl.attention(regulating_genes(), ax=plt.subplots()[1])
    with pytest.raises(KeyError, match="no regulator STAT1"):
        pl.attention(regulating_genes(), regulators="STAT1")
    with pytest.raises(ValueError, match=r"network of embeddings.*pl\.network draws it"):
        pl.attention(similar_genes())
    adata = regulating_genes()
    adata.varm["scgpt_grn"][:] = np.nan
    with pytest.raises(ValueError, match="no score of G0, G1"):
        pl.attention(adata)


def test_regulators_by_the_names_of_the_model(regulating_genes):
    adata = regulating_genes(8, regulators=2, names="ENSG{}")
    adata.uns["scgpt_grn"]["regulator_symbols"] = np.array(["S0", "S1"])
    panels = pl.attention(adata, regulators=["S1", "ENSG0", "ENSG1"])
    assert ticks(panels[0].yaxis) == ["ENSG1", "ENSG0"]

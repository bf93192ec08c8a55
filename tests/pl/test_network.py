from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import get, pl


def labels(ax):
    return {text.get_text() for text in ax.texts}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def segments(ax):
    return sum(len(lines.get_segments()) for lines in ax.collections)


def test_every_gene_and_edge_is_drawn(similar_genes, same, apart):
    adata = similar_genes(10)
    before = adata.copy()
    ax = pl.network(adata, n_top=400)
    assert labels(ax) == {f"G{i}" for i in range(60)}
    edges = get.grn_df(adata)
    assert segments(ax) == len(edges)
    widths = np.concatenate([lines.get_linewidths() for lines in ax.collections if len(lines.get_segments())])
    assert (np.argsort(widths, kind="stable") == np.argsort(edges["weight"], kind="stable")).all()
    assert legend(ax)[:10] == [f"program {i}" for i in range(1, 11)]
    assert legend(ax)[10:] == [f"{edges['weight'].max():.2g}", f"{edges['weight'].min():.2g}"]
    assert ax.get_title(loc="left") == f"60 genes, {len(edges)} edges (embedding)"
    looks = {(line.get_color(), line.get_marker()) for line in ax.get_legend().get_lines()[:10]}
    assert len(looks) == 10
    apart(ax.texts)
    same(before, adata)


def test_long_names_do_not_lie_on_each_other(similar_genes, apart):
    ax = pl.network(similar_genes(3, names="LONG-NAME-{}-AS1"))
    apart([*ax.texts, ax._left_title])


def test_the_same_every_time(similar_genes):
    places = [[text.get_position() for text in pl.network(similar_genes()).texts] for _ in range(2)]
    assert places[0] == places[1]


def test_chosen_genes_threshold_and_number(similar_genes):
    adata, genes = similar_genes(), ["G0", "G1", "G2", "G18", "not there"]
    ax = pl.network(adata, genes=genes)
    assert labels(ax) == {"G0", "G1", "G2"}
    assert ax.get_title(loc="left").startswith("3 of 5 genes, 3 edges")
    edges = get.grn_df(adata)
    strong = edges[edges["weight"] >= 0.7]
    ax = pl.network(adata, threshold=0.7)
    assert segments(ax) == len(strong)
    assert labels(ax) == set(strong["source"]) | set(strong["target"])
    assert "cosine ≥ 0.7" in ax.get_title(loc="left")
    ax = pl.network(adata, n_top=1)
    assert segments(ax) == 1
    ax.figure.canvas.draw()
    assert ax._left_title.get_window_extent().x1 <= ax.figure.bbox.x1


def test_neighbours_of_a_gene_stand_around_it(similar_genes):
    ax = pl.network(similar_genes(), regulators="G3")
    assert labels(ax) == {f"G{i}" for i in range(6)}
    bold = {text.get_text() for text in ax.texts if text.get_fontweight() == "bold"}
    assert bold == {"G3"}
    assert segments(ax) == 5


def test_targets_and_what_rises_or_falls(regulating_genes, apart):
    adata = regulating_genes(40, regulators=3)
    ax = pl.network(adata, setting="difference")
    edges = get.grn_df(adata, setting="difference", n_top=20)
    rises, falls = (len(lines.get_segments()) for lines in ax.collections)
    assert (rises, falls) == ((edges["weight"] >= 0).sum(), (edges["weight"] < 0).sum())
    assert ax.collections[0].get_linestyle() != ax.collections[1].get_linestyle()
    assert legend(ax)[-2:] == ["rises", "falls"]
    assert ax.get_title(loc="left").endswith("(attention, difference, stim)")
    apart(ax.texts)
    ax = pl.network(adata, setting="control", regulators="G1", n_top=4)
    assert segments(ax) == 4
    assert "rises" not in legend(ax)


def test_every_gene_a_regulator_draws_those_named(regulating_genes):
    adata = regulating_genes(30, regulators=None)
    ax = pl.network(adata, genes=["G1", "G2", "G3"], setting="perturbed")
    assert segments(ax) == 6
    with pytest.raises(ValueError, match=r"299 genes are more than a drawing can name"):
        pl.network(regulating_genes(300, regulators=None), setting="perturbed")


def test_other_methods_are_coloured_by_programs_of_the_embedding(similar_genes, regulating_genes):
    adata, other = similar_genes(), regulating_genes(19, groups=("all",), control="")
    adata.varm["mine"], adata.uns["mine"] = other.varm["scgpt_grn"], other.uns["scgpt_grn"]
    assert [text for text in legend(pl.network(adata, key="mine")) if "program" in text] == [
        "program 1", "program 2", "program 3",
    ]  # fmt: skip
    assert not any("program" in text for text in legend(pl.network(other)))


def test_two_genes_one_edge_given_axes_own_title(regulating_genes):
    _, ax = plt.subplots(figsize=(2, 2))
    adata = regulating_genes(3, regulators=1)
    assert pl.network(adata, setting="control", n_top=1, title="mine", ax=ax) is ax
    assert ax.get_title(loc="left") == "mine"
    assert len(ax.texts) == 2
    ax.figure.canvas.draw()
    assert (
        pl.network(adata, setting="control", n_top=1).get_title(loc="left")
        == "2 genes, 1 edge (attention, control, ctrl)"
    )


def test_names_shrink_with_small_axes(similar_genes):
    _, ax = plt.subplots(figsize=(2, 2))
    assert pl.network(similar_genes(10), ax=ax).texts[0].get_fontsize() < 7


def test_nothing_to_draw_says_what_to_change(similar_genes, regulating_genes):
    adata = similar_genes()
    with pytest.raises(ValueError, match=r"no edge of a weight of 2: lower threshold="):
        pl.network(adata, threshold=2)
    with pytest.raises(ValueError, match=r"no edge between the 2 genes.*scgpt_grn\(adata, genes=\.\.\.\)"):
        pl.network(adata, genes=["G0", "G18"])
    with pytest.raises(ValueError, match=r"groups ctrl, stim, and one is drawn: give group= or setting="):
        pl.network(regulating_genes())
    with pytest.raises(KeyError, match="no result 'mine'"):
        pl.network(adata, key="mine")
    with pytest.raises(ValueError, match=r"240 genes are more.*\(200\): give genes="):
        pl.network(similar_genes(40), n_top=10_000)
    assert pd.isna(adata.var["scgpt_program"].iloc[-1])

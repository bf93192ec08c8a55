from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from scgpt_tl import get, pl


def test_bars_count_what_exactly_these_settings_share(regulating_genes, same):
    adata = regulating_genes(300, regulators=1)
    before = adata.copy()
    ax = pl.overlap(adata, regulator="G0")
    tops = [set(get.grn_df(adata, setting=s, n_top=100)["target"]) for s in ("control", "perturbed", "difference")]
    every = set.union(*tops)
    kinds = [tuple(gene in top for top in tops) for gene in every]
    parts = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [kinds.count(tuple(map(bool, part))) for part in parts]
    assert sum(heights) == len(every)
    assert [text.get_text() for text in ax.texts] == [str(int(h)) for h in heights]
    below = ax.child_axes[0]
    names = [label.get_text() for label in below.get_yticklabels()]
    assert names == ["control (100)", "perturbed (100)", "difference (100)"]
    dots = [line for line in below.lines if line.get_marker() == "o"]
    dark = {(line.get_xdata()[0], line.get_ydata()[0]) for line in dots if line.get_color() == "#333333"}
    assert dark == {(c, r) for c, part in enumerate(parts) for r in range(3) if part[r]}
    assert ax.get_title() == "G0: top 100 targets, stim"
    same(before, adata)


def test_few_genes_given_axes(regulating_genes, apart):
    _, ax = plt.subplots()
    assert pl.overlap(regulating_genes(4, regulators=1), regulator="G0", title="mine", ax=ax) is ax
    assert ax.get_title() == "mine"
    assert [bar.get_height() for bar in ax.patches] == [0, 0, 0, 0, 0, 0, 2]
    apart(ax.texts)


def test_bad_input(regulating_genes):
    with pytest.raises(ValueError, match=r"without a control.*control=\.\.\."):
        pl.overlap(regulating_genes(control=""), regulator="G0")
    with pytest.raises(ValueError, match=r"perturbed groups a, b: give group="):
        pl.overlap(regulating_genes(groups=("ctrl", "a", "b")), regulator="G0")
    with pytest.raises(KeyError, match="no regulator STAT1"):
        pl.overlap(regulating_genes(), regulator="STAT1")

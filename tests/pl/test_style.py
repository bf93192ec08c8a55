from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import pl
from scgpt_tl.pl._style import PALETTE, SHARES, entry, ink, plain, widest, wrapped


def luminance(color):
    linear = np.where(
        np.asarray(color) <= 0.04045, np.asarray(color) / 12.92, ((np.asarray(color) + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


def test_figures_read_on_every_shade():
    """Contrast of WCAG 2: 4.5 is what text of ordinary size needs."""
    for share in np.linspace(0, 1, 101):
        back, text = luminance(SHARES(share)[:3]), {"black": 0.0, "white": 1.0}[ink(SHARES(share))]
        high, low = max(back, text), min(back, text)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_shades_darken_all_the_way():
    assert (np.diff([luminance(SHARES(x)[:3]) for x in np.linspace(0, 1, 101)]) < 0).all()


@pytest.mark.parametrize("missing", ["red", "green"])
def test_palette_is_told_apart_by_dichromats(missing):
    """Linear cone model of Vienot et al. (1999) with one cone type gone: no two colours fall together."""
    from matplotlib.colors import to_rgb

    rgb = np.array([to_rgb(color) for color in PALETTE]) ** 2.2
    cones = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    lost = {
        "red": [[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]],
        "green": [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]],
    }[missing]
    seen = np.clip(rgb @ cones.T @ np.array(lost).T @ np.linalg.inv(cones).T, 0, 1) ** (1 / 2.2)
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert gaps.min() > 0.1


def test_long_names_are_cut_unless_they_would_read_alike():
    long = "CD4-positive, alpha-beta memory T cell of the "
    assert wrapped([long + "spleen and its other parts"], 20) == ["CD4-positive, alpha-\nbeta memory T cell …"]
    both = wrapped([long + "spleen", long + "thymus"], 20)
    assert [text.replace("\n", " ").split()[-1] for text in both] == ["spleen", "thymus"]
    assert wrapped(["B", 3]) == ["B", "3"]
    assert widest(["ab\ncde", "x"]) == 3
    assert widest([]) == 0


@pytest.mark.parametrize("name", ["CD4$^{+$ x", "$a$", "a\\$b", "5 $", "$^{$ $^{$"])
def test_names_are_drawn_as_they_read(name):
    """matplotlib's own rules for what a formula is, and for what it makes of an escaped sign."""
    from matplotlib.text import Text

    for text in (plain(name), wrapped([name])[0]):
        shown, is_formula = Text()._preprocess_math(text)
        assert (shown, is_formula) == (name, False)
    assert entry("_a") == " _a"
    assert entry("a_") == "a_"


ODD = "$^{$"  # what matplotlib cannot read as a formula
DRAWN = {
    "history": lambda _: pl.training_history({ODD: [1.0, 2.0], f"_{ODD}": [1.0, 2.0]}),
    "metrics": lambda _: pl.metrics(pd.DataFrame({ODD: [0.5, 0.1]}, index=[ODD, "_"]), columns=ODD, lower=ODD),
    "programs": lambda make: pl.programs(make["similar"](groups=(ODD, "T")), programs="1"),
    "network": lambda make: pl.network(make["similar"]()),
    "neighbours": lambda make: pl.network(make["similar"](), regulators="$^{0$"),
    "attention": lambda make: pl.attention(make["regulating"](groups=("ctrl", ODD)))[0],
    "overlap": lambda make: pl.overlap(make["regulating"](groups=("ctrl", ODD)), regulator="$^{0$"),
    "enrichment": lambda make: pl.enrichment(make["enriched"](), programs="1"),
    "confusion": lambda make: pl.confusion(make["cells"], truth_key=ODD, pred_key=f"_{ODD}"),
    "confidence": lambda make: pl.confidence(make["cells"], groupby=ODD),
    "boxes": lambda make: pl.confidence(make["cells"], groupby=ODD, kind="box"),
    "calibration": lambda make: pl.calibration(make["cells"], truth_key=ODD),
    "integration": lambda make: pl.integration(make["cells"], batch_key=ODD, keys=ODD)[0, 0],
}


@pytest.mark.parametrize("name", DRAWN)
def test_no_plot_reads_names_as_formulas(name, annotated, similar_genes, regulating_genes, enrichment_table):
    names = "$^{{{}$"
    annotated.obs[ODD] = annotated.obs["cell_type"].cat.rename_categories(lambda kind: f"_{ODD}{kind}")
    annotated.obs[f"_{ODD}"] = annotated.obs[ODD]
    annotated.obsm[ODD] = np.random.default_rng(0).normal(size=(300, 2))
    pathways = ad.AnnData(np.ones((2, 2), np.float32))
    pathways.uns["scgpt_enrichment"] = {"scgpt_tl": "tl.scgpt_enrich", "table": enrichment_table(names=names)}
    make = {
        "cells": annotated,
        "enriched": lambda: pathways,
        "similar": lambda **how: similar_genes(names=names, **how),
        "regulating": lambda **how: regulating_genes(names=names, **how),
    }
    ax = DRAWN[name](make)
    ax.figure.canvas.draw()
    if name in ("confidence", "history"):
        assert len(ax.get_legend().get_texts()) == len(ax.lines)

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from scgpt_tl import get, metrics, pl


def test_draws_the_table_and_tells_the_error(annotated, same):
    before = annotated.copy()
    ax = pl.calibration(annotated, truth_key="cell_type", n_bins=10)
    table = get.calibration_df(annotated, truth_key="cell_type", n_bins=10)
    some = table[table["n"] > 0]
    np.testing.assert_allclose(ax.lines[1].get_xydata(), some[["confidence", "accuracy"]])
    assert ax.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    bars = ax.child_axes[0].patches
    assert [bar.get_height() for bar in bars] == table["n"].tolist()
    np.testing.assert_allclose([bar.get_x() for bar in bars], table["low"])
    kept = annotated.obs["cell_type"].notna().to_numpy()
    codes = annotated.obs["cell_type"].cat.codes.to_numpy()[kept].astype(np.int64)
    expected = metrics.ece(annotated.obsm["scgpt_probabilities"][kept], codes, n_bins=10)
    assert ax.get_title() == f"ECE {expected:.3f} in 10 bins, 298 cells\n(2 without a true type or a call left out)"
    same(before, annotated)


def test_intervals_are_wilsons(annotated):
    """Wilson's interval holds the shares p for which |p - share| <= z sqrt(p (1 - p) / n)."""
    ax = pl.calibration(annotated, truth_key="cell_type")
    table = get.calibration_df(annotated, truth_key="cell_type")
    some = table[table["n"] > 0]
    for (_, bin_), segment in zip(some.iterrows(), ax.collections[0].get_segments(), strict=True):
        grid = np.linspace(0, 1, 20_001)
        inside = grid[np.abs(grid - bin_["accuracy"]) <= 1.96 * np.sqrt(grid * (1 - grid) / bin_["n"]) + 1e-12]
        np.testing.assert_allclose(segment[:, 1], [inside.min(), inside.max()], atol=1e-4)
        np.testing.assert_allclose(segment[:, 0], bin_["confidence"])


def test_title_histogram_and_labels_do_not_lie_on_each_other(annotated, apart):
    ax = pl.calibration(annotated, truth_key="cell_type")
    above = ax.child_axes[0]
    apart([ax.title, *above.get_yticklabels(), above.yaxis.label])
    assert ax.title.get_window_extent().y0 > above.get_window_extent().y1
    assert ax.title.get_window_extent().y1 <= ax.figure.bbox.y1
    assert ax.xaxis.label.get_window_extent().y0 >= 0


def test_given_axes_own_title_one_class(annotated):
    annotated.obs["cell_type"] = "T"
    _, ax = plt.subplots()
    assert pl.calibration(annotated, truth_key="cell_type", title="mine", ax=ax) is ax
    assert ax.get_title() == "mine"


def test_missing_probability_names_its_maker(annotated):
    del annotated.obsm["scgpt_probabilities"], annotated.obs["scgpt_probability"]
    with pytest.raises(KeyError, match=r"'scgpt_probability'.*tl\.scgpt_annotate"):
        pl.calibration(annotated, truth_key="cell_type")

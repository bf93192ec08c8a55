from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from scgpt_tl import pl


def test_curves_of_two_groups(annotated, same):
    before = annotated.copy()
    ax = pl.confidence(annotated, groupby="condition")
    for line, name in zip(ax.lines, ("ctrl", "stim"), strict=True):
        cells = annotated.obs[annotated.obs["condition"] == name]
        x, y = line.get_xydata().T
        for cut in (0.4, 0.6, 0.8):
            at_most = y[np.searchsorted(x, cut, side="right") - 1]
            assert at_most == pytest.approx((cells["scgpt_probability"] <= cut).mean())
        unknown = 100 * (cells["scgpt_pred"] == "unknown").mean()
        median = cells["scgpt_probability"].median()
        assert line.get_label() == f"{name}: {len(cells)} cells, median {median:.2f}, unknown {unknown:.1f}%"
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    same(before, annotated)


def test_boxes_of_many_groups(annotated, apart):
    annotated.obs["donor"] = [f"donor {i % 9}" for i in range(300)]
    ax = pl.confidence(annotated, groupby="donor")
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"donor {i}" for i in range(9)]
    first = annotated.obs.loc[annotated.obs["donor"] == "donor 0", "scgpt_probability"].to_numpy(dtype=np.float64)
    box = ax.patches[0]
    np.testing.assert_allclose([box.get_x(), box.get_x() + box.get_width()], np.quantile(first, [0.25, 0.75]))
    np.testing.assert_allclose(ax.collections[0].get_segments()[0][:, 0], np.quantile(first, [0.05, 0.95]))
    np.testing.assert_allclose(ax.collections[1].get_segments()[0][:, 0], np.median(first))
    assert ax.texts[0].get_text().startswith(f"{len(first)} cells")
    apart([*ax.get_yticklabels(), *ax.texts, ax.xaxis.label])


def test_kind_is_a_choice_and_cells_without_a_group_are_left_out(annotated):
    _, ax = plt.subplots()
    assert pl.confidence(annotated, groupby="cell_type", kind="ecdf", title="mine", ax=ax) is ax
    assert ax.get_title() == "mine"
    assert len(ax.lines) == 4
    counted = [int(line.get_label().split(": ")[1].split()[0]) for line in ax.lines]
    assert sum(counted) == 298
    assert len(pl.confidence(annotated, groupby="condition", kind="box").patches) == 2


def test_a_mapped_result(annotated):
    annotated.obs["scgpt_mapped"] = "T"
    with pytest.raises(KeyError, match=r"'scgpt_mapped_probability'.*scgpt_map\(query, reference\)"):
        pl.confidence(annotated, groupby="condition", key="scgpt_mapped")
    annotated.obs["scgpt_mapped_probability"] = 0.5
    ax = pl.confidence(annotated, groupby="condition", key="scgpt_mapped")
    assert ax.lines[0].get_label() == "ctrl: 200 cells, median 0.50, unknown 0.0%"


def test_bad_input(annotated):
    with pytest.raises(KeyError, match=r"no column 'dose'.*condition"):
        pl.confidence(annotated, groupby="dose")
    with pytest.raises(ValueError, match="kind is 'violin'"):
        pl.confidence(annotated, groupby="condition", kind="violin")
    annotated.obs["scgpt_probability"] = np.nan
    with pytest.raises(ValueError, match="no cell has both"):
        pl.confidence(annotated, groupby="condition")

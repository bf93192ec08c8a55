from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import pl


@pytest.fixture
def table():
    scores = pd.DataFrame(
        {
            "NMI": [0.7, 0.70004, 0.1],
            "graph connectivity": [0.9, np.nan, 0.8],
            "ECE": [0.2, 0.04, 0.1],
            "resolution": [0.1, 0.2, 0.3],
            "n_clusters": [7, 8, 9],
        },
        index=pd.Index(["scGPT", "HVG + PCA", "random weights"], name="embedding"),
    )
    scores.attrs["verdict"] = "scGPT: level with HVG + PCA (0.70) and above random weights (0.10)."
    return scores


def framed(ax):
    return {(int(p.get_x()), int(p.get_y())) for p in ax.patches if not p.get_fill()}


def test_numbers_best_and_distance(table):
    ax = pl.metrics(table)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["NMI", "graph\nconnectivity", "ECE ↓"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table.index)
    written = {tuple(int(x) for x in text.get_position()): text for text in ax.texts}
    assert {place: text.get_text() for place, text in written.items()} == {
        (0, 0): "0.700", (1, 0): "0.900", (2, 0): "0.200",
        (0, 1): "0.700", (1, 1): "none", (2, 1): "0.040",
        (0, 2): "0.100", (1, 2): "0.800", (2, 2): "0.100",
    }  # fmt: skip
    assert framed(ax) == {(0, 0), (0, 1), (1, 0), (2, 1)}  # what reads equal is equally the best; a low ECE is better
    assert {place for place, text in written.items() if text.get_fontweight() == "bold"} == framed(ax)
    behind = ax.collections[0].get_array()
    np.testing.assert_allclose(behind, [[0, 0, 0.16], [0, 0, 0], [0.6, 0.1, 0.06]], atol=1e-9)
    assert ax.collections[0].get_clim() == (0, 0.2)
    assert ax.get_title(loc="left").replace("\n", " ") == table.attrs["verdict"]


def test_chosen_columns_direction_digits_title_axes(table):
    _, ax = plt.subplots()
    assert pl.metrics(table, columns=["n_clusters"], lower=["n_clusters"], digits=0, title="mine", ax=ax) is ax
    assert [text.get_text() for text in ax.texts] == ["7", "8", "9"]
    assert framed(ax) == {(0, 0)}
    assert ax.get_title(loc="left") == "mine"


def test_texts_do_not_lie_on_each_other(table, apart):
    wide = pd.concat([table[["NMI", "ECE"]].add_prefix(f"a longer name of score {i} ") for i in range(4)], axis=1)
    names = ["NMI", "ARI", "ASW", "AvgBIO", "ASW_batch", "GraphConn", "AvgBATCH", "Overall"]  # as `compare` has them
    wide[names] = 0.5
    wide.index = [f"a method with quite a long name, number {i}" for i in range(3)]
    wide.attrs["verdict"] = "A sentence that goes on and on, as verdicts on four methods and eight scores may. " * 3
    usual = pl.metrics(wide[names].set_axis(["PCA", "scVI", "kNN"]))
    apart(usual.get_xticklabels())
    ax = pl.metrics(wide)
    apart([*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts, ax._left_title])
    assert ax._left_title.get_window_extent().x1 <= ax.figure.bbox.x1
    assert ax._left_title.get_window_extent().y1 <= ax.figure.bbox.y1


def test_one_row_and_rows_of_several_names(table):
    one = table.iloc[[0]].set_axis(pd.MultiIndex.from_tuples([("kang", "scGPT")]))
    ax = pl.metrics(one)
    assert ax.get_yticklabels()[0].get_text() == "kang / scGPT"
    assert framed(ax) == {(0, 0), (1, 0), (2, 0)}


def test_bad_input(table):
    with pytest.raises(KeyError, match=r"no column.*ARI.*NMI"):
        pl.metrics(table, columns=["ARI"])
    with pytest.raises(ValueError, match="nothing to draw: 0 row"):
        pl.metrics(table.iloc[:0])
    with pytest.raises(ValueError, match="no column of scores"):
        pl.metrics(table[["n_clusters", "resolution"]])
    with pytest.raises(TypeError, match=r"metrics\.compare"):
        pl.metrics({"NMI": [1]})

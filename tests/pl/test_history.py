from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import pl

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def history():
    yield pd.DataFrame({"step": [1, 2, 3, 4], "gep": [4.0, 3, 2, 1], "val": [np.nan, 3, np.nan, 2], "note": [None] * 4})
    plt.close("all")


def test_curves(history):
    ax = pl.training_history(history)
    assert [line.get_label() for line in ax.lines] == ["gep", "val"]
    assert ax.lines[1].get_xydata().tolist() == [[2, 3], [4, 2]]
    assert ax.get_xlabel() == "step"


def test_chosen_column_given_axes_log(history):
    _, ax = plt.subplots()
    assert pl.training_history(history, columns=["gep"], logy=True, ax=ax) is ax
    assert ax.get_ylabel() == "gep"
    assert ax.get_yscale() == "log"


def test_one_column_needs_no_list_and_names_are_no_formulas():
    history = {"step": [1, 2], "$^{$": [2.0, 1.0], "_loss": [1.0, 0.5]}
    ax = pl.training_history(history, columns="$^{$")
    assert len(ax.lines) == 1
    assert ax.get_ylabel() == r"\$^{\$"
    ax = pl.training_history(history)
    ax.figure.canvas.draw()
    assert len(ax.get_legend().get_texts()) == 2


def test_bad_columns(history):
    with pytest.raises(KeyError, match="gep"):
        pl.training_history(history, columns=["loss"])
    with pytest.raises(ValueError, match="no column with numbers"):
        pl.training_history(history[["step", "note"]])


def test_position_is_no_curve_and_the_lowest_point_is_ringed():
    """As `engine` records it: epoch and step of each row, each loss on the cells trained on and on held-out ones."""
    records = [
        {"epoch": 0, "step": 10, "held_out/cls": 2.0, "held_out/loss": 3.0, "train/cls": 2.5, "train/loss": 3.5},
        {"epoch": 1, "step": 20, "held_out/cls": 1.0, "held_out/loss": 1.5, "train/cls": 1.2, "train/loss": 1.6},
        {"epoch": 2, "step": 30, "held_out/cls": 1.1, "held_out/loss": 1.7, "train/cls": 0.9, "train/loss": 1.1},
    ]
    ax = pl.training_history(records)
    *curves, ring = ax.lines
    names = [line.get_label() for line in curves]
    assert names == ["train/cls", "held_out/cls", "train/loss", "held_out/loss"]
    assert [line.get_linestyle() for line in curves] == ["-", "--", "-", "--"]
    colors = [line.get_color() for line in curves]
    assert colors[0] == colors[1] != colors[2] == colors[3]
    assert ring.get_xydata().tolist() == [[20, 1.5]]
    assert ax.get_legend() is not None


def test_history_of_a_result_in_an_anndata():
    data = ad.AnnData(np.ones((2, 2), np.float32))
    nested = {
        "step": np.array([10, 20]),
        "train": {"loss": np.array([2.0, 1.5])},
        "held_out": {"loss": np.array([2, 1])},
    }
    data.uns["mine"] = {"scgpt_tl": "tl.scgpt_annotate", "history": nested}
    for key in (None, "mine"):
        ax = pl.training_history(data, key=key)
        assert [line.get_label() for line in ax.lines][:2] == ["train/loss", "held_out/loss"]
        assert ax.lines[0].get_xydata().tolist() == [[10, 2], [20, 1.5]]

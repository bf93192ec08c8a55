from __future__ import annotations

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


def test_bad_columns(history):
    with pytest.raises(KeyError, match="gep"):
        pl.training_history(history, columns=["loss"])
    with pytest.raises(ValueError, match="no column with numbers"):
        pl.training_history(history[["step", "note"]])

from __future__ import annotations

import pandas as pd
import pytest

from scgpt_tl.metrics._verdict import verdict


@pytest.mark.parametrize(
    ("other", "stand"), [(0.50, "above"), (0.595, "level with"), (0.605, "level with"), (0.62, "below")]
)
def test_one_other(other, stand):
    table = pd.DataFrame({"AvgBIO": [0.6, other], "n_cells": [1234, 1234]}, index=["scGPT", "PCA"])
    assert verdict(table) == f"scGPT: AvgBIO 0.60 on 1,234 labelled cells, {stand} PCA ({other:.2f})."
    assert verdict(table[:1]) == "scGPT: AvgBIO 0.60 on 1,234 labelled cells."


def test_the_best_of_several_is_named_first():
    table = pd.DataFrame(
        {"Overall": [0.6, 0.4, 0.7, 0.595], "n_cells": [9] * 4}, index=["scGPT", "random", "Harmony", "PCA"]
    )
    assert verdict(table, by="Overall") == (
        "scGPT: Overall 0.60 on 9 labelled cells, below Harmony (0.70, the best of them) and level with PCA (0.59)"
        " and above random (0.40)."
    )

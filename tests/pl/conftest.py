"""Cells that were annotated, in the slots of `tl.scgpt_annotate`; figures are closed, settings left as they were."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest


@pytest.fixture(autouse=True)
def settings_are_left_alone():
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    yield
    plt.close("all")
    assert dict(mpl.rcParams) == before


@pytest.fixture
def annotated():
    """300 cells of 4 types, two of them without a truth; a third of the calls is wrong, those below 0.5 are unknown."""
    rng = np.random.default_rng(0)
    classes = np.array(["B", "Mono", "NK", "T"])
    codes = rng.integers(0, 4, 300)
    scores = rng.normal(size=(300, 4)) + 2 * (codes[:, None] == np.arange(4))
    shares = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).astype(np.float32)
    called = np.where(shares.max(axis=1) < 0.5, "unknown", classes[shares.argmax(axis=1)])
    truth = classes[codes].astype(object)
    truth[[3, 7]] = None
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(truth),
            "condition": pd.Categorical(np.where(np.arange(300) < 200, "ctrl", "stim")),
            "scgpt_pred": pd.Categorical(called, categories=[*classes, "unknown"]),
            "scgpt_probability": shares.max(axis=1),
        },
        index=[f"c{i}" for i in range(300)],
    )
    data = ad.AnnData(obs=obs, obsm={"scgpt_probabilities": shares})
    data.uns["scgpt_pred"] = {"scgpt_tl": "tl.scgpt_annotate", "classes": classes, "params": {}}
    return data


@pytest.fixture
def same():
    """`same(before, after)`: nothing was written to an AnnData."""

    def check(before, after):
        pd.testing.assert_frame_equal(before.obs, after.obs)
        assert before.obs.columns.equals(after.obs.columns)
        assert set(before.uns) == set(after.uns)
        assert set(before.obsm) == set(after.obsm)
        for key in before.obsm:
            np.testing.assert_array_equal(before.obsm[key], after.obsm[key])

    return check


@pytest.fixture
def apart():
    """`apart(texts)`: no two of them lie on each other, once drawn."""

    def check(texts):
        shown = [text for text in texts if text.get_text()]
        shown[0].figure.canvas.draw()
        boxes = [text.get_window_extent().padded(2, 0) for text in shown]  # words need a gap
        pairs = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
        assert [(shown[i].get_text(), shown[j].get_text()) for i, j in pairs] == []

    return check

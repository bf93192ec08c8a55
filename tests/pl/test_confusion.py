from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from scgpt_tl import pl


def names(axis):
    return [label.get_text().replace("\n", " ") for label in axis.get_ticklabels()]


def test_shares_counts_and_frames(annotated, same):
    before = annotated.copy()
    ax = pl.confusion(annotated, truth_key="cell_type")
    kept = annotated.obs[annotated.obs["cell_type"].notna()]
    columns = ["B", "Mono", "NK", "T", "unknown"]
    expected = confusion_matrix(kept["cell_type"], kept["scgpt_pred"], labels=columns)[:4]
    types, unknown = (mesh.get_array() for mesh in ax.collections[:2])
    share = expected / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(types, share[:, :4])
    np.testing.assert_allclose(unknown, share[:, 4:])
    written = {(round(t.get_position()[0]), t.get_position()[1]): t.get_text() for t in ax.texts}
    assert {place: int(text.split("\n")[1]) for place, text in written.items()} == {
        (j, i): expected[i, j] for i, j in zip(*expected.nonzero(), strict=True)
    }
    assert written[0, 0].startswith(f"{100 * share[0, 0]:.0f}%")
    assert [round(frame.get_x() + 0.46) for frame in ax.patches] == [0, 1, 2, 3]
    right = 100 * np.trace(expected) / expected.sum()
    assert ax.get_title().startswith(f"{right:.1f}% called right")
    assert "2 without a true type left out" in ax.get_title()
    same(before, annotated)


def test_unknown_stands_apart_on_the_right(annotated):
    ax = pl.confusion(annotated, truth_key="cell_type")
    assert names(ax.xaxis) == ["B", "Mono", "NK", "T", "unknown"]
    np.testing.assert_allclose(np.diff(ax.get_xticks()), [1, 1, 1, 1.3])
    first = names(ax.yaxis)[0]
    assert first == f"B ({(annotated.obs['cell_type'] == 'B').sum()})"


def test_long_names_of_many_types_do_not_lie_on_each_other(apart):
    import anndata as ad

    rng = np.random.default_rng(0)
    kinds = [f"CD{i}-positive, alpha-beta memory T cell of the {i}th and other tissues" for i in range(12)]
    codes = rng.integers(0, 12, 600)
    obs = pd.DataFrame(
        {"truth": pd.Categorical.from_codes(codes, kinds), "scgpt_pred": pd.Categorical.from_codes(codes[::-1], kinds)},
        index=[str(i) for i in range(600)],
    )
    ax = pl.confusion(ad.AnnData(obs=obs), truth_key="truth")
    apart([*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label, ax.title])
    apart(ax.texts)
    low, high = ax.title.get_window_extent().y1, ax.figure.bbox.y1
    assert low <= high


def test_many_types_show_percentages_alone():
    import anndata as ad

    codes = np.repeat(np.arange(20), 3)
    names = [f"t{i}" for i in range(20)]
    obs = pd.DataFrame({"truth": pd.Categorical.from_codes(codes, names)}, index=[str(i) for i in range(60)])
    obs["mine"] = obs["truth"].astype(str)
    ax = pl.confusion(ad.AnnData(obs=obs), truth_key="truth", pred_key="mine")
    assert {text.get_text() for text in ax.texts} == {"100"}


def test_one_type_given_axes_own_title_other_method(annotated):
    one = annotated[annotated.obs["cell_type"] == "B"].copy()
    one.obs["logistic"] = "B"
    _, ax = plt.subplots()
    assert pl.confusion(one, truth_key="cell_type", pred_key="logistic", title="mine", ax=ax) is ax
    assert ax.get_title() == "mine"
    assert [text.get_text() for text in ax.texts] == [f"100%\n{one.n_obs}"]
    assert ax.get_xlabel() == "called (logistic)"


def test_frames_mark_equal_names_alone(annotated):
    annotated.obs["other"] = (
        annotated.obs["cell_type"].cat.rename_categories({"B": "bcells", "NK": "nk"}).astype(object)
    )
    ax = pl.confusion(annotated, truth_key="cell_type", pred_key="other")
    assert names(ax.xaxis) == ["Mono", "T", "bcells", "nk"]
    assert [label.split(" (")[0] for label in names(ax.yaxis)] == ["Mono", "T", "B", "NK"]
    assert len(ax.patches) == 2


def test_figures_read_on_their_cells(annotated):
    ax = pl.confusion(annotated, truth_key="cell_type")
    shades = {text.get_text().split("%")[0]: text.get_color() for text in ax.texts}
    assert {color for percent, color in shades.items() if percent in {"0", "1", "2", "3", "<1"}} <= {"black"}
    full = pl.confusion(annotated, truth_key="cell_type", pred_key="cell_type")
    assert {text.get_color() for text in full.texts} == {"white"}


def test_bad_input(annotated):
    with pytest.raises(KeyError, match=r"celltype.*cell_type"):
        pl.confusion(annotated, truth_key="celltype")
    del annotated.obs["scgpt_pred"]
    with pytest.raises(KeyError, match=r"scgpt_annotate\(query, reference=\.\.\.\) makes it"):
        pl.confusion(annotated, truth_key="cell_type")

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import pl


@pytest.fixture
def integrated():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["10x", "Drop-seq"], 80)),
            "cell_type": pd.Categorical(rng.choice([f"a type with a long name {i}" for i in range(9)], 80)),
        },
        index=[f"c{i}" for i in range(80)],
    )
    wide = rng.normal(size=(80, 8)) + 6 * (obs["batch"] == "10x").to_numpy()[:, None]
    flat = rng.normal(size=(80, 2))
    return ad.AnnData(
        obs=obs, obsm={"X_scGPT": wide, "X_scGPT_integrated": wide[::-1].copy(), "a": flat, "b": flat + 1}
    )


def drawn(ax):
    return np.concatenate([np.asarray(points.get_offsets()) for points in ax.collections])


def test_two_by_two_of_coordinates_as_they_stand(integrated, same):
    before = integrated.copy()
    panels = pl.integration(integrated, batch_key="batch", labels_key="cell_type", keys=["a", "b"])
    assert panels.shape == (2, 2)
    for row, key in enumerate("ab"):
        for ax, column in zip(panels[row], ("batch", "cell_type"), strict=True):
            assert ax.get_title() == f"{key}, by {column}"
            assert sorted(map(tuple, drawn(ax))) == sorted(map(tuple, integrated.obsm[key]))
    assert [ax.get_legend() is None for ax in panels.ravel()] == [True, True, False, False]
    assert [text.get_text() for text in panels[1, 0].get_legend().get_texts()] == ["1  10x", "2  Drop-seq"]
    same(before, integrated)


def test_umap_is_computed_seeded_and_kept_from_the_user(integrated, same):
    before = integrated.copy()
    panels = pl.integration(integrated, batch_key="batch", titles=["before", "after"])
    assert panels.shape == (2, 1)
    assert panels[0, 0].get_title() == "before, by batch"
    assert panels[0, 0].get_xlabel() == "UMAP 1"
    _, ax = plt.subplots()
    points = pl.integration(integrated, batch_key="batch", keys=["X_scGPT"], ax=ax)[0, 0]
    np.testing.assert_array_equal(drawn(panels[0, 0]), drawn(points))
    marks = integrated.obs["batch"] == "10x"
    colors = np.concatenate([c.get_facecolors() for c in points.collections if len(c.get_offsets())])
    x = drawn(points)
    groups = [x[(colors == color).all(axis=1)] for color in np.unique(colors, axis=0)]
    assert sorted(map(len, groups)) == sorted([marks.sum(), (~marks).sum()])
    gap = np.linalg.norm(groups[0].mean(axis=0) - groups[1].mean(axis=0))
    assert gap > max(group.std(axis=0).max() for group in groups)  # batches that lie apart are drawn apart
    same(before, integrated)


def test_more_cells_than_can_be_seen(integrated):
    panels = pl.integration(integrated, batch_key="batch", keys=["a", "b"], max_cells=30)
    left, right = drawn(panels[0, 0]), drawn(panels[1, 0])
    assert len(left) == 30
    np.testing.assert_allclose(left + 1, right)  # the same cells


def test_given_axes(integrated):
    _, axes = plt.subplots(2, 2)
    panels = pl.integration(integrated, batch_key="batch", labels_key="cell_type", keys=["a", "b"], ax=axes)
    assert panels.tolist() == axes.tolist()


def test_bad_input(integrated):
    options = {"batch_key": "batch", "keys": ["a", "b"]}
    with pytest.raises(ValueError, match=r"1 Axes for 2 embedding"):
        pl.integration(integrated, **options, ax=plt.gca())
    with pytest.raises(ValueError, match=r"2 key.*1 title"):
        pl.integration(integrated, **options, titles=["one"])
    with pytest.raises(KeyError, match=r"no column 'donor'.*batch"):
        pl.integration(integrated, **options | {"batch_key": "donor"})
    with pytest.raises(ValueError, match="at least 10"):
        pl.integration(integrated[:5], **options)
    integrated.obsm["a"][3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        pl.integration(integrated, **options)
    del integrated.obsm["X_scGPT_integrated"]
    with pytest.raises(KeyError, match=r"tl\.scgpt_integrate\(adata, batch_key=\.\.\.\) makes it"):
        pl.integration(integrated, batch_key="batch")


def test_numbers_name_batches(integrated):
    integrated.obs["batch"] = [10.0, 2.0] * 39 + [None, 2.0]
    panels = pl.integration(integrated, batch_key="batch", keys="a", titles="before")
    assert panels.shape == (1, 1)
    assert panels[0, 0].get_title() == "before, by batch"
    assert [text.get_text() for text in panels[0, 0].get_legend().get_texts()][:2] == ["2", "10"]
    assert pl.integration(integrated, batch_key="batch", labels_key="batch", keys=["a"]).shape == (1, 1)
    integrated.obs["score"] = np.linspace(0, 1, 80)
    with pytest.raises(ValueError, match="holds measurements"):
        pl.integration(integrated, batch_key="score", keys=["a"])

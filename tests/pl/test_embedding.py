from __future__ import annotations

import subprocess
import sys

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from scgpt_tl import pl
from scgpt_tl.pl._style import plain

mpl.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    kinds = np.array([f"cell type {i}" for i in range(10)] * 6, dtype=object)
    kinds[0] = None
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(kinds),
            "leiden": pd.Categorical([str(i % 3) for i in range(60)]),
            "depth": rng.normal(size=60),
        },
        index=[f"c{i}" for i in range(60)],
    )
    data = ad.AnnData(np.ones((60, 2), np.float32), obs=obs)
    data.obsm["X_umap"] = rng.normal(size=(60, 2))
    data.obsm["X_umap_pca"] = rng.normal(size=(60, 3))
    data.obsm["flat"] = rng.normal(size=(60, 1))
    yield data
    plt.close("all")


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_one_panel_every_cell_once_numbers_and_legend(adata):
    ax = pl.embedding(adata, color="cell_type")
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, adata.obsm["X_umap"]))
    assert ax.get_title() == "cell_type"
    assert ax.get_xlabel() == "UMAP 1"
    assert labels(ax) == [f"{i + 1}  cell type {i}" for i in range(10)] + ["no label (1)"]
    assert [text.get_text() for text in ax.texts] == [str(i + 1) for i in range(10)]
    ax.figure.canvas.draw()


def test_groups_beyond_the_palette_take_another_marker(adata):
    handles = pl.embedding(adata, color="cell_type").get_legend().legend_handles
    looks = {(handle.get_color(), handle.get_marker()) for handle in handles}
    assert len(looks) == 11
    assert len({handle.get_marker() for handle in handles}) == 2


def test_panels_side_by_side(adata):
    axes = pl.embedding(
        adata, color=["cell_type", "leiden", "depth"], basis=["X_umap", "X_umap", "X_umap_pca"], title=["a", "b", "c"]
    )
    assert [ax.get_title() for ax in axes] == ["a", "b", "c"]
    assert labels(axes[1]) == ["0", "1", "2"]
    assert axes[2].get_legend() is None
    np.testing.assert_array_equal(axes[2].collections[1].get_offsets(), adata.obsm["X_umap_pca"][:, :2])


@pytest.mark.parametrize("name", ["CD4$^{+$ x", "_{$a$", "$$", "_"])
def test_names_are_no_formulas(adata, name):
    """Neither of a category, in full and as its own mark, nor of a column."""
    adata.obs[name] = pd.Categorical([name, "b"] * 30)
    adata.obs[f"{name} of numbers"] = np.arange(60.0)
    axes = pl.embedding(adata, color=[name, f"{name} of numbers"])
    axes[0].figure.canvas.draw()
    assert len(labels(axes[0])) == 2
    assert any(text.endswith(plain(name)) for text in labels(axes[0]))
    assert [ax.get_title() for ax in axes] == [plain(name), plain(f"{name} of numbers")]


def test_given_axes_are_used_and_adata_is_left_alone(adata):
    before = adata.copy()
    _, ax = plt.subplots()
    assert pl.embedding(adata, color="leiden", ax=ax) is ax
    _, both = plt.subplots(1, 2)
    assert pl.embedding(adata, color=["leiden", "cell_type"], ax=both) == list(both)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert set(adata.uns) == set(before.uns)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"color": "celltype"}, KeyError, "cell_type"),
        ({"color": "leiden", "basis": "X_tsne"}, KeyError, r"scanpy\.tl\.umap"),
        ({"color": "leiden", "basis": "flat"}, ValueError, "one dimension"),
        ({"color": []}, ValueError, "0 colour"),
        ({"color": "leiden", "rows": slice(0)}, ValueError, "no cell to draw"),
        ({"color": ["leiden", "depth"], "title": "one"}, ValueError, r"1 title"),
        ({"color": ["leiden", "depth"], "ax": []}, ValueError, "0 Axes for 2"),
    ],
)
def test_bad_input(adata, options, error, says):
    with pytest.raises(error, match=says):
        pl.embedding(adata[options.pop("rows", slice(None))], **options)


def test_no_torch():
    code = "import sys, scgpt_tl; scgpt_tl.pl.embedding; scgpt_tl.pl.training_history; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_categories_without_cells_keep_their_colour_and_are_not_listed():
    adata = ad.AnnData(np.ones((40, 1), np.float32))
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(40, 2))
    adata.obs["called"] = pd.Categorical(np.repeat(["B", "mono"], 20), categories=["B", "empty", "mono", "unknown"])
    legend = pl.embedding(adata, color="called").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["1  B", "3  mono"]
    assert [handle.get_color() for handle in legend.legend_handles] == ["#0072B2", "#009E73"]

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest

from scgpt_tl import _demo, cli, models, pp, tl


@pytest.fixture
def stand_ins(monkeypatch):
    """Embeddings out of a hat: the cell type shines through the model's, not through the random network's."""

    def embed(adata, *, model, key_added=None, **_):
        rng = np.random.default_rng(0)
        emb = rng.normal(size=(adata.n_obs, 8)).astype(np.float32)
        if key_added is None and "cell_type" in adata.obs:
            emb[:, :3] += 6 * np.eye(3)[adata.obs["cell_type"].cat.codes]
        adata.obsm[key_added or "X_scGPT"] = emb

    network = SimpleNamespace(name="m")
    monkeypatch.setitem(vars(tl), "scgpt_embed", embed)
    monkeypatch.setitem(vars(pp), "check_input", lambda *_, **__: "the report")
    monkeypatch.setitem(vars(models), "load_model", lambda _: network)
    monkeypatch.setitem(vars(models), "with_random_weights", lambda _: network)


@pytest.fixture
def stored(toy, tmp_path):
    path = tmp_path / "cells.h5ad"
    toy(60, 50).write_h5ad(path)
    return path


def test_picture_file_and_table(stored, stand_ins, tmp_path):
    said = []
    made = _demo.run_demo(stored, out=tmp_path / "demo", model="m", say=said.append)
    assert made.picture.read_bytes().startswith(b"\x89PNG")
    written = ad.read_h5ad(made.data)
    assert {"X_scGPT", "scGPT_random", "X_hvg_pca", "X_umap", "X_umap_hvg_pca"} == set(written.obsm)
    assert "scgpt_leiden" in written.obs
    assert list(made.table.index) == ["scGPT", "HVG + PCA", "random weights"]
    assert made.table.loc["scGPT", "AvgBIO"] > made.table.loc["random weights", "AvgBIO"]
    assert "the report" in said
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [_demo.MADE, "pbmc.h5ad", "umap.png"]
    _demo.run_demo(stored, out=tmp_path / "demo", model="m")  # a second run replaces the first


def test_without_labels_clusters_are_drawn_and_it_is_said(toy, stand_ins, tmp_path, capsys):
    adata = toy(60, 50)
    del adata.obs["cell_type"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "demo"
    assert cli.main(["demo", "--data", str(tmp_path / "cells.h5ad"), "--out", str(out), "--model", "m"]) == 0
    text = capsys.readouterr().out
    assert "No column of cell types" in text
    assert "AvgBIO" not in text
    assert (out / "umap.png").exists()


def test_bundled_cells_say_where_they_come_from(stand_ins, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Zheng et al. 2017" in text
    assert "same study: other cells" in text
    assert "bulk_labels" in text
    assert "AvgBIO" in text
    assert "HVG + PCA" in text
    assert ad.read_h5ad(tmp_path / "pbmc.h5ad").shape == (700, 765)


def test_labels_are_guessed_in_order_and_useless_columns_passed_over(toy):
    adata = toy(60, 50)
    adata.obs["louvain"] = adata.obs["cell_type"].to_numpy()
    assert _demo._labels(adata, None)[0] == "cell_type"
    assert _demo._labels(adata, "batch") == ("batch", "")
    adata.obs["cell_type"] = "one"
    label, note = _demo._labels(adata, None)
    assert label == "louvain"
    assert "not a truth" in note
    with pytest.raises(KeyError, match="--labels-key may be one of"):
        _demo._labels(adata, "absent")


def test_scaled_values_give_way_to_raw(toy, tmp_path):
    adata = toy(60, 50)
    adata.raw = adata.copy()
    adata.X = adata.X.toarray() - 1
    adata.write_h5ad(tmp_path / "scaled.h5ad")
    read, about = _demo._read(tmp_path / "scaled.h5ad")
    assert read.X.min() == 0
    assert ".raw is read" in about


def test_too_many_cells(stored, monkeypatch):
    monkeypatch.setattr(_demo, "MOST_CELLS", 50)
    with pytest.raises(ValueError, match="scgpt-tl embed"):
        _demo._read(stored)


def test_the_input_is_never_replaced(stored, stand_ins, tmp_path, capsys):
    data = stored.rename(tmp_path / "pbmc.h5ad")
    before = data.read_bytes()
    for more in ([], ["--overwrite"]):
        assert cli.main(["demo", "--data", str(data), "--out", str(tmp_path), "--model", "m", *more]) == 1
        assert "pbmc.h5ad is what is read" in capsys.readouterr().err
    assert data.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["pbmc.h5ad"]


@pytest.mark.parametrize("name", _demo.FILES)
def test_files_of_others_are_replaced_only_when_said(stored, stand_ins, monkeypatch, tmp_path, name):
    out = tmp_path / "demo"
    out.mkdir()
    (out / name).write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(_demo, "_read", lambda _: pytest.fail("read"))
        with pytest.raises(FileExistsError, match=f"{name} exists; choose another name, or give overwrite=True"):
            _demo.run_demo(stored, out=out, model="m")
    assert (out / name).read_text() == "mine"
    _demo.run_demo(stored, out=out, model="m", overwrite=True)
    _demo.run_demo(stored, out=out, model="m")  # now it is a demo's
    with (out / name).open("ab") as file:
        file.write(b"notes of mine")
    with pytest.raises(FileExistsError, match=f"{name} exists"):
        _demo.run_demo(stored, out=out, model="m")

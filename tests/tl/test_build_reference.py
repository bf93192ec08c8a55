"""`tl.build_reference`: what the folder holds, adding to it, what a crash leaves, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from scgpt_tl.engine import reference as folders
from scgpt_tl.engine.reference import Head, read
from scgpt_tl.models.model import load_model, with_random_weights
from scgpt_tl.tl import _build_reference as module
from scgpt_tl.tl._build_reference import build_reference
from scgpt_tl.tl._embed import scgpt_embed

MODEL = load_model(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")


def build(data: ad.AnnData, out: Path, **options: Any) -> Path:
    appends = options.get("append", False)
    return build_reference(data, out=out, **({} if appends else {"model": MODEL}) | {"progress": False} | options)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_folder(counts: ad.AnnData, tmp_path: Path):
    counts.obs["cell_type"] = counts.obs["cell_type"].astype(object)
    counts.obs.loc[counts.obs_names[:3], "cell_type"] = [None, "", "unknown"]
    before = counts.copy()
    assert build(counts, tmp_path / "r", labels_key="cell_type", batch_key="batch") == tmp_path / "r"
    assert sorted(counts.obsm) == sorted(before.obsm)
    held = read(tmp_path / "r")
    scgpt_embed(counts, model=MODEL, progress=False)
    np.testing.assert_allclose(held.embedding[0:40], counts.obsm["X_scGPT"], atol=1e-6)
    assert held.codes.dtype == np.int32
    assert held.about.classes == ("B", "NK", "T")
    names = np.array([*held.about.classes, None], dtype=object)[held.codes]
    assert names.tolist() == [None, None, None, *counts.obs["cell_type"].tolist()[3:]]
    assert held.about.model == {
        "name": "ckpt", "weights_sha256": MODEL.sha256, "vocab_sha256": MODEL.vocab.sha256, "copied": True,
        "config_sha256": held.about.model["config_sha256"],
    }  # fmt: skip
    assert load_model(tmp_path / "r" / "model").sha256 == MODEL.sha256
    assert held.about.genes == tuple(sorted(counts.var_names))
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_model_with_a_name_is_not_copied(tmp_path: Path):
    cells = ad.AnnData(np.ones((12, 30), np.float32) * np.arange(1, 31), var=pd.DataFrame(index=genes_of_mini(30)))
    cells.X = cells.X * (np.random.default_rng(0).random((12, 30)) < 0.6)
    folder = build_reference(cells, out=tmp_path / "r", progress=False)
    about = read(folder).about
    assert (about.model["name"], about.model["copied"], about.labels_key) == ("pbmc-mini", False, None)
    assert not (folder / "model").exists()


def genes_of_mini(n: int) -> list[str]:
    from scgpt_tl.genes.bundle import read_bundle

    return list(read_bundle("pbmc-mini").vocab.genes[:n])


@pytest.mark.parametrize("storage", ["backed", "view"])
def test_cells_on_disk_give_the_same(counts: ad.AnnData, tmp_path: Path, storage: str):
    build(counts, tmp_path / "a", labels_key="cell_type")
    counts.write_h5ad(tmp_path / "x.h5ad")
    given = ad.read_h5ad(tmp_path / "x.h5ad", backed="r") if storage == "backed" else counts[:]
    build(given, tmp_path / "b", labels_key="cell_type")
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    np.testing.assert_array_equal(a.embedding[0:40], b.embedding[0:40])
    assert files(tmp_path / "a").keys() == files(tmp_path / "b").keys()


def test_an_embedding_never_lies_in_memory(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It goes to the file by blocks, and is read from it by slices."""
    from scgpt_tl.tl import _space

    wrote, asked = [], []
    put, get = folders.ArrayFile.__setitem__, folders.Shards.__getitem__
    monkeypatch.setattr(_space, "ROWS", 16)
    monkeypatch.setattr(folders.ArrayFile, "__setitem__", lambda s, r, v: (wrote.append(len(v)), put(s, r, v))[1])
    monkeypatch.setattr(folders.Shards, "__getitem__", lambda s, r: (asked.append(r), get(s, r))[1])
    build(toy(50), tmp_path / "r", labels_key="cell_type")
    assert wrote == [16, 16, 16, 2]
    assert asked


# ---- adding


def test_what_is_added_counts_as_if_it_had_been_there(toy, tmp_path: Path):
    whole = toy(60)
    options = {"labels_key": "cell_type", "batch_key": "batch"}
    build(whole, tmp_path / "a", **options)
    first, second = whole[:35].copy(), whole[35:].copy()
    second.obs["kind"] = second.obs["cell_type"]
    build(first, tmp_path / "b", **options)
    build(second, tmp_path / "b", append=True, labels_key="kind")
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    np.testing.assert_allclose(a.embedding[0:60], b.embedding[0:60], atol=1e-6)
    label = np.array(a.about.classes)[a.codes], np.array(b.about.classes)[b.codes]
    np.testing.assert_array_equal(*label)
    np.testing.assert_array_equal(a.keys, b.keys)
    np.testing.assert_allclose(a.sample.distances, b.sample.distances, atol=1e-6)


def test_new_labels_batches_and_genes_join_the_old(toy, tmp_path: Path):
    first = toy(40)
    build(first, tmp_path / "r", labels_key="cell_type", batch_key="batch")
    second = toy(20, seed=1)[:, 10:].copy()
    second.obs["cell_type"], second.obs["batch"] = "Mono", "c"  # one type alone may be added
    build(second, tmp_path / "r", append=True)
    held = read(tmp_path / "r")
    assert held.about.classes == ("B", "NK", "T", "Mono")
    assert held.about.batches == ("a", "b", "c")
    assert (held.codes[40:] == 3).all()
    assert len(held.about.genes) == 60


@pytest.mark.parametrize("where", ["write_shard", "write_sample", "_write_embedding", "Head"])
def test_a_crash_leaves_the_reference_as_it_was(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    folder = build(toy(30), tmp_path / "r", labels_key="cell_type")
    before = files(folder)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "Head":
            patch.setattr(Head, "write", die)
        else:
            patch.setattr(module, where, die)
        with pytest.raises(KeyboardInterrupt):
            build(toy(20, seed=1), folder, append=True)
    after = files(folder)
    assert all(after[name] == content for name, content in before.items())
    assert read(folder).n_cells == 30
    build(toy(20, seed=1), folder, append=True)  # over what was left
    assert read(folder).n_cells == 50


def test_a_crash_of_a_new_one_leaves_nothing(counts: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build(counts, tmp_path / "r", labels_key="cell_type")
    before = files(tmp_path / "r")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_sample", die)
    for name in ("r", "new"):
        with pytest.raises(KeyboardInterrupt):
            build(counts, tmp_path / name, labels_key="cell_type", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert files(tmp_path / "r") == before


def test_another_process_is_adding(counts: ad.AnnData, tmp_path: Path):
    folder = build(counts, tmp_path / "r", labels_key="cell_type")
    with FileLock(tmp_path / ".r.lock"):
        for options in ({"append": True}, {"labels_key": "cell_type", "overwrite": True}):
            with pytest.raises(OSError, match=r"another process is writing .*r; call again"):
                build(counts, folder, **options)
    with FileLock(tmp_path / ".new.lock"), pytest.raises(OSError, match="another process is writing"):
        build(counts, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == ["r"]


def test_what_killed_processes_left_goes(toy, tmp_path: Path):
    folder = build(toy(30), tmp_path / "r", labels_key="cell_type")
    (folder / ".embedding-001.npy.77.npy").write_text("half")
    (tmp_path / ".r.77.tmp" / "model").mkdir(parents=True)
    (tmp_path / ".rr.77.tmp").mkdir()  # another's
    build(toy(20, seed=1), folder, append=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".rr.77.tmp", "r"]
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
    folder.rename(tmp_path / ".r.78.old")  # killed between the two renamings of an overwriting
    with pytest.raises(FileExistsError, match="holds a reference already"):
        build(toy(30), folder, labels_key="cell_type")
    assert read(folder).n_cells == 50


def test_the_same_cells_are_not_added_again(toy, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = toy(60)
    folder = build(first, tmp_path / "r", labels_key="cell_type")
    before = files(folder)
    again = first.copy()
    again.obs_names = [f"x{i}" for i in range(60)]
    with pytest.raises(ValueError, match=r"60 of the 60 cells are in .* already \(under whatever name\)"):
        build(again, folder, append=True)
    assert files(folder) == before
    half = ad.concat([again[:20], toy(20, seed=1)])
    with caplog.at_level(logging.WARNING):
        build(half, folder, append=True)
    assert "20 of the 40 cells are in the reference already" in caplog.text
    held = read(folder)
    assert held.sample.distances.min() > 1e-6  # twins are left out
    assert np.unique(held.keys).size == 80


def test_batches_are_spelled_alike(toy, tmp_path: Path):
    first, second = toy(30), toy(20, seed=1)
    first.obs["batch"], second.obs["batch"] = np.arange(30) % 2, (np.arange(20) % 2).astype(float)
    build(first, tmp_path / "r", labels_key="cell_type", batch_key="batch")
    build(second, tmp_path / "r", append=True)
    assert read(tmp_path / "r").about.batches == ("0", "1")


def test_data_that_cannot_be_read_are_not_taken_for_a_full_disk(counts, tmp_path: Path, monkeypatch):
    from scgpt_tl.pp._blocks import Matrix

    def fail(*_: Any) -> None:
        msg = "Can't synchronously read data"
        raise OSError(msg)

    monkeypatch.setattr(Matrix, "blocks", fail)
    for check in (module.Space.check, lambda *_: None):
        monkeypatch.setattr(module.Space, "check", check)
        with pytest.raises(OSError, match=r"^the data cannot be read: Can't synchronously"):
            build(counts, tmp_path / "r", labels_key="cell_type")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": with_random_weights(MODEL)}, ValueError, "embedded with 'ckpt'.*model='ckpt-random' is another"),
        ({"rng": 3}, ValueError, r"rng=3: .* embedded with rng=0"),
        ({"batch_key": "batch"}, ValueError, "batch_key='batch': the reference was built without one"),
        ({"labels_key": "celltype"}, KeyError, "labels_key='celltype' is not in .obs.*did you mean 'cell_type'"),
        ({"overwrite": True}, ValueError, "append=True keeps"),
    ],
)
def test_what_cannot_be_added(counts: ad.AnnData, tmp_path: Path, options, error, says):
    folder = build(counts, tmp_path / "r", labels_key="cell_type")
    before = files(folder)
    with pytest.raises(error, match=says):
        build(counts, folder, append=True, **options)
    assert files(folder) == before


def test_genes_of_another_panel_are_not_added(toy, tmp_path: Path):
    folder = build(toy(30)[:, :40], tmp_path / "r", labels_key="cell_type")
    with pytest.raises(ValueError, match="share 0 genes of the model"):
        build(toy(30)[:, 40:], folder, append=True)
    with pytest.raises(FileNotFoundError, match="is not there"):
        build(toy(30), tmp_path / "absent", append=True)


# ---- bad input


@pytest.mark.parametrize(
    ("change", "options", "error", "says"),
    [
        (None, {"labels_key": "celltype"}, KeyError, "did you mean 'cell_type'"),
        (None, {"batch_key": "donor"}, KeyError, r"batch_key='donor' is not in \.obs \(there: 'cell_type', 'batch'\)"),
        ({"cell_type": "T"}, {"labels_key": "cell_type"}, ValueError, "one type, 'T'; two or more"),
        ({"cell_type": None}, {"labels_key": "cell_type"}, ValueError, "no type at all"),
        ({"cell_type": np.linspace(0, 1, 40)}, {"labels_key": "cell_type"}, ValueError, "numbers with fractions"),
        ({"batch": [None] + ["a"] * 39}, {"batch_key": "batch"}, ValueError, "1 cells have no 'batch'"),
        (None, {"layer": "raw"}, ValueError, "layer 'raw' is not in"),
        (None, {"device": "gpu0"}, ValueError, "device='gpu0' is not a device"),
        (None, {"label_key": "cell_type"}, TypeError, "did you mean 'labels_key'"),
    ],
)
def test_what_is_refused_before_anything_is_written(counts, tmp_path: Path, change, options, error, says):
    for name, value in (change or {}).items():
        counts.obs[name] = value
    with pytest.raises(error, match=says):
        build(counts, tmp_path / "r", **options)
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken(counts: ad.AnnData, tmp_path: Path):
    folder = build(counts, tmp_path / "r", labels_key="cell_type")
    with pytest.raises(FileExistsError, match=r"holds a reference already; .*overwrite=True"):
        build(counts, folder, labels_key="cell_type")
    build(counts[:20], folder, labels_key="cell_type", overwrite=True)
    assert read(folder).n_cells == 20
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="no reference"):
        build(counts, tmp_path / "mine", overwrite=True)
    with pytest.raises(TypeError, match=r"data is str; .*read_h5ad\(path, backed='r'\)"):
        build("x.h5ad", tmp_path / "s")


def test_what_is_said(counts: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    counts.obs["batch"] = "a"
    counts.obs["cell_type"] = counts.obs["cell_type"].astype(object)
    counts.obs.loc[counts.obs_names[:4], "cell_type"] = None
    with caplog.at_level(logging.WARNING):
        build(counts, tmp_path / "r", labels_key="cell_type", batch_key="batch")
    assert "4 of 40 cells have no label in 'cell_type': they are kept, and do not vote" in caplog.text
    assert "no type lies in two batches" in caplog.text


def test_one_labelled_batch_of_several(counts: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Else no cell would have a neighbour of another batch, and none would ever be unknown."""
    counts.obs["batch"] = np.repeat(["a", "b"], 20)
    counts.obs["cell_type"] = counts.obs["cell_type"].astype(object)
    counts.obs.loc[counts.obs_names[20:], "cell_type"] = None
    with caplog.at_level(logging.WARNING):
        build(counts, tmp_path / "r", labels_key="cell_type", batch_key="batch")
    assert "no type lies in two batches" in caplog.text
    assert np.isfinite(read(tmp_path / "r").sample.distances).any()


def test_what_missing_values_become_as_text_is_no_type():
    """The rule is that of tl.scgpt_annotate."""
    from scgpt_tl.tl._columns import _labels

    adata = ad.AnnData(np.ones((5, 2), np.float32))
    adata.obs["type"] = ["a ", "nan", "b", "<NA>", "Unknown"]
    codes, classes = _labels(adata, "type", 2)
    assert classes == ("a", "b")
    assert codes.tolist() == [0, -1, 1, -1, -1]

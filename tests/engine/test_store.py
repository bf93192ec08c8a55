"""Embeddings on disk: what a run that was cut off leaves, and who may go on with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from scgpt_tl.engine.predict import Seen
from scgpt_tl.engine.store import EmbeddingStore

RUN = {"model": "m", "seed": 3, "groups": (1, 2)}


def opened(path: Path, shape: tuple[int, int] = (10, 4), run: dict = RUN, *, overwrite: bool = False) -> EmbeddingStore:
    return EmbeddingStore.open(path, shape, run, overwrite=overwrite)


def test_rows_are_written_and_read_back(tmp_path: Path):
    store = opened(tmp_path / "e.zarr")
    assert (store.start, store.seen) == (0, Seen())
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    store[0:6] = values[:6]
    held = zarr.open_array(tmp_path / "e.zarr", mode="r")
    assert (held.shape, held.dtype) == ((10, 4), np.float32)
    np.testing.assert_array_equal(held[:6], values[:6])
    assert np.isnan(held[6:]).all()  # what is missing is not a number


def test_going_on(tmp_path: Path):
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    first = opened(tmp_path / "e.zarr")
    first.seen.n_cells, first.seen.n_empty = 6, 1
    first[0:6] = values[:6]
    second = opened(tmp_path / "e.zarr")
    assert (second.start, second.seen) == (6, Seen(n_cells=6, n_empty=1))
    second.seen.n_cells += 4
    second[0:4] = values[6:]  # rows are counted from where it went on
    third = opened(tmp_path / "e.zarr")
    assert (third.start, third.seen.n_cells) == (10, 10)
    np.testing.assert_array_equal(third.array[:], values)


def test_a_block_that_was_not_announced_is_done_again(tmp_path: Path):
    """Rows reach the disk before the mark does: a cut between the two costs a block, never a hole."""
    store = opened(tmp_path / "e.zarr")
    store[0:5] = np.ones((5, 4), np.float32)
    store.array[5:10] = 2
    assert opened(tmp_path / "e.zarr").start == 5


@pytest.mark.parametrize(
    ("shape", "run", "named"),
    [
        ((10, 4), RUN | {"seed": 4}, "different: seed"),
        ((10, 4), RUN | {"model": "n", "groups": ()}, "different: groups, model"),
        ((10, 4), RUN | {"more": 1}, "different: more"),
        ((11, 4), RUN, "different: shape"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, shape: tuple[int, int], run: dict, named: str):
    store = opened(tmp_path / "e.zarr")
    store[0:10] = np.ones((10, 4), np.float32)
    with pytest.raises(FileExistsError, match=rf"holds another run \({named}\): give another path, or overwrite=True"):
        opened(tmp_path / "e.zarr", shape, run)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "e.zarr", mode="r")[:], 1)
    anew = opened(tmp_path / "e.zarr", shape, run, overwrite=True)
    assert (anew.start, anew.array.shape) == (0, shape)
    assert np.isnan(anew.array[:]).all()


def test_what_is_not_ours_is_refused_and_left(tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    (tmp_path / "file.txt").write_text("keep")
    foreign = zarr.create_array(store=tmp_path / "foreign.zarr", shape=(10, 4), dtype="float32")
    foreign[:] = 5
    group = zarr.open_group(tmp_path / "group.zarr", mode="w")
    group.create_array("x", shape=(3,), dtype="int32")
    beside = opened(tmp_path / "beside.zarr")
    beside[0:10] = np.ones((10, 4), np.float32)
    (tmp_path / "beside.zarr" / "notes.txt").write_text("keep")
    for name in ("mine", "file.txt", "foreign.zarr", "group.zarr", "beside.zarr"):
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match=f"{name}.*is no embedding of ours: give another path"):
                opened(tmp_path / name, overwrite=overwrite)
    np.testing.assert_array_equal(beside.array[:], 1)
    assert (folder / "notes.txt").read_text() == (tmp_path / "file.txt").read_text() == "keep"
    np.testing.assert_array_equal(foreign[:], 5)
    assert list(group) == ["x"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_may_be_filled(tmp_path: Path, overwrite: bool):
    assert opened(tmp_path, overwrite=overwrite).start == 0


@pytest.mark.parametrize("out", ["", ".", ".."])
def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"could be made or replaced: add a name, as in '.*embedding\.zarr'"):
        EmbeddingStore.open(out, (10, 4), RUN, overwrite=True)
    assert list((tmp_path / "here").iterdir()) == []


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    EmbeddingStore.open("~/e.zarr", (10, 4), RUN, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["e.zarr"]


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        opened(tmp_path / "file" / "e.zarr")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_was_killed_is_no_other_hand(tmp_path: Path, overwrite: bool):
    """zarr writes each file beside and renames it."""
    out = tmp_path / "e.zarr"
    out.mkdir()
    (out / "zarr.0123456789abcdef.partial").touch()  # killed as the run began
    store = EmbeddingStore.open(out, (3, 2), {"seed": 0}, overwrite=overwrite)
    store[0:3] = np.ones((3, 2), np.float32)
    (out / "zarr.fedcba9876543210.partial").touch()  # killed as rows were announced
    again = EmbeddingStore.open(out, (3, 2), {"seed": 0}, overwrite=overwrite)
    assert again.start == (0 if overwrite else 3)
    (out / "notes.partial").touch()
    with pytest.raises(FileExistsError, match="no embedding of ours"):
        EmbeddingStore.open(out, (3, 2), {"seed": 0}, overwrite=overwrite)

"""The reference folder: files as one array, parts named and checked, what is half there or changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scgpt_tl.engine.mapping import Sample
from scgpt_tl.engine.reference import (
    HEAD,
    About,
    ArrayFile,
    Head,
    Shards,
    batches_of,
    merged,
    read,
    with_genes,
    write_sample,
    write_shard,
)

ABOUT = About({"name": "m"}, {"seed": 0}, ("A", "B"), "kind", ("x", "y"), "donor", ("1",))


def written(folder: Path, sizes: tuple[int, ...] = (5, 3)) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((sum(sizes), 4)).astype(np.float32)
    folder.mkdir()
    shards, start = [], 0
    for number, n in enumerate(sizes):
        sink = ArrayFile(folder / f"embedding-{number:03d}.npy", (n, 4))
        sink[0:2], sink[2:n] = x[start : start + 2], x[start + 2 : start + n]
        sink.close()
        rows = np.arange(start, start + n)
        arrays = {"keys": rows.astype(np.uint64), "labels": (rows % 3 - 1).astype(np.int32), "batches": rows * 0}
        shards.append(write_shard(folder, number, arrays))
        start += n
    sample = Sample(np.ones((2, 3), np.float32), np.zeros((2, 3), np.int32), np.zeros(2, np.int32))
    Head(ABOUT, tuple(shards), write_sample(folder, 0, sample)).write(folder)
    return folder, x


def test_what_is_written_is_read(tmp_path: Path):
    folder, x = written(tmp_path / "r")
    held = read(folder)
    assert (held.about, held.n_cells, held.folder) == (ABOUT, 8, folder)
    np.testing.assert_array_equal(held.embedding[0:8], x)
    np.testing.assert_array_equal(held.codes, np.arange(8) % 3 - 1)
    np.testing.assert_array_equal(held.keys, np.arange(8))
    np.testing.assert_array_equal(batches_of(folder, Head.read(folder)), np.zeros(8))
    assert held.sample.distances.shape == (2, 3)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_any_slice_of_several_files(tmp_path: Path):
    folder, x = written(tmp_path / "r", (5, 3, 4))
    shards = Shards(sorted(folder.glob("embedding-*")))
    assert shards.shape == (12, 4)
    for start in range(13):
        for stop in range(start, 15):
            np.testing.assert_array_equal(shards[start:stop], x[start:stop])
    assert isinstance(shards[1:4].base, np.memmap) or isinstance(shards[1:4], np.memmap)  # no copy within a file


def test_files_that_are_replaced_are_read_as_they_were(tmp_path: Path):
    folder, x = written(tmp_path / "r")
    held = read(folder)
    folder.rename(tmp_path / "old")
    written(folder, (2, 2))
    shutil.rmtree(tmp_path / "old")
    np.testing.assert_array_equal(held.embedding[0:8], x)
    opened = held.embedding._files
    del held
    assert all(file.closed for file in opened)


def test_rows_come_in_their_order(tmp_path: Path):
    sink = ArrayFile(tmp_path / "a.npy", (4, 2))
    sink[0:2] = np.ones((2, 2))
    with pytest.raises(ValueError, match="row 3 came after row 1"):
        sink[3:4] = np.ones((1, 2))
    sink.close()


def test_names_of_two_times():
    names, codes = merged(("b", "a"), ("a", "c"), np.array([0, 1, -1, 1]))
    assert (names, codes.tolist()) == (("b", "a", "c"), [1, 2, -1, 2])
    assert with_genes(ABOUT, ["C", "A"]).genes == ("A", "B", "C")


def test_no_reference(tmp_path: Path, tiny: Path):
    with pytest.raises(FileNotFoundError, match=r"is not there.*tl\.build_reference makes one"):
        read(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"is no reference: it has no reference\.json"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="is a model"):
        read(tiny)


@pytest.mark.parametrize("part", ["embedding-001.npy", "labels-000.npy", "keys-001.npy", "sample-000.npz"])
def test_parts_that_are_missing_or_changed(tmp_path: Path, part: str):
    folder, _ = written(tmp_path / "r")
    file = folder / part
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{part} was changed"):
        read(folder)
    file.write_bytes(before[:-3])
    with pytest.raises(ValueError, match=f"{part} was changed"):
        read(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {part}"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held | {"version": 3}, "version 3, this scgpt_tl reads 2: a newer release is needed"),
        (lambda held: held | {"version": 1}, "version 1, this scgpt_tl reads 2: build the reference again"),
        (lambda held: held | {"format": "other"}, "has the format 'other'"),
        (lambda held: held | {"about": held["about"] | {"classes": ["y", "x"]}}, "was changed after it was written"),
        (lambda held: held | {"sha256": "0"}, "was changed after it was written"),
        (lambda held: [held], "holds a list"),
    ],
)
def test_a_head_edited_by_hand(tmp_path: Path, change, says: str):
    folder, _ = written(tmp_path / "r")
    file = folder / HEAD
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=says):
        read(folder)
    file.write_text(file.read_text()[:40])
    with pytest.raises(ValueError, match="is not JSON"):
        read(folder)

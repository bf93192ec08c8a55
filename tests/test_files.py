from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from scgpt_tl._files import check_target, clear_stale, named_folder, refuse_source, replacing


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a.npy"
    with replacing(path) as beside:
        assert beside.parent == path.parent
        assert beside.suffix == ".npy"
        beside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_its_content_is_on_disk_before_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("os.fsync", lambda _: done.append((tmp_path / "a.npy").exists()))
    with replacing(tmp_path / "a.npy") as beside:
        beside.write_text("new")
    assert done == [False]


def test_leavings_are_cleared(tmp_path):
    for name in (".a.npy.12.npy", ".b.12.tmp", ".b", "a.12.npy", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / ".a.zarr.3.zarr").mkdir()
    clear_stale(tmp_path, "a.+")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b", ".b.12.tmp", ".hidden", "a.12.npy"]
    clear_stale(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b", ".hidden", "a.12.npy"]


def write_half(path, error, *, folder=False):
    with replacing(path) as beside:
        if folder:
            beside.mkdir()
        (beside / "chunk" if folder else beside).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_or_not_at_all(tmp_path, error):
    path = tmp_path / "a.npy"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_half_folder_goes_too(tmp_path):
    with pytest.raises(ValueError):  # noqa: PT011 - raised by the test itself
        write_half(tmp_path / "a.zarr", ValueError, folder=True)
    assert list(tmp_path.iterdir()) == []


def test_targets_are_checked_before_work(tmp_path, monkeypatch):
    path = tmp_path / "a.h5ad"
    check_target(path)
    path.touch()
    with pytest.raises(FileExistsError, match="overwrite=True to replace it"):
        check_target(path)
    check_target(path, overwrite=True)
    with pytest.raises(FileNotFoundError, match="make it"):
        check_target(tmp_path / "absent" / "a.h5ad")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1_000_000))
    with pytest.raises(OSError, match=r"about 5 MB .* has 1 MB"):
        check_target(path, n_bytes=5_000_000, overwrite=True)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written"):
        check_target(path, overwrite=True)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/.."])
def test_a_folder_without_a_name_of_its_own_is_refused(name):
    with pytest.raises(ValueError, match=r"is no folder that could be made or replaced: add a name, as in '.*e\.zarr'"):
        named_folder(name, example="e.zarr")
    assert named_folder("~/a") == Path.home() / "a"


@pytest.mark.parametrize(
    ("target", "how"), [("a.zarr", "is"), ("link", "is"), ("", "holds"), ("a.zarr/b/c", "lies in"), ("b.zarr", "")]
)
def test_what_is_read_is_no_target(tmp_path, target, how):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a.zarr")
    if not how:
        refuse_source(tmp_path / target, tmp_path / "a.zarr", "out")
        return
    with pytest.raises(ValueError, match=f"^out .* {how} what is read, .*a.zarr: give another place"):
        refuse_source(tmp_path / target, tmp_path / "a.zarr", "out")

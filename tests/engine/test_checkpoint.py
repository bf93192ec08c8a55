"""A run's folder: whose it is, and checkpoints that are whole or not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from scgpt_tl.engine import checkpoint, devices
from scgpt_tl.engine.checkpoint import claimed
from scgpt_tl.engine.config import TrainConfig

if TYPE_CHECKING:
    from lightning.fabric import Fabric

RUN = {"seed": 0, "train": {"epochs": 3}, "data": [{"name": "a"}]}


@pytest.fixture
def fabric() -> Fabric:
    return devices.fabric_for(TrainConfig(device="cpu"), Path())


def test_a_folder_is_claimed_and_claimed_again(tmp_path: Path):
    folder = tmp_path / "deep" / "m.training"
    for _ in range(2):
        with claimed(folder, RUN, resume=True):
            assert json.loads((folder / "run.json").read_text()) == RUN
            (folder / "last.ckpt").touch()
    with claimed(folder, RUN, resume=False):
        assert not (folder / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, "other seed: seed was 0 and is 1"),
        ({"train": {"epochs": 4}}, r"other train: train\.epochs was 3 and is 4"),
        ({"data": [{"name": "b"}]}, "other data: data: 'b' is new; data: 'a' is missing"),
    ],
)
def test_another_run_is_refused_and_nothing_is_lost(tmp_path: Path, other: dict, said: str):
    folder = tmp_path / "m"
    with claimed(folder, RUN, resume=True):
        (folder / "last.ckpt").write_text("x")
    with pytest.raises(ValueError, match=said), claimed(folder, RUN | other, resume=True):
        pass
    assert (folder / "last.ckpt").read_text() == "x"


def test_another_run_without_a_checkpoint_holds_nothing(tmp_path: Path):
    folder = tmp_path / "m"
    with claimed(folder, RUN, resume=True):
        pass
    with claimed(folder, RUN | {"seed": 1}, resume=True):
        assert json.loads((folder / "run.json").read_text())["seed"] == 1


def test_what_another_caller_has_ended_is_not_claimed(tmp_path: Path):
    folder = tmp_path / "m"

    def done() -> bool:
        with pytest.raises(RuntimeError, match="another process is training"), claimed(folder, RUN, resume=True):
            pass  # asked inside the lock
        return True

    with claimed(folder, RUN, resume=True, done=done) as ours:
        assert not ours
    assert list(tmp_path.iterdir()) == []
    with claimed(folder, RUN, resume=True, done=lambda: False) as ours:
        assert ours


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="holds something else"), claimed(tmp_path, RUN, resume=True):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "m.lock").mkdir()
    said = r"m could not be claimed \(.*m\.lock'\): .*or give another out="
    with pytest.raises(OSError, match=said), claimed(tmp_path / "m", RUN, resume=True):
        pass


def test_two_runs_do_not_share_a_folder(tmp_path: Path):
    folder = tmp_path / "m"
    code = (
        "import sys, pathlib; from scgpt_tl.engine.checkpoint import claimed\n"
        f"with claimed(pathlib.Path({str(folder)!r}), {RUN!r}, resume=True):\n"
        "    print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(RuntimeError, match="another process is training in"), claimed(folder, RUN, resume=True):
            pass
        other.kill()  # and a killed one holds nothing
    with claimed(folder, RUN, resume=True):
        pass


@pytest.mark.parametrize("text", ["", "null", "[1, 2]", None])
def test_a_damaged_mark_is_named(tmp_path: Path, text: str | None):
    """None: it is gone. Another out, or a new beginning, mends it."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "last.ckpt").write_text("x")
    if text is not None:
        (folder / "run.json").write_text(text)
    with (
        pytest.raises(ValueError, match=r"run\.json is damaged .*resume=False starts anew"),
        claimed(folder, RUN, resume=True),
    ):
        pass
    assert (folder / "last.ckpt").read_text() == "x"
    with claimed(folder, RUN, resume=False):
        assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_checkpoints_beside_something_else_are_not_ours_to_remove(tmp_path: Path):
    for name in ("last.ckpt", "epoch=3.ckpt"):
        (tmp_path / name).write_text("x")
    for resume in (True, False):
        with pytest.raises(FileExistsError, match="holds something else"), claimed(tmp_path, RUN, resume=resume):
            pass


def test_a_mark_is_written_once(tmp_path: Path):
    for _ in range(2):
        with claimed(tmp_path / "m", RUN, resume=True):
            (tmp_path / "m" / "run.json").chmod(0o400)
        written = (tmp_path / "m" / "run.json").stat().st_mtime_ns
    assert (tmp_path / "m" / "run.json").stat().st_mtime_ns == written


def test_written_and_read(tmp_path: Path, fabric: Fabric):
    layer = torch.nn.Linear(2, 2)
    checkpoint.write(fabric, tmp_path / "a.ckpt", {"module": layer, "progress": {"step": 3}})
    other = torch.nn.Linear(2, 2)
    assert checkpoint.read(fabric, tmp_path / "a.ckpt", {"module": other}) == {"progress": {"step": 3}}
    assert torch.equal(other.weight, layer.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, fabric: Fabric, monkeypatch):
    path = tmp_path / "a.ckpt"
    checkpoint.write(fabric, path, {"step": 1})
    before = path.read_bytes()

    def full(state, beside):
        Path(beside).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left.*the one before it in .* is whole: make room"):
        checkpoint.write(fabric, path, {"step": 2})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def spoilt(path: Path) -> None:
    """Numbers of a tensor are others; nothing else is."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(500, dtype=torch.float32).numpy().tobytes())
    content[place : place + 2000] = b"\x3f" * 2000
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        spoilt,
        lambda path: path.write_text("no archive"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"module": [1, 2], "format": 2}, path),
    ],
)
def test_a_damaged_one_is_named(tmp_path: Path, fabric: Fabric, damage: Callable[[Path], object]):
    path = tmp_path / "a.ckpt"
    layer = torch.nn.Linear(500, 1)
    layer.weight.data[0] = torch.arange(500)
    checkpoint.write(fabric, path, {"module": layer})
    damage(path)
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged or of another version.*resume=False starts anew"):
        checkpoint.read(fabric, path, {"module": layer})


def test_one_of_another_version_is_refused(tmp_path: Path, fabric: Fabric):
    path = tmp_path / "a.ckpt"
    torch.save({"module": {}, "format": 1}, path)
    with pytest.raises(ValueError, match="another version"):
        checkpoint.read(fabric, path, {"module": torch.nn.Identity()})


@pytest.mark.parametrize(
    ("raised", "told", "said"),
    [
        (torch.OutOfMemoryError("out of memory"), torch.OutOfMemoryError, "^out of memory"),
        (RuntimeError("a size is another"), ValueError, "last.ckpt is damaged or of another version"),
    ],
)
def test_memory_that_runs_out_is_not_the_files_fault(raised: Exception, told: type[Exception], said: str):
    with pytest.raises(told, match=said), checkpoint.refusing_damage(Path("last.ckpt")):
        raise raised

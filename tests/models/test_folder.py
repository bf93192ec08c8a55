"""Folders appear whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from scgpt_tl.models._folder import ReadError, check_place, locked, written_beside
from scgpt_tl.models.model import load_model


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), ValueError()])
@pytest.mark.parametrize("stands", [False, True])
def test_broken_off(make_model, tmp_path: Path, error: BaseException, stands: bool):
    """Ctrl-C, a full disk, a bug: what stood there stands, and nothing is left lying about."""
    target = tmp_path / "model"
    if stands:
        make_model().save(target)
    before = everything(tmp_path)
    with pytest.raises(type(error)) as raised, written_beside(target, overwrite=True) as beside:  # noqa: PT012
        (beside / "config.json").write_text("{}")
        raise error
    assert everything(tmp_path) == before
    if isinstance(error, OSError):
        assert "could not be written" in str(raised.value)
        assert "nothing was changed" in str(raised.value)


def test_a_failing_last_step_brings_the_old_model_back(make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = make_model().save(tmp_path / "model")
    before, rename = everything(tmp_path), Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="nothing was changed"):
        make_model(d_ff=8).save(target, overwrite=True)
    monkeypatch.undo()
    assert everything(tmp_path) == before


def test_a_model_is_replaced_on_request_only(make_model, tmp_path: Path):
    target = make_model().save(tmp_path / "model")
    other = make_model(d_ff=8)
    with pytest.raises(FileExistsError, match=r"holds a model already; .*overwrite=True"):
        other.save(target)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        other.export_official(target)
    other.export_official(target, overwrite=True)
    assert sorted(p.name for p in target.iterdir()) == ["args.json", "best_model.pt", "vocab.json"]
    assert load_model(target).sha256 == other.sha256


def test_what_another_made_meanwhile_is_not_replaced(tmp_path: Path):
    target = tmp_path / "r"

    def make() -> None:
        with written_beside(target, overwrite=False, mark="mark", what="reference") as beside:
            (beside / "mark").write_text("ours")
            target.mkdir()
            (target / "mark").write_text("theirs")

    with pytest.raises(FileExistsError, match="holds a reference already"):
        make()
    assert everything(tmp_path) == {"r/mark": b"theirs"}


def test_errors_of_the_data_are_told_as_they_are(tmp_path: Path):
    with pytest.raises(ReadError, match=r"^truncated$"), written_beside(tmp_path / "r", overwrite=False):
        raise ReadError("truncated")  # noqa: EM101


def test_one_process_at_a_time(tmp_path: Path):
    with locked(tmp_path / "a" / "r"):
        with pytest.raises(OSError, match="another process is writing"), locked(tmp_path / "a" / "r"):
            pass
        with locked(tmp_path / "a" / "other"):
            pass
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_files_are_left_alone(make_model, tmp_path: Path, overwrite: bool):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="files that are no model"):
        make_model().save(tmp_path, overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        make_model().save(tmp_path / "thesis.txt", overwrite=overwrite)
    assert everything(tmp_path) == {"thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("", ValueError, "'' is no folder that could be made or replaced: add a name, as in 'model'"),
        (".", ValueError, "add a name"),
        ("/", ValueError, "as in '/model'"),
        ("full/..", ValueError, "add a name"),
        ("file", FileExistsError, "file is a file; give a folder"),
        ("link", FileExistsError, "link is a link to nowhere; give a folder"),
        ("full", FileExistsError, "holds files that are no model; give a new or an empty folder"),
        ("file/deep/m", NotADirectoryError, "cannot be made, since .*file is no folder; give another folder"),
    ],
)
def test_a_place_for_no_model_is_refused(tmp_path: Path, monkeypatch, name: str, error: type[Exception], said: str):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    Path("full").mkdir()
    Path("full/thesis.txt").touch()
    with pytest.raises(error, match=said):
        check_place(name)
    if error is FileExistsError:
        with pytest.raises(error, match=said), written_beside(name, overwrite=True):
            pytest.fail("begun")


def test_a_place_that_may_not_be_written(make_model, tmp_path: Path, monkeypatch):
    done = make_model().save(tmp_path / "done")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"m cannot be made, since you may not write in .*; give another folder"):
        check_place(tmp_path / "deep" / "m")
    assert check_place(str(done)) == done  # it may be read


@pytest.mark.parametrize("name", ["new", "deep/new", "empty"])
def test_a_place_for_a_model(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    assert check_place(str(tmp_path / name)) == tmp_path / name
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # nothing is made


def test_an_empty_folder_is_taken(make_model, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert load_model(make_model().save(tmp_path / "empty")).name == "toy"


def test_what_a_killed_process_left_is_cleared(make_model, tmp_path: Path):
    left = tmp_path / f".model.{os.getpid()}.tmp"
    left.mkdir()
    (left / "junk").write_text("half")
    folder = make_model().save(tmp_path / "model")
    assert not (folder / "junk").exists()
    assert not left.exists()


def test_a_place_that_cannot_be_written(make_model, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        make_model().save(tmp_path / "file" / "model")


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_disk_that_fills_up_while_weights_are_written(make_model, tmp_path: Path):
    """safetensors and torch tell it in errors of their own; a limit on file sizes stands for the full disk."""
    import resource

    model = make_model()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for write in (model.save, model.export_official):
            with pytest.raises(OSError, match=r"could not be written .*Free some space"):
                write(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(tmp_path) == {}

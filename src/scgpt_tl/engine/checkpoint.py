"""A run's folder: whose it is, and the state that it goes on from.

run.json    what makes two runs the same: data, sizes, recipe, learned options
lock        held while a process trains
last.ckpt   weights, optimiser, position, history; written beside and renamed
best.ckpt   weights of the best held-out loss
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import torch
from filelock import FileLock, Timeout

from scgpt_tl._files import replacing
from scgpt_tl.engine._differences import differences
from scgpt_tl.engine.devices import together

if TYPE_CHECKING:
    from lightning.fabric import Fabric

LAST, BEST = "last.ckpt", "best.ckpt"
_FORMAT = 2  # 1: Lightning's Trainer, before the first release
#: What reading something else than our own checkpoints fails with.
_DAMAGE = (
    *(BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError),
    *(AttributeError, KeyError, TypeError, ValueError),
)
_MARK = "run.json"
_OURS = re.compile(r"(last|best)\.ckpt|\.(last|best)\.ckpt\.part|\.run\.json\.\d+\.json")  # beside the mark


@contextmanager
def claimed(
    folder: Path, run: dict[str, Any], *, resume: bool, done: Callable[[], object] = lambda: None
) -> Iterator[bool]:
    """Make a folder ours for as long as a run lasts.

    Parameters
    ----------
    folder
        Made where it is not there.
    run
        What makes two runs the same.
    resume
        Keep the checkpoint of the same run.
    done
        Asked once nobody else can train any more: whether another caller has ended this run. The folder is then left
        alone, and False is handed out.

    Raises
    ------
    ValueError
        It holds an unfinished run with other arguments, or one whose mark is damaged.
    FileExistsError
        It holds something else.
    RuntimeError
        Another process trains in it.
    OSError
        The place cannot be written.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        msg = f"another process is training in {folder}: let it end, or give another out="
        raise RuntimeError(msg) from None
    except OSError as error:
        msg = f"{folder} could not be claimed ({error}): make {folder.parent} writable, or give another out="
        raise OSError(msg) from error
    try:
        ours = not done()
        if ours:
            _claim(folder, run, resume=resume)
        yield ours
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _claim(folder: Path, run: dict[str, Any], *, resume: bool) -> None:
    refuse_others(folder)
    mark = folder / _MARK
    if resume and (mark.exists() or (folder / LAST).exists()):
        held = _read_mark(mark)
        differ = sorted(key for key in run if held.get(key) != run[key])
        if not differ:
            return
        if (folder / LAST).exists():  # else nothing would be lost
            msg = (
                f"{folder} holds an unfinished run with other {', '.join(differ)}: {differences(held, run, differ)}; "
                "repeat its arguments, give another out=, or resume=False to start anew"
            )
            raise ValueError(msg)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with replacing(mark) as beside:
        beside.write_text(json.dumps(run, indent=1))


def refuse_others(folder: Path) -> None:
    """Refuse a place where something else lies than a run's files.

    Raises
    ------
    FileExistsError
        It is a file, or a folder that no run has marked and that holds what no run writes.
    """
    found = "is a file" if os.path.lexists(folder) and not folder.is_dir() else ""
    if not found and folder.is_dir() and not (folder / _MARK).exists():
        found = "holds something else" if any(not _OURS.fullmatch(each.name) for each in folder.iterdir()) else ""
    if found:
        msg = f"{folder} is where checkpoints go, and it {found}: move that, or give another out="
        raise FileExistsError(msg)


def _read_mark(mark: Path) -> dict[str, Any]:
    try:
        held = json.loads(mark.read_text())
        why = f"it holds a {type(held).__name__}"
    except FileNotFoundError:
        held, why = None, "it is missing"
    except ValueError as error:
        held, why = None, str(error)
    if not isinstance(held, dict):
        msg = f"{mark} is damaged ({why}), so that nobody can tell whose run this is: resume=False starts anew"
        raise ValueError(msg)
    return held


def write(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write a state that Fabric knows how to gather; whole or not at all. Called in every process.

    Raises
    ------
    OSError
        It cannot be written; the one before it is as it was.
    """
    beside = path.with_name(f".{path.name}.part")
    fabric.save(beside, {**state, "format": _FORMAT})
    error: Exception | None = None
    if fabric.global_rank == 0:
        try:
            _put(fabric, beside, path)
        except (OSError, RuntimeError) as found:
            beside.unlink(missing_ok=True)
            kept = f"the one before it in {path.parent} is whole" if path.exists() else "there is none before it"
            msg = f"the checkpoint could not be written ({found}); {kept}: make room, and repeat the call to go on"
            error = OSError(msg)
    together(fabric, error)


def _put(fabric: Fabric, beside: Path, path: Path) -> None:
    """From beside to its place, once it is on the disk."""
    files: Any = fabric.strategy.checkpoint_io
    failed, files.error = getattr(files, "error", None), None
    if failed is not None:
        raise failed
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def read(fabric: Fabric, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Restore the modules and optimisers of `state` in place, and return the rest. Called in every process.

    Raises
    ------
    ValueError
        It is damaged, or another version of this package wrote it.
    """
    with refusing_damage(path):
        _check_sums(path)
        held = torch.load(path, weights_only=True, mmap=True, map_location="cpu")  # tensors alone, by any strategy
        version = held.get("format", 1)
        rest = fabric.load(path, state, weights_only=True) if version == _FORMAT else {}
    if version != _FORMAT:
        msg = f"{path} was written by another version of scgpt_tl: finish it there, or resume=False starts anew"
        raise ValueError(msg)
    rest.pop("format")
    return rest


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Whatever a checkpoint fails with that is not what we wrote, as one error.

    Raises
    ------
    ValueError
        What is the matter, and what mends it.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError, and no fault of the file
        raise
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:300]
        msg = f"{path} is damaged or of another version ({why}): resume=False starts anew"
        raise ValueError(msg) from error


def _check_sums(path: Path) -> None:
    """Read it through: torch compares no check sums, and would take a number that a disk has spoilt."""
    with ZipFile(path) as file:
        bad = file.testzip()
    if bad is not None:
        msg = f"{bad} does not have the check sum that it was written with"
        raise BadZipFile(msg)

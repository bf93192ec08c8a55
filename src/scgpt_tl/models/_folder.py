"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from scgpt_tl._files import clear_stale, named_folder
from scgpt_tl.genes.bundle import kind_of


def check_place(folder: str | Path, *, mark: str | None = None, what: str = "model") -> Path:
    """The path of a folder where a model can come to lie, asked before long work; whose model lies there is not asked.

    `mark` and `what` as for `written_beside`.

    Raises
    ------
    ValueError
        It has no name of its own.
    FileExistsError
        It is a file or a link to nowhere, or holds files that are no model.
    NotADirectoryError, PermissionError
        It cannot be made.
    """
    place = named_folder(folder, example=what)
    target = place.absolute()
    above = next(each for each in target.parents if os.path.lexists(each))
    if not above.is_dir():
        msg = f"{target} cannot be made, since {above} is no folder; give another folder"
        raise NotADirectoryError(msg)
    if not os.access(above, os.W_OK | os.X_OK) and kind_of(target) is None:  # a model that is there may be read
        msg = f"{target} cannot be made, since you may not write in {above}; give another folder, or ask for the right"
        raise PermissionError(msg)
    _refuse_others(target, mark, what)
    return place


@contextmanager
def written_beside(
    folder: str | Path, *, overwrite: bool, mark: str | None = None, what: str = "model"
) -> Iterator[Path]:
    """Give an empty folder beside `folder` to write in, and rename it when the block ends well.

    `mark` is the file by which a folder of another kind than a model is known, `what` what it is called.

    Raises
    ------
    FileExistsError
        `folder` holds a model (or what `mark` tells) and `overwrite` is off, or it holds something else; before
        anything is written.
    OSError
        The place cannot be written; what was there before is as it was.
    """
    target = Path(folder).expanduser().absolute()
    _refuse_taken(target, mark, what, overwrite=overwrite)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)  # left by a killed process of the same number
            beside.mkdir()
            yield beside
        _refuse_taken(target, mark, what, overwrite=overwrite)  # by another process meanwhile
        with _told(target):
            _put_in_place(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let one process at a time make, replace or add to a folder, and clear what killed ones left beside it.

    Raises
    ------
    OSError
        Another process is at it, or the place cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        with _told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout:
        msg = f"another process is writing {target}; call again when it is done"
        raise OSError(msg) from None
    try:
        for old in target.parent.glob(f".{escape(target.name)}.*.old"):
            if not target.exists():  # killed between the two renamings
                old.rename(target)
        clear_stale(target.parent, re.escape(target.name))
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class ReadError(OSError):
    """The user's data cannot be read; nothing is the matter with the folder."""


@contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except (ReadError, Timeout):
        raise
    except OSError as error:
        msg = f"{target} could not be written ({error}); nothing was changed. Free some space or give another folder"
        raise OSError(msg) from error


def _refuse_others(target: Path, mark: str | None, what: str) -> None:
    """Refuse what is not ours to replace."""
    if os.path.lexists(target) and not target.is_dir():
        found = "is a file" if target.exists() else "is a link to nowhere"
        msg = f"{target} {found}; give a folder, which is made where it does not exist"
        raise FileExistsError(msg)
    known = kind_of(target) is not None if mark is None else (target / mark).is_file()
    if target.is_dir() and any(target.iterdir()) and not known:
        msg = f"{target} holds files that are no {what}; give a new or an empty folder"
        raise FileExistsError(msg)


def _refuse_taken(target: Path, mark: str | None, what: str, *, overwrite: bool) -> None:
    _refuse_others(target, mark, what)
    if not overwrite and target.is_dir() and any(target.iterdir()):
        msg = f"{target} holds a {what} already; give another folder, or overwrite=True to replace it"
        raise FileExistsError(msg)


def _put_in_place(beside: Path, target: Path) -> None:
    """Rename; where a model stands in the way, it steps aside first and comes back if the renaming fails."""
    if not target.is_dir():
        beside.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)

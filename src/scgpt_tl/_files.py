"""Files appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path


def check_target(path: Path, *, n_bytes: int = 0, overwrite: bool = False) -> None:
    """Refuse a target that cannot be written, before any long work.

    Parameters
    ----------
    path
        File to be written.
    n_bytes
        Room that it will need, as far as is known.
    overwrite
        Whether a file that is there may be replaced.

    Raises
    ------
    OSError
        The folder is absent or read-only, the disk has too little room, or the file is there already.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        msg = f"the folder {folder} is not there; make it, or choose another place for {path.name}"
        raise FileNotFoundError(msg)
    if path.exists() and not overwrite:
        msg = f"{path} exists; choose another name, or give overwrite=True to replace it"
        raise FileExistsError(msg)
    if not os.access(folder, os.W_OK):
        msg = f"the folder {folder} cannot be written to; choose another place for {path.name}"
        raise PermissionError(msg)
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        msg = f"{path.name} needs about {n_bytes / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free"
        raise OSError(msg)


def named_folder(folder: str | Path, *, example: str = "model") -> Path:
    """The path of a folder that can be made or replaced; `~` is the home folder.

    Raises
    ------
    ValueError
        It has no name of its own: "", ".", "..", "/".
    """
    place = Path(folder).expanduser()
    if place.name in ("", ".."):
        msg = f"{str(folder)!r} is no folder that could be made or replaced: add a name, as in {str(place / example)!r}"
        raise ValueError(msg)
    return place


def refuse_source(target: Path, source: Path, argument: str) -> None:
    """Refuse a target that is, holds or lies in what is being read: it would be gone before it is read.

    Raises
    ------
    ValueError
        It is one; `argument` names the target in the message.
    """
    at, read = target.resolve(), source.resolve()
    same = at == read or (at.exists() and read.exists() and at.samefile(read))  # a disk may not tell a from A
    how = "is" if same else "holds" if at in read.parents else "lies in" if read in at.parents else ""
    if how:
        msg = f"{argument} {target} {how} what is read, {source}: give another place"
        raise ValueError(msg)


def sha256_of(file: Path) -> str:
    """Of a file's bytes, in hex."""
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; it becomes `path` when the block ends well, else it is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")  # writers go by the suffix
    try:
        yield beside
        if beside.is_file():
            with beside.open("rb+") as written:
                os.fsync(written.fileno())  # else a power cut may leave the name without the content
        beside.replace(path)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def clear_stale(folder: Path, name: str = ".+") -> None:
    """Remove what killed processes left beside files of a name (a pattern); only where nobody else can be writing."""
    for path in folder.iterdir():
        if re.fullmatch(rf"\.{name}\.\d+(\.\w+)?", path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

"""A reference on disk: embeddings, labels and what is needed to embed a query alike.

    DIR/reference.json       what it is, what the parts are, sha256 of each and of itself
        embedding-000.npy    float32 (n, D), length 1
        labels-000.npy       int32 (n,), -1: none
        batches-000.npy      int32 (n,), where batches are known
        keys-000.npy         uint64 (n,), what the cells are known by, see `twins`
        sample-000.npz       neighbours of some of the cells among the others, see `mapping.Sample`
        model/               a copy of the model, unless it has a name that everybody finds

Cells that are added come as further parts (-001, ...). `reference.json` is replaced last and at once, and speaks of
the parts by name: a process that dies before leaves the reference as it was, and some files that nobody reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from scgpt_tl import __version__
from scgpt_tl._files import replacing, sha256_of
from scgpt_tl.engine.mapping import Sample
from scgpt_tl.genes.bundle import kind_of, read_json

FORMAT, VERSION = "scgpt_tl reference", 2
HEAD = "reference.json"
MODEL = "model"
_BUILD = "tl.build_reference makes one"


class Part(TypedDict):
    """A file of a reference."""

    file: str
    sha256: str


@dataclass(frozen=True)
class About:
    """What a reference is, all but its numbers. Plain values that JSON holds."""

    model: dict[str, Any]
    """`name`, `weights_sha256`, `vocab_sha256`, `config_sha256`, `copied` (whether it lies in the folder)."""
    options: dict[str, Any]
    """How cells were embedded: `seed`, `max_length`, `dtype`."""
    genes: tuple[str, ...]
    """Names in the vocabulary of the genes that the cells were measured for."""
    labels_key: str | None = None
    classes: tuple[str, ...] = ()
    batch_key: str | None = None
    batches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """Cells to compare others with.

    In memory, or in a folder, of which an embedding is read through memory maps as it is needed. Files are open from
    the start: a folder that is replaced meanwhile is read to its end as it was.
    """

    about: About
    embedding: Any
    """(n, D) float32, or `Shards` of it."""
    codes: np.ndarray | None
    """(n,) int32 labels, -1: none. None where the reference has no labels."""
    keys: np.ndarray
    """(n,) uint64, `twins.content_keys` of the cells."""
    sample: Sample
    folder: Path | None = None

    @property
    def n_cells(self) -> int:
        """How many cells."""
        return int(self.embedding.shape[0])


class Shards:
    """Files of rows as one array: a slice of rows is read through a memory map that lasts as long as the slice.

    `sha256`, where given, is held against each file as it was opened.
    """

    def __init__(self, files: Sequence[Path], sha256: Sequence[str] = ()) -> None:
        self._files: list[BufferedReader] = []
        weakref.finalize(self, _close, self._files)
        self._files.extend(map(_opened, files))
        for file, opened, expected in zip(files, self._files, sha256, strict=False):
            _compare(file, hashlib.file_digest(opened, "sha256").hexdigest(), expected)
        heads = [_head(file, opened) for file, opened in zip(files, self._files, strict=True)]
        self._shapes, self._starts = [shape for shape, _ in heads], [start for _, start in heads]
        self._ends = np.cumsum([shape[0] for shape in self._shapes])
        self.shape = (int(self._ends[-1]), int(self._shapes[0][1]))

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        parts = []
        for number, end in enumerate(self._ends.tolist()):
            if start < end and start < stop:
                first = end - self._shapes[number][0]
                parts.append(self._mapped(number)[start - first : min(stop, end) - first])
                start = end
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.shape[1]), np.float32), *parts])

    def _mapped(self, number: int) -> np.ndarray:
        file: Any = self._files[number]  # an open file will do
        return np.memmap(file, "<f4", "r", offset=self._starts[number], shape=self._shapes[number])


class ArrayFile:
    """A .npy file that takes rows from the first to the last, and holds none of them in memory."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._file = path.open("wb")
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, head)
        self._done = 0

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        if rows.start != self._done:
            msg = f"row {rows.start} came after row {self._done - 1}; rows come in their order"
            raise ValueError(msg)
        self._file.write(np.ascontiguousarray(values, dtype="<f4").data)
        self._done = rows.stop

    def close(self) -> None:
        """All is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


@dataclass(frozen=True)
class Head:
    """What `reference.json` says."""

    about: About
    shards: tuple[dict[str, Part], ...]
    """`embedding`, `keys`, with labels `labels`, with batches `batches`."""
    sample: Part

    @classmethod
    def read(cls, folder: Path) -> Head:
        """Read and check it; the parts are not looked at.

        Raises
        ------
        FileNotFoundError, ValueError
            There is none, it is of a newer release, or it was changed.
        """
        file = folder / HEAD
        if not file.is_file():
            what = "is a model" if kind_of(folder) else "is no reference" if folder.is_dir() else "is not there"
            msg = f"{folder} {what}: it has no {HEAD}; {_BUILD}"
            raise FileNotFoundError(msg)
        held = read_json(file)
        if held.get("format") != FORMAT:
            msg = f"{file} has the format {held.get('format')!r}, {FORMAT!r} is expected; {_BUILD}"
            raise ValueError(msg)
        version = held.get("version")
        if version != VERSION:
            newer = isinstance(version, int) and version > VERSION
            mend = "a newer release is needed" if newer else "build the reference again"
            msg = f"{file} has version {version!r}, this scgpt_tl reads {VERSION}: {mend}"
            raise ValueError(msg)
        if held.pop("sha256", None) != _digest(held):
            msg = f"{file} was changed after it was written, and may say what is not so; build the reference again"
            raise ValueError(msg)
        about: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in held["about"].items()}
        return cls(About(**about), tuple(held["shards"]), held["sample"])

    def write(self, folder: Path) -> None:
        """Replace the file, at once."""
        held: dict[str, Any] = {"format": FORMAT, "version": VERSION, "scgpt_tl": __version__}
        held |= {"about": dict(vars(self.about)), "shards": list(self.shards), "sample": self.sample}
        held = json.loads(json.dumps(held))  # as it reads back
        with replacing(folder / HEAD) as beside:
            beside.write_text(
                json.dumps(held | {"sha256": _digest(held)}, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )


def read(folder: str | Path) -> Reference:
    """Open a reference; every part is held against its sha256.

    Raises
    ------
    FileNotFoundError
        No reference, or a part is missing.
    ValueError
        A part was changed, or is of another release.
    """
    folder = Path(folder).expanduser()
    head = Head.read(folder)
    parts = [shard["embedding"] for shard in head.shards]
    embedding = Shards([folder / part["file"] for part in parts], [part["sha256"] for part in parts])
    codes = _joined(folder, head.shards, "labels") if head.about.labels_key is not None else None
    keys = _joined(folder, head.shards, "keys")
    held = _loaded(folder, head.sample)
    sample = Sample(held["distances"], held["labels"], held["codes"])
    return Reference(head.about, embedding, codes, keys, sample, folder)


def batches_of(folder: Path, head: Head) -> np.ndarray | None:
    """(n,) int32 batch of each cell of a folder, where batches are known."""
    return _joined(folder, head.shards, "batches") if head.about.batch_key is not None else None


def write_shard(folder: Path, number: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Part]:
    """Write labels, keys, batches of some cells, and speak of them; their embedding is there already."""
    found = {"embedding": part(folder, f"embedding-{number:03d}.npy")}
    for name, values in arrays.items():
        file = f"{name}-{number:03d}.npy"
        with replacing(folder / file) as beside:
            np.save(beside, values, allow_pickle=False)
        found[name] = part(folder, file)
    return found


def write_sample(folder: Path, number: int, sample: Sample) -> Part:
    """Write the neighbours of a sample, and speak of them."""
    file = f"sample-{number:03d}.npz"
    with replacing(folder / file) as beside:
        np.savez(beside, distances=sample.distances, labels=sample.labels, codes=sample.codes)
    return part(folder, file)


def part(folder: Path, file: str) -> Part:
    """A file as `reference.json` speaks of it."""
    return {"file": file, "sha256": sha256_of(folder / file)}


def merged(old: Sequence[str], new: Sequence[str], codes: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of both, the old ones first, and codes (n,) of the new ones among them."""
    names = (*old, *(name for name in new if name not in set(old)))
    place = {name: number for number, name in enumerate(names)}
    table = np.array([place[name] for name in new] + [-1], np.int32)  # the last one answers for -1
    return names, table[codes]


def with_genes(about: About, genes: Sequence[str]) -> About:
    """The same with more genes."""
    return replace(about, genes=tuple(sorted({*about.genes, *genes})))


def _opened(file: Path) -> BufferedReader:
    try:
        return file.open("rb")
    except FileNotFoundError as error:
        msg = f"{file.parent} lacks {file.name}, of which {HEAD} speaks: it was copied in part; copy or build it again"
        raise FileNotFoundError(msg) from error


def _close(files: Sequence[BufferedReader]) -> None:
    for file in files:
        file.close()


def _head(file: Path, opened: BufferedReader) -> tuple[tuple[int, int], int]:
    """Shape of an array in a file, and where its numbers begin."""
    opened.seek(0)
    try:
        np.lib.format.read_magic(opened)
        (n, width), _, _ = np.lib.format.read_array_header_1_0(opened)
        return (n, width), opened.tell()
    except (ValueError, EOFError) as error:
        msg = f"{file} is no whole array ({error}); build the reference again"
        raise ValueError(msg) from error


def _joined(folder: Path, shards: Sequence[Mapping[str, Part]], name: str) -> np.ndarray:
    return np.concatenate([_loaded(folder, shard[name]) for shard in shards])


def _loaded(folder: Path, said: Part) -> Any:
    """What a part holds, of the very bytes that were held against its sha256."""
    with _opened(folder / said["file"]) as opened:
        content = opened.read()
    _compare(folder / said["file"], hashlib.sha256(content).hexdigest(), said["sha256"])
    return np.load(BytesIO(content), allow_pickle=False)


def _compare(file: Path, sha256: str, expected: str) -> None:
    if sha256 != expected:
        msg = f"{file} was changed after it was written (its sha256 is another); copy or build the reference again"
        raise ValueError(msg)


def _digest(held: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

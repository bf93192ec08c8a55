"""The vocabulary: which name has which row of the gene table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from scgpt_tl._random import name_keys

PAD, CLS, EOC = "<pad>", "<cls>", "<eoc>"
#: Appended in this order where a vocabulary lacks them, as the published package does.
SPECIALS = (PAD, CLS, EOC)


class GeneVocab:
    """Names and their integer ids, one to one: ids are 0, 1, ..., n - 1 without holes. Immutable.

    Parameters
    ----------
    tokens
        Name to id, or the names in the order of their ids. `<pad>`, `<cls>` and `<eoc>` are appended, in this order,
        where absent.

    Raises
    ------
    TypeError
        A name that is no string, an id that is no integer.
    ValueError
        No gene, a duplicated or empty name, a duplicated or negative id, a hole in the ids.
    """

    _names: tuple[str, ...]
    _ids: dict[str, int]

    def __init__(self, tokens: Mapping[str, int] | Sequence[str]) -> None:
        if isinstance(tokens, (str, bytes)):
            msg = f"tokens is the single text {tokens!r}; give names and ids, or use GeneVocab.from_file for a path"
            raise TypeError(msg)
        names = _by_id(tokens) if isinstance(tokens, Mapping) else [_as_name(name) for name in tokens]
        ids = {name: i for i, name in enumerate(names)}
        if len(ids) < len(names):
            seen = _repeated(names)
            msg = f"{len(names) - len(ids)} names stand in the vocabulary twice, {seen}; every name needs one id"
            raise ValueError(msg)
        for special in SPECIALS:
            if special not in ids:
                ids[special] = len(names)
                names.append(special)
        if len(names) == len(SPECIALS):
            msg = "the vocabulary holds no gene, only special tokens"
            raise ValueError(msg)
        vars(self).update(_names=tuple(names), _ids=ids)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> GeneVocab:
        """Read a JSON file: an object name -> id, or a list of names.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            The file is no JSON, or its content is no vocabulary; the message names the file.
        """
        path = Path(path).expanduser()
        try:
            tokens = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_pairs)
            if not isinstance(tokens, (dict, list)):
                msg = f"it holds a {type(tokens).__name__}, not an object of name: id or a list of names"
                raise TypeError(msg)
            return cls(tokens)
        except (ValueError, TypeError) as error:  # json's and unicode's own errors are ValueErrors
            msg = f"{path} is not a gene vocabulary (JSON, name -> id): {error}"
            raise ValueError(msg) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write name -> id as JSON, readable by this package and by the published one; beside first, then renamed."""
        path = Path(path).expanduser()
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(json.dumps(self._ids, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __getitem__(self, name: str) -> int:
        try:
            return self._ids[name]
        except KeyError:
            near = self.nearest(str(name))
            hint = f"; nearest: {', '.join(near)}" if near else ""
            msg = f"{name!r} is not among the {len(self):,} names of the vocabulary{hint}"
            raise KeyError(msg) from None

    def __eq__(self, other: object) -> bool:
        return self._names == other._names if isinstance(other, GeneVocab) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._names)

    def __repr__(self) -> str:
        return f"GeneVocab({len(self):,} names, {len(self.genes):,} of them genes, sha256 {self.sha256[:8]})"

    def __setattr__(self, name: str, value: Any) -> None:
        msg = f"a GeneVocab is immutable ({name!r} was to be set); make a new one from its .names"
        raise AttributeError(msg)

    def __reduce__(self) -> tuple[type[GeneVocab], tuple[tuple[str, ...]]]:
        return GeneVocab, (self._names,)

    def name(self, id_: int) -> str:
        """Name of one id.

        Raises
        ------
        IndexError
            The id is negative or not smaller than the vocabulary.
        """
        if not 0 <= id_ < len(self):
            msg = f"id {id_} is outside the vocabulary, whose ids are 0 to {len(self) - 1}"
            raise IndexError(msg)
        return self._names[id_]

    def ids(self, names: Iterable[object]) -> np.ndarray:
        """Id of each name by exact comparison, (n,) int64; -1 where unknown (NaN and None are unknown)."""
        find = self._ids.get
        return np.fromiter((find(name, -1) for name in names), dtype=np.int64)  # type: ignore[call-overload]

    def nearest(self, name: str, n: int = 3) -> list[str]:
        """At most `n` names spelled much like this one, for messages."""
        folded = {known.upper(): known for known in self._names if known[:1].upper() == name[:1].upper()}
        return [folded[key] for key in get_close_matches(name.upper(), folded, n=n)]

    @cached_property
    def names(self) -> np.ndarray:
        """All names by id, (n,) str, read-only."""
        names = np.array(self._names, dtype=str)
        names.flags.writeable = False
        return names

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Names without the three special tokens, by id."""
        return tuple(name for name in self._names if name not in SPECIALS)

    @cached_property
    def keys(self) -> np.ndarray:
        """Stable 64-bit key of each name, (n,) uint64, read-only: what random draws are keyed by."""
        keys: np.ndarray = name_keys(self._names)
        keys.flags.writeable = False
        return keys

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the names in the order of their ids (not of a file: JSON has many spellings)."""
        return sha256(json.dumps(self._names, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def pad_id(self) -> int:
        """Id of `<pad>`."""
        return self._ids[PAD]

    @property
    def cls_id(self) -> int:
        """Id of `<cls>`, the token whose last layer is the cell embedding."""
        return self._ids[CLS]

    @property
    def eoc_id(self) -> int:
        """Id of `<eoc>`, end of cell."""
        return self._ids[EOC]


def _by_id(tokens: Mapping[str, int]) -> list[str]:
    """Names sorted by id; the ids must be 0..n-1."""
    names: list[str | None] = [None] * len(tokens)
    for name, id_ in tokens.items():
        if isinstance(id_, bool) or not isinstance(id_, (int, np.integer)):
            msg = f"{name!r} has the id {id_!r}, which is not an integer"
            raise TypeError(msg)
        if id_ < 0:
            msg = f"{name!r} has the negative id {id_}; ids count from 0"
            raise ValueError(msg)
        if id_ >= len(names):
            hole = min(set(range(len(names))) - set(tokens.values()))
            msg = f"{name!r} has the id {id_} among {len(names)} names, so the ids have holes (the first is {hole})"
            raise ValueError(msg)
        if names[id_] is not None:
            msg = f"{names[id_]!r} and {name!r} share the id {id_}; every name needs its own"
            raise ValueError(msg)
        names[id_] = _as_name(name)
    return [name for name in names if name is not None]


def _as_name(name: object) -> str:
    if not isinstance(name, str):
        msg = f"{name!r} is a {type(name).__name__}, not a name"
        raise TypeError(msg)
    if not name:
        msg = "an empty text stands among the names"
        raise ValueError(msg)
    return str(name)  # numpy's str_ is a str; keep the plain kind


def _repeated(names: Sequence[str]) -> str:
    seen: set[str] = set()
    twice = dict.fromkeys(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    return ", ".join(list(twice)[:3])


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tokens = dict(pairs)
    if len(tokens) < len(pairs):
        msg = f"{len(pairs) - len(tokens)} names stand in the file twice, {_repeated([name for name, _ in pairs])}"
        raise ValueError(msg)
    return tokens

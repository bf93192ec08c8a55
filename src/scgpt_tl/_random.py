"""Counter-based random draws: a number depends on what it is drawn for, never on when.

Every draw is a hash of (seed, purpose, epoch, cell, gene). Nothing is consumed from a stream, so batch size, row order,
chunking, threads and workers cannot change a result. A cell is known by its content (its gene and value pairs), a gene
by its name, so renaming or re-ordering either side changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from hashlib import blake2b
from typing import Any

import numpy as np

from scgpt_tl._compat import jit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SEEDS = 2**63


class Purpose(IntEnum):
    """Why a number is drawn. Values are part of the reproducibility promise: add, never renumber."""

    TIES = 1
    TRUNCATE = 2
    MASK = 3
    SPLIT = 4
    VIEW = 5
    SHUFFLE = 6
    DEPTH = 7
    DROPOUT = 8
    CONTROL = 9


@jit()
def mix64(x: Any) -> Any:
    """Finaliser of splitmix64 (Steele et al. 2014): a bijection of 64-bit words; every bit moves every other."""
    x = np.uint64(x) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int | np.integer, purpose: int | np.integer, epoch: int | np.integer) -> np.uint64:
    """One word for (seed, purpose, epoch), computed once per pass."""
    # numba hands words back as Python integers, which it then cannot take again above 2**63
    word = np.uint64(mix64(np.uint64(seed)))
    for part in (purpose, epoch):
        word = np.uint64(mix64(word ^ np.uint64(part)))
    return word


@jit()
def mix_words(words: Any, stream: Any) -> Any:
    """(n,) uint64 pseudo-random words of `words` (n,) uint64 under a stream."""
    mixed = np.empty(len(words), np.uint64)
    for i in range(len(words)):
        mixed[i] = mix64(words[i] ^ np.uint64(stream))
    return mixed


@jit()
def draw(stream: Any, cell: Any, gene: Any) -> Any:
    """Uniform number in [0, 1) for one gene of one cell."""
    word = mix64(mix64(np.uint64(stream) ^ np.uint64(cell)) ^ np.uint64(gene))
    return np.float64(word >> np.uint64(11)) * 1.1102230246251565e-16  # 2**-53


@jit()
def cell_key(gene_keys: Any, values: Any) -> Any:
    """Content hash of a cell, the same for any order of its genes.

    `gene_keys` (n,) uint64; `values` (n,) float64, non-zero.
    """
    bits = values.view(np.uint64)
    total = np.uint64(len(values))
    for i in range(len(values)):
        total += mix64(mix64(bits[i]) ^ gene_keys[i])
    return mix64(total)


def name_keys(names: Iterable[str]) -> np.ndarray:
    """Stable 64-bit key of each name, (n,) uint64."""
    digests = b"".join(blake2b(str(name).encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def as_seed(rng: int | np.random.Generator | None) -> int:
    """Turn scanpy's kinds of `rng` into one non-negative 63-bit integer.

    A generator gives its next integer (so two calls differ, as its user expects); None draws from the system.

    Raises
    ------
    ValueError
        An integer below 0 or of 2**63 or more, which files and torch do not hold.
    TypeError
        Something else.
    """
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        if rng < 0:
            msg = f"rng={rng} is negative; give a non-negative integer or a numpy Generator"
            raise ValueError(msg)
        if rng >= _SEEDS:
            msg = f"rng={rng} is too large; give an integer from 0 to 2**63 - 1 ({_SEEDS - 1}), or a numpy Generator"
            raise ValueError(msg)
        return int(rng)
    if rng is None or isinstance(rng, np.random.Generator):
        return int(np.random.default_rng(rng).integers(_SEEDS - 1))
    msg = f"rng must be an integer, a numpy Generator or None, not {type(rng).__name__}"
    raise TypeError(msg)

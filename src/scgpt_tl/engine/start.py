"""A gene table to start from: genes that vary together in the corpus lie together before the first step.

A random table has to learn from scratch which genes go together, which takes millions of cells; a small corpus tells
much of it in closed form. The table is made of the right singular vectors of the binned cells, weighted as documents
are: frequent genes less, each cell to length 1, and each study's mean taken out, so that it is cells that differ and
not studies. A large corpus is represented by a sample of its cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scgpt_tl._random import Purpose, mix_words, stream_key
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from scgpt_tl.engine.study import Study

_DENSE = 4_000_000  # cells x tokens below which the whole decomposition is quick
_RAREST = 1e-3  # share of cells below which a gene gains no more weight
_CELLS = 20_000  # drawn from a larger corpus: at a thousand genes each 1.4 GB, and ten seconds for 128 directions
_BLOCK = 4096  # cells tokenised at once
_SAMPLE, _BEGIN = np.uint64(0xFFFE), np.uint64(0xFFFD)  # epoch numbers of their own: choice of cells, first block
_WEAKEST = 1e-3  # of the strongest direction: below lies rounding, of squares in float32
_WIDE, _DEEP = 32, 6  # of the Krylov basis: vectors of a block, and all of them in those asked for


def svd_table(studies: list[Study], width: int, *, seed: int) -> np.ndarray:
    """(n_tokens, width) float32, rows of unit mean square; 0 for tokens that no cell has.

    At most 20,000 cells enter, drawn by their keys.
    """
    n_tokens = len(studies[0].tokenizer.gene_keys)
    studies = [study for study in studies if study.weight > 0]
    parts = [_binned(study, rows, n_tokens) for study, rows in zip(studies, _sample(studies, seed), strict=True)]
    cells = sparse.vstack(parts, format="csr")
    if cells.shape[0] < 2:
        msg = "one cell does not tell which genes vary together; give at least two"
        raise ValueError(msg)
    share = np.bincount(cells.indices, minlength=n_tokens) / cells.shape[0]
    weight = np.log1p(1 / np.maximum(share, _RAREST)).astype(np.float32)
    cells.data *= weight[cells.indices]
    lengths = np.sqrt(np.asarray(cells.power(2).sum(1)).ravel())
    cells.data /= np.repeat(np.maximum(lengths, 1e-12).astype(np.float32), np.diff(cells.indptr))
    directions = _directions(_Centred(cells, [len(p.indptr) - 1 for p in parts]), width, seed)
    table = np.zeros((n_tokens, width), np.float32)
    table[:, : len(directions)] = directions.T * weight[:, None]
    table[share == 0] = 0  # a direction holds rounding noise where no cell has the gene
    return table / max(float(np.sqrt(np.mean(table**2))), 1e-12)


def start_from(weight: torch.Tensor, table: np.ndarray) -> None:
    """Write a table into a gene embedding in place; tokens without cells keep their random direction.

    All rows get unit mean square. LayerNorm hides that scale from the network but not from Adam, whose steps are of one
    size: on small rows they would wipe out the start within a hundred of them.
    """
    import torch

    rows = np.flatnonzero(np.abs(table).sum(1) > 0)
    with torch.no_grad():
        weight[torch.from_numpy(rows)] = torch.from_numpy(table[rows]).to(weight)
        weight /= weight.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def _sample(studies: list[Study], seed: int) -> list[np.ndarray]:
    """Rows of each study that enter: all, or those with the smallest draws."""
    if sum(study.n_cells for study in studies) <= _CELLS:
        return [np.arange(study.n_cells) for study in studies]
    stream = stream_key(seed, Purpose.SHUFFLE, _SAMPLE)
    draws = [mix_words(study.keys, stream) for study in studies]
    limit = np.partition(np.concatenate(draws), _CELLS)[_CELLS]
    return [np.flatnonzero(words < limit) for words in draws]


def _binned(study: Study, rows: np.ndarray, n_tokens: int) -> sparse.csr_array:
    """(n_rows, n_tokens) bins over the largest, all genes of each cell."""
    t = study.tokenizer
    whole = Tokenizer(t.column_ids, t.gene_keys, t.cls_id, n_bins=t.n_bins, spread=t.spread, max_length=n_tokens + 1)
    parts = [sparse.csr_array((0, n_tokens), dtype=np.float32)]
    for start in range(0, len(rows), _BLOCK):
        block = whole(study.take(rows[start : start + _BLOCK]))
        genes = np.ones(len(block.gene_ids), bool)
        genes[block.offsets[:-1]] = False  # <cls>
        values = block.values[genes] / np.float32(t.n_bins - 1)
        indptr = block.offsets - np.arange(len(block.offsets))
        shape = (len(block.keys), n_tokens)
        parts.append(sparse.csr_array((values, block.gene_ids[genes].astype(np.int32), indptr), shape=shape))
    study.close()
    return sparse.vstack(parts, format="csr")


class _Centred:
    """(n_obs, n_tokens) cells less the mean of their study, without making them dense."""

    def __init__(self, cells: sparse.csr_array, sizes: list[int]):
        self.cells, self.shape = cells, cells.shape
        places = (np.arange(sum(sizes)), np.repeat(np.arange(len(sizes)), sizes))
        ones = np.ones(sum(sizes), np.float32)
        self.member = sparse.csr_array((ones, places), shape=(len(ones), len(sizes)))  # (n_obs, n_studies)
        sums = (self.member.T @ cells).toarray()
        self.means = sums / np.maximum(sizes, 1).astype(np.float32)[:, None]

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        return self.cells @ x - self.member @ (self.means @ x)

    def transposed(self, y: np.ndarray) -> np.ndarray:
        """(n_tokens, B), of (n_obs, B)."""
        return self.cells.T @ y - self.means.T @ (self.member.T @ y)


def _directions(cells: _Centred, width: int, seed: int) -> np.ndarray:
    """(<= width, n_tokens) right singular vectors, the strongest first; those of no strength are left out."""
    n_obs, n_tokens = cells.shape
    if n_obs * n_tokens <= _DENSE:
        _, strength, directions = np.linalg.svd(cells @ np.eye(n_tokens, dtype=np.float32), full_matrices=False)
        strength, directions = strength[:width], directions[:width]
    else:
        squares, left = _strongest(lambda x: cells @ cells.transposed(x), n_obs, min(width, n_obs), seed)
        strength = np.sqrt(np.maximum(squares, 1e-30))
        directions = (cells.transposed(left) / strength).T
    return directions[strength > _WEAKEST * strength.max()]


def _strongest(product: Callable[[np.ndarray], np.ndarray], n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues (k,), and vectors (n, k), of a symmetric non-negative matrix known by its products.

    Block Lanczos with full orthogonalisation: a sparse matrix is read once for 32 products, where ARPACK reads it for
    each. The strongest are exact to rounding; the weakest of those asked for, of noise in cells, to about a percent.
    """
    size = min(n, _DEEP * k)
    basis, image_in_basis = np.empty((n, size), np.float32, order="F"), np.zeros((size, size))
    words = mix_words(np.arange(n * _WIDE, dtype=np.uint64), stream_key(seed, Purpose.SHUFFLE, _BEGIN))
    block, done = (words / 2.0**64 - 0.5).astype(np.float32).reshape(n, _WIDE), 0
    while done < size:
        before, block = basis[:, :done], block[:, : size - done]
        for _ in range(3):  # once leaves what rounding brings back, which is all of a block that lies in the others
            block = np.linalg.qr(block - before @ (before.T @ block))[0]
        end = done + block.shape[1]
        basis[:, done:end] = block
        block = product(block)
        image_in_basis[:end, done:end] = basis[:, :end].T @ block
        done = end
    values, vectors = np.linalg.eigh(image_in_basis, UPLO="U")
    return values[::-1][:k], basis @ vectors[:, ::-1][:, :k].astype(np.float32)

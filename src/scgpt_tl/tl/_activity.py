"""How active gene programs are in each cell: the score of `scanpy.tl.score_genes`, for many programs at once.

    log-normalised values, a block at a time -> mean of each gene -> 25 bins of like mean
    a program -> up to 50 control genes from the bin of each of its genes (Tirosh et al. 2016, Science 352:189)
    log-normalised values x (1 / genes - 1 / controls) -> scores

The score is scanpy's; controls are drawn by the names of genes and not from numpy's global stream, so that the order of
`.var` does not matter, and all programs take two readings of a matrix that may lie on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from scgpt_tl._random import Purpose, mix_words, name_keys, stream_key
from scgpt_tl.pp._logs import log_blocks

if TYPE_CHECKING:
    from anndata import AnnData

_BINS = 25  # scanpy's defaults
_CONTROLS = 50


def activity(
    adata: AnnData, programs: Sequence[np.ndarray], *, layer: str | None, seed: int, stands: np.ndarray | None = None
) -> np.ndarray:
    """Score of each program in each cell.

    Parameters
    ----------
    adata
        Counts, normalised in a copy, or log-normalised values.
    programs
        Columns (n,) of each program's genes.
    stands
        (n_vars,) int64 which column stands for each, itself but where several are one gene: their values are summed.
        None: each for itself.

    Returns
    -------
    (n_obs, n_programs) float32: mean of a program's genes less the mean of their controls.
    """
    columns, gene = np.unique(np.arange(adata.n_vars) if stands is None else stands, return_inverse=True)
    several = len(columns) < adata.n_vars
    pick = sparse.csr_matrix((np.ones(len(gene)), (np.arange(len(gene)), gene))) if several else None
    programs = [np.searchsorted(columns, genes) for genes in programs]
    sums = np.zeros(len(columns))
    for _, block in log_blocks(adata, layer, pick=pick):
        sums += np.bincount(block.indices, weights=block.data, minlength=len(columns))
    # means that differ by rounding alone, as they do in another order of cells, are the same
    bins = _bins(np.round(sums / max(1, adata.n_obs), 10))
    weights = _weights(programs, bins, name_keys(adata.var_names[columns]), seed)
    found = np.empty((adata.n_obs, len(programs)), np.float32)
    for start, block in log_blocks(adata, layer, pick=pick):
        found[start : start + block.shape[0]] = (block @ weights).toarray()
    return found


def _bins(means: np.ndarray) -> np.ndarray:
    """(n_vars,) which bin of like mean each gene is in, as scanpy cuts them."""
    size = max(1, round(len(means) / (_BINS - 1)))
    return (rankdata(means, method="min") // size).astype(np.int64)


def _weights(programs: Sequence[np.ndarray], bins: np.ndarray, keys: np.ndarray, seed: int) -> sparse.csc_matrix:
    """(n_vars, n_programs) what each gene adds to each score."""
    columns, values = [], []
    by_bin = {cut: np.flatnonzero(bins == cut) for cut in np.unique(bins).tolist()}
    for number, genes in enumerate(programs):
        words = mix_words(keys, stream_key(seed, Purpose.CONTROL, number))
        drawn = [_drawn(by_bin[cut], words) for cut in np.unique(bins[genes]).tolist()]
        controls = np.setdiff1d(np.concatenate(drawn), genes)
        if not len(controls):  # so few genes that a program takes all of like mean
            controls = np.setdiff1d(np.arange(len(bins)), genes)
        columns.append(np.concatenate([genes, controls]))
        values += [np.full(len(genes), 1 / len(genes)), np.full(len(controls), -1 / max(1, len(controls)))]
    indptr = np.cumsum([0, *map(len, columns)])
    return sparse.csc_matrix((np.concatenate(values), np.concatenate(columns), indptr), (len(bins), len(programs)))


def _drawn(genes: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Those with the smallest words, where they are too many."""
    if len(genes) <= _CONTROLS:
        return genes
    return genes[np.argsort(words[genes], kind="stable")[:_CONTROLS]]

"""`pp.bin_values`: expression as quantile bins of each cell, the value that scGPT reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from scgpt_tl._random import as_seed, name_keys
from scgpt_tl._slots import OWNER, SLOTS, copied, refuse_backed_view, refuse_foreign
from scgpt_tl.pp._blocks import _parent, open_layer
from scgpt_tl.pp._quantiles import bin_csr, bin_dtype
from scgpt_tl.pp._values import check_values

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

Ties = Literal["spread", "upper"]

_log = logging.getLogger(__name__)
_MAKER = "pp.bin_values"
_ROWS = 4096  # read at a time: bounds the memory beside the result, changes nothing else


def bin_values(
    data: AnnData | MuData,
    *,
    n_bins: int = 51,
    ties: Ties = "spread",
    layer: str | None = None,
    key_added: str = SLOTS.binned,
    mod: str | None = None,
    rng: int | np.random.Generator | None = 0,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Bin every cell's values by the quantiles of its own non-zeros.

    Equation (2) of the scGPT preprint, with the edges of the published code. For a cell's non-zero values :math:`X^+`,

    .. math:: b_k = Q_{k / (B - 2)}(X^+), \; k = 0 \ldots B - 2; \qquad
              x \mapsto \begin{cases} 0 & x = 0 \\ \#\{k : b_k \le x\} & x > 0 \end{cases}

    where :math:`B` is `n_bins` and :math:`Q` the linearly interpolated quantile. Bins run from 0 (not expressed) to
    `n_bins` - 1. Bins depend on the ranks of a cell's values alone, so normalising or taking logarithms first changes
    none, rounding apart (spread ties are drawn anew: the draws are keyed by the cell's values).

    Parameters
    ----------
    data
        AnnData in memory or backed; or MuData with `mod`. Values must be finite and not negative.
    n_bins
        Number of bins :math:`B`, with the one for zeros.
    ties
        What happens to a value on which several edges fall, as they do on small counts. "spread": its bin is drawn
        uniformly from those it spans, as the published package does: in a cell with 60 ones, 30 twos and 10 fives the
        ones get 1 .. 30, the twos 31 .. 45, the fives 46 .. 50; where all values are equal, or there is but one, they
        get 1 .. 50. "upper": the highest of them, without chance.
    layer
        Layer to read; None is `.X`.
    key_added
        Layer and `.uns` key to write.
    mod
        Modality of a MuData.
    rng
        Seed of the draws. A draw depends on it, on the cell's content and on the gene's name: never on the order of
        cells or genes, on the storage or on the number of threads. A cell's other genes are part of its content.
    overwrite
        Write over a layer or `.uns` entry that this function did not make. Its own results are always replaced.
    copy
        Return a changed copy (in memory, for a backed object) and leave `data` alone.

    Returns
    -------
    None, or with `copy` the copy. Sets (under `data.mod[mod]` for MuData):

    `.layers[key_added]` : sparse (n_obs, n_vars) uint8; uint16 above 256 bins, uint32 above 65,536
        CSC where the values were CSC, else CSR (for dense values too).
    `.uns[key_added]` : dict
        `n_bins`, `ties`, `layer`, `seed` and `n_empty`, the number of cells without any value (rows of zeros).

    Raises
    ------
    ValueError
        `n_bins` below 2; negative, infinite or missing values; `.X` is None; the key holds something else; `mod` for an
        AnnData or none for a MuData; a view of a file, which takes no results, without `copy`.
    KeyError
        No such layer or modality.
    TypeError
        `n_bins` is no integer, `data` or its values are of a wrong kind.
    """
    _check_options(n_bins, ties, layer, key_added)
    seed = as_seed(rng)
    source = _modality(data, mod)
    refuse_backed_view(source, "data" if mod is None else f"data.mod[{mod!r}]", copy=copy)
    slots = {"layers": (key_added,), "uns": (key_added,)}
    refuse_foreign(source, slots, key=key_added, maker=_MAKER, overwrite=overwrite, argument="key_added")
    binned, n_empty = _bin_layer(source, layer, n_bins=int(n_bins), ties=ties, seed=seed)

    if copy:
        data = copied(data)
    target = _modality(data, mod)
    target.layers[key_added] = binned
    target.uns[key_added] = {
        OWNER: _MAKER,
        "n_bins": int(n_bins),
        "ties": ties,
        "layer": "X" if layer is None else layer,
        "seed": seed,
        "n_empty": n_empty,
    }
    return data if copy else None


def _check_options(n_bins: Any, ties: Any, layer: str | None, key_added: str) -> None:
    if isinstance(n_bins, bool) or not isinstance(n_bins, (int, np.integer)):
        msg = f"n_bins={n_bins!r} is {type(n_bins).__name__}; an integer is expected, e.g. n_bins=51"
        raise TypeError(msg)
    if not 2 <= n_bins <= 2**31 - 1:
        msg = f"n_bins={n_bins}: at least 2 are needed, one for zeros and one for everything else (published: 51)"
        raise ValueError(msg)
    if ties not in get_args(Ties):
        msg = f"ties={ties!r} is unknown; give one of {', '.join(map(repr, get_args(Ties)))}"
        raise ValueError(msg)
    if layer == key_added:
        msg = f"layer and key_added are both {layer!r}: the values would be lost; give key_added another name"
        raise ValueError(msg)


def _modality(data: Any, mod: str | None) -> AnnData:
    """The AnnData that is meant."""
    modalities = getattr(data, "mod", None)
    if not isinstance(modalities, Mapping):  # of a DataFrame it is the remainder of a division
        if not (hasattr(data, "layers") and hasattr(data, "obs_names")):
            msg = f"data is {type(data).__name__}; AnnData or MuData is expected"
            raise TypeError(msg)
        if mod is not None:
            msg = f"mod={mod!r} is for MuData and data is AnnData: leave mod out"
            raise ValueError(msg)
        return data
    there = ", ".join(map(repr, modalities)) or "none"
    if mod is None:
        msg = f"data is MuData: say which modality with mod= (there: {there})"
        raise ValueError(msg)
    if mod not in modalities:
        msg = f"modality {mod!r} is not in the MuData (there: {there})"
        raise KeyError(msg)
    return modalities[mod]


def _bin_layer(adata: AnnData, layer: str | None, *, n_bins: int, ties: Ties, seed: int) -> tuple[Any, int]:
    """Binned matrix and number of empty cells."""
    matrix = open_layer(adata, layer)
    genes = name_keys(adata.var_names)
    # collected, then joined once: digits are a byte each
    lengths, indices = [np.zeros(1, np.int64)], [np.empty(0, np.int32)]
    digits = [np.empty(0, bin_dtype(n_bins))]
    for start, block in matrix.blocks(_ROWS):
        check_values(block, start, adata, layer)
        lengths.append(np.diff(block.indptr).astype(np.int64))
        indices.append(block.indices)  # maybe a window on the user's own: concatenating copies it
        digits.append(bin_csr(block.indptr, block.indices, block.data, genes, n_bins=n_bins, ties=ties, seed=seed))
    indptr = np.cumsum(np.concatenate(lengths))
    n_empty = int(np.count_nonzero(np.diff(indptr) == 0))
    if n_empty:
        _log.info("%d of %d cells have no value and stay rows of zeros", n_empty, adata.n_obs)
    stored = _parent(adata)[0]
    stored = stored.X if layer is None else stored.layers[layer]
    as_csr = sparse.csr_array if isinstance(stored, sparse.sparray) else sparse.csr_matrix
    binned = as_csr((np.concatenate(digits), np.concatenate(indices), indptr), shape=matrix.shape)
    return binned.tocsc() if getattr(stored, "format", None) == "csc" else binned, n_empty

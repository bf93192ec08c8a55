"""Values that a function of `pp` can read, checked block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse


def check_values(block: sparse.csr_matrix, start: int, adata: AnnData, layer: str | None) -> None:
    """Refuse what is no count and no logarithm of one, and say where it is.

    Parameters
    ----------
    block
        Rows of `layer` (None: of `.X`), the first of which is row `start` of `adata`.

    Raises
    ------
    ValueError
        A value is negative, infinite or missing.
    """
    if block.nnz == 0:
        return
    low, high = block.data.min(), block.data.max()  # NaN comes through both
    if low >= 0 and high < np.inf:
        return
    finite = np.isfinite(block.data)
    bad = ~finite if not finite.all() else block.data < 0
    place = int(np.flatnonzero(bad)[0])
    row = start + int(np.searchsorted(block.indptr, place, side="right")) - 1
    where = (
        f"{'.X' if layer is None else f'layer {layer!r}'} holds {block.data[place]} in cell {adata.obs_names[row]!r}"
    )
    if not finite.all():
        msg = f"{where}; values must be finite: look for a division by zero or missing values"
        raise ValueError(msg)
    there = ", ".join(map(repr, adata.layers)) or "none here"
    msg = (
        f"{where}; values must not be negative, and scaled data are. Counts or log-normalised values are expected: "
        f"give adata.raw.to_adata(), or name a layer that holds them with layer= (layers: {there})"
    )
    raise ValueError(msg)

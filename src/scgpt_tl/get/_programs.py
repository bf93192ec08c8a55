"""Gene programs as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS, program_key
from scgpt_tl.get._network import network, pairs

if TYPE_CHECKING:
    from anndata import AnnData


def programs_df(adata: AnnData, *, key: str = SLOTS.network, resolution: float | None = None) -> pd.DataFrame:
    """Genes of each program, those first that hold it together.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn` with `method="embedding"`.
    key
        The result's name: the `key_added` of the call.
    resolution
        One of those that the call was given. None: the one whose programs stand in `.var`.

    Returns
    -------
    One row per gene in a program: `gene`; `program`, an ordered categorical "1", "2", ... by falling size; `n_genes` of
    that program; `strength`, the sum of the gene's cosines with neighbours in its own program, by which genes are
    ordered, equal ones by name. Empty where there is no program.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ValueError
        Where the network is not one of embeddings, or has no such resolution.
    """
    codes = _codes(adata, key, resolution)
    edges = pairs(adata, key)
    inside = (codes[edges.row] == codes[edges.col]) & (codes[edges.row] >= 0)
    ends = np.append(edges.row[inside], edges.col[inside])
    strength = np.bincount(ends, np.tile(edges.data[inside], 2), minlength=adata.n_vars)
    there = np.flatnonzero(codes >= 0)
    sizes = np.bincount(codes[there])
    table = pd.DataFrame(
        {
            "gene": adata.var_names.astype(str).to_numpy(dtype=object)[there],
            "program": pd.Categorical.from_codes(codes[there], [str(i + 1) for i in range(len(sizes))], ordered=True),
            "n_genes": sizes[codes[there]],
            "strength": strength[there],
        }
    )
    return table.sort_values(["program", "strength", "gene"], ascending=[True, False, True], ignore_index=True)


def _codes(adata: AnnData, key: str, resolution: float | None) -> np.ndarray:
    """Program of each gene from 0, -1 for none: `(n_vars,)`."""
    run, slot = network(adata, key), program_key(key)
    if str(run["method"]) != "embedding":
        msg = f"{key!r} was made by method={run['method']!r}, which finds no programs: "
        msg += f"{MAKERS[SLOTS.network].removesuffix(')')}, method='embedding') does"
        raise ValueError(msg)
    held = adata.var if resolution is None else adata.varm
    if slot not in held:
        msg = f"adata.{'var' if resolution is None else 'varm'} has no {slot!r}; {MAKERS[SLOTS.network]} makes it"
        raise KeyError(msg)
    if resolution is None:
        names = adata.var[slot].astype(object)
        return np.array([-1 if pd.isna(name) else int(name) - 1 for name in names])
    tried = run["resolutions"]["resolution"].to_numpy(dtype=float)
    column = np.flatnonzero(np.isclose(tried, resolution))
    if not len(column):
        msg = f"{key!r} has no resolution {resolution:g}; there are {', '.join(f'{r:g}' for r in tried)}"
        raise ValueError(msg)
    return np.asarray(adata.varm[slot])[:, column[0]]

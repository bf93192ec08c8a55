"""Expression as the baselines take it: log-normalised, the genes that vary. Arrays in, arrays out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, issparse

#: Above this no logarithm of counts per 10,000 goes: log1p(1e4) is 9.2.
_LOG_CEILING = 30.0

#: A batch of fewer cells has no dispersion to rank genes by.
_BATCH_FOR_GENES = 20


def looks_logged(X: Any) -> bool:
    """Whether a matrix `(n, genes)` holds logs: some values are no whole numbers, and none is above 30."""
    values = X.data if issparse(X) else np.asarray(X).ravel()
    if not values.size or values.max() > _LOG_CEILING:
        return False
    return bool((values != np.floor(values)).any())


def log_normalised(X: Any, logged: bool | None, *, least: int = 3) -> Any:
    """An AnnData of log-normalised float32 values, a copy."""
    import anndata as ad
    import scanpy as sc

    matrix = checked(X, least)
    holder = ad.AnnData(matrix)
    if not (looks_logged(matrix) if logged is None else logged):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")  # scanpy warns of zero cells
            sc.pp.normalize_total(holder, target_sum=1e4)
            sc.pp.log1p(holder)
    return holder


def variable_genes(holder: Any, n_genes: int, batches: Any) -> np.ndarray:
    """Which genes `(genes,)` vary most, over all cells or within batches; all where there are no more."""
    import scanpy as sc

    if n_genes >= holder.n_vars:
        return np.ones(holder.n_vars, dtype=bool)
    if batches is None:
        return sc.pp.highly_variable_genes(holder, n_top_genes=n_genes, inplace=False)["highly_variable"].to_numpy()
    batch = np.asarray(batches, dtype=object)
    large = pd.Series(batch).groupby(batch).transform("size").to_numpy() >= _BATCH_FOR_GENES
    if not large.any():
        return variable_genes(holder, n_genes, None)
    part = holder[large].copy()
    part.obs["batch"] = pd.Categorical(batch[large])
    chosen = sc.pp.highly_variable_genes(part, n_top_genes=n_genes, batch_key="batch", inplace=False)
    return chosen["highly_variable"].reindex(holder.var_names).to_numpy()


def checked(X: Any, least: int) -> csr_matrix:
    """A float32 copy, with the values that no count or logarithm has refused."""
    matrix = csr_matrix(X, dtype=np.float32, copy=True)
    if min(matrix.shape) < least:
        msg = f"at least {least} cells and {least} genes are needed, found {matrix.shape[0]} x {matrix.shape[1]}"
        raise ValueError(msg)
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        msg = "X has negative, NaN or infinite values: give counts or log-normalised values, e.g. adata.raw.X"
        raise ValueError(msg)
    return matrix

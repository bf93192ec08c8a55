"""Simple methods that a foundation model must be shown beside. Arrays in, arrays out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse

#: Above this no logarithm of counts per 10,000 goes: log1p(1e4) is 9.2.
_LOG_CEILING = 30.0


def looks_logged(X: Any) -> bool:
    """Whether a matrix `(n, genes)` holds logs: some values are no whole numbers, and none is above 30."""
    values = X.data if issparse(X) else np.asarray(X).ravel()
    if not values.size or values.max() > _LOG_CEILING:
        return False
    return bool((values != np.floor(values)).any())


def hvg_pca(
    X: Any,
    *,
    logged: bool | None = None,
    n_genes: int = 1200,
    n_components: int = 50,
    scale: bool = True,
    rng: int = 0,
) -> np.ndarray:
    """PCA of highly variable genes, the plain way to see cell types.

    Counts are normalised to 10,000 per cell and `log1p` is taken; then genes are chosen by scanpy's dispersion, scaled
    to unit variance (clipped at 10) and projected. 1,200 genes are the number that the published integration runs use.

    Parameters
    ----------
    X
        `(n, genes)` counts or log-normalised values, dense or sparse; not changed.
    logged
        Whether X is log-normalised already; `None`: as `looks_logged` finds.
    n_genes
        Highly variable genes; all genes where there are no more.
    n_components
        Dimensions; fewer where cells or genes are fewer.
    scale
        Whether each gene is scaled to unit variance. Neither way is always the better one: see docs/evaluation.md.
    rng
        Seed of the solver's start vector.

    Returns
    -------
    `(n, D)` float32.

    Raises
    ------
    ValueError
        Where X has negative or non-finite values, or fewer than 3 cells or genes.
    """
    import anndata as ad
    import scanpy as sc

    matrix = _checked(X)
    holder = ad.AnnData(matrix)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # scanpy warns of zero cells and of its own future defaults
        if not (looks_logged(matrix) if logged is None else logged):
            sc.pp.normalize_total(holder, target_sum=1e4)
            sc.pp.log1p(holder)
        if n_genes < holder.n_vars:
            sc.pp.highly_variable_genes(holder, n_top_genes=n_genes)
            holder = holder[:, holder.var["highly_variable"].to_numpy()].copy()
        if scale:
            sc.pp.scale(holder, max_value=10)
        size = min(n_components, holder.n_obs - 1, holder.n_vars - 1)
        sc.pp.pca(holder, n_comps=size, svd_solver="arpack", random_state=rng)
    return np.ascontiguousarray(holder.obsm["X_pca"], dtype=np.float32)


def _checked(X: Any) -> csr_matrix:
    """A float32 copy, with the values that no count or logarithm has refused."""
    matrix = csr_matrix(X, dtype=np.float32, copy=True)
    if min(matrix.shape) < 3:
        msg = f"PCA needs at least 3 cells and 3 genes, found {matrix.shape[0]} x {matrix.shape[1]}"
        raise ValueError(msg)
    if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
        msg = "X has negative, NaN or infinite values: give counts or log-normalised values, e.g. adata.raw.X"
        raise ValueError(msg)
    return matrix

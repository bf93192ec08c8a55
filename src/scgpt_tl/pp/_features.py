"""`pp.select_genes`, `pp.select_peaks`: mark the variables worth reading; scanpy and episcanpy do the choosing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scgpt_tl._compat import need
from scgpt_tl._slots import check_anndata, copied, refuse_backed_view
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._values import check_values

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Flavor = Literal["seurat", "cell_ranger", "seurat_v3", "seurat_v3_paper"]

_ROWS = 4096  # read at a time


def select_genes(
    adata: AnnData,
    *,
    n_genes: int = 1200,
    flavor: Flavor = "seurat",
    layer: str | None = None,
    batch_key: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Mark highly variable genes with `scanpy.pp.highly_variable_genes`; none is dropped.

    Parameters
    ----------
    adata
        Counts or log-normalised values, in memory or backed.
    n_genes
        How many to mark. The published tutorials take 1,200 (integration) to 3,000 (reference mapping).
    flavor
        scanpy's. "seurat" and "cell_ranger" want logarithms: counts (whole numbers) are normalised to 10,000 per cell
        and logged in a copy first. "seurat_v3" wants counts, and the package scikit-misc.
    layer
        Layer to read; None is `.X`.
    batch_key
        Column of `.obs`: choose within each batch, then merge, which avoids genes that tell batches apart.
    copy
        Return a changed copy (in memory, for a backed object) and leave `adata` alone.

    Returns
    -------
    None, or with `copy` the copy. Sets:

    `.var["highly_variable"]` : bool (n_vars,)
        With scanpy's own columns beside it (`means`, `dispersions`, ...).
    `.uns["hvg"]` : dict
        scanpy's note of the flavor.

    Raises
    ------
    KeyError
        No such layer or column.
    ValueError
        `n_genes` below 1; negative (scaled), infinite or missing values; a view of a file, which takes no results,
        without `copy`.
    TypeError
        `adata` is no AnnData.
    ImportError
        "seurat_v3" without scikit-misc.
    """
    check_anndata(adata, "adata")
    refuse_backed_view(adata, "adata", copy=copy)
    table, note = variable_genes(adata, n_genes=n_genes, flavor=flavor, layer=layer, batch_key=batch_key)
    result = copied(adata) if copy else adata
    for column in table:
        result.var[column] = table[column].to_numpy()
    result.uns["hvg"] = note
    return result if copy else None


def variable_genes(
    adata: AnnData, *, n_genes: int, flavor: Flavor = "seurat", layer: str | None = None, batch_key: str | None = None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What `select_genes` writes: columns of `.var`, in the order of the genes, and scanpy's note."""
    import scanpy as sc  # costs seconds: loaded on use

    _check_number("n_genes", n_genes)
    if batch_key is not None and batch_key not in adata.obs:
        msg = f"batch_key={batch_key!r} is not in .obs (there: {', '.join(map(repr, adata.obs)) or 'none'})"
        raise KeyError(msg)
    own = _values(adata, layer)
    if batch_key is not None:
        own.obs[batch_key] = adata.obs[batch_key].astype("category").to_numpy()
    if flavor in ("seurat", "cell_ranger") and (own.X.data == np.rint(own.X.data)).all():
        own.X = own.X.astype(np.float32)
        sc.pp.normalize_total(own, target_sum=1e4)
        sc.pp.log1p(own)
    sc.pp.highly_variable_genes(own, n_top_genes=min(n_genes, adata.n_vars), flavor=flavor, batch_key=batch_key)
    return own.var, own.uns["hvg"]


def select_peaks(
    adata: AnnData, *, n_peaks: int = 20_000, layer: str | None = None, copy: bool = False
) -> AnnData | None:
    r"""Mark the most variable peaks with episcanpy's variability score; none is dropped.

    The score of a peak that is open (has any value) in a share :math:`p` of the cells is :math:`1 - |p - 0.5|`
    (Danese et al. 2021, Nature Communications 12:5228).

    Parameters
    ----------
    adata
        Peak counts or open/closed values, in memory or backed.
    n_peaks
        How many to mark; of equal scores the first ones are taken.
    layer
        Layer to read; None is `.X`.
    copy
        Return a changed copy (in memory, for a backed object) and leave `adata` alone.

    Returns
    -------
    None, or with `copy` the copy. Sets:

    `.var["highly_variable"]` : bool (n_vars,)
    `.var["variability_score"]`, `.var["prop_shared_cells"]` : float64 (n_vars,)

    Raises
    ------
    ImportError
        Without episcanpy; the message is the line that installs it.
    KeyError
        No such layer.
    ValueError
        `n_peaks` below 1; no cell; negative (scaled), infinite or missing values; a view of a file, which takes no
        results, without `copy`.
    TypeError
        `adata` is no AnnData.
    """
    check_anndata(adata, "adata")
    refuse_backed_view(adata, "adata", copy=copy)
    _check_number("n_peaks", n_peaks)
    if adata.n_obs == 0:
        msg = "the data set has no cell, so no share of cells in which a peak is open; check how it was filtered"
        raise ValueError(msg)
    epi = _episcanpy()
    own = _values(adata, layer)
    own.X.data = np.ones(own.X.nnz, dtype=np.float32)  # open or closed
    epi.pp.cal_var(own, show=False)
    score = own.var["variability_score"].to_numpy(dtype=np.float64)
    chosen = np.zeros(adata.n_vars, dtype=bool)
    chosen[np.argsort(-score, kind="stable")[:n_peaks]] = True
    result = copied(adata) if copy else adata
    result.var["prop_shared_cells"] = own.var["prop_shared_cells"].to_numpy(dtype=np.float64)
    result.var["variability_score"] = score
    result.var["highly_variable"] = chosen
    return result if copy else None


def _values(adata: AnnData, layer: str | None) -> AnnData:
    """The matrix as CSR in a new AnnData with nothing else, for others to write into."""
    import anndata as ad
    import pandas as pd

    matrix = open_layer(adata, layer)
    blocks = []
    for start, block in matrix.blocks(_ROWS):
        check_values(block, start, adata, layer)
        blocks.append(block)
    x = sparse.csr_matrix(sparse.vstack(blocks, format="csr") if blocks else matrix.shape)
    x = x.copy() if len(blocks) == 1 else x  # one block may be a window on the user's own arrays
    obs, var = (pd.DataFrame(index=pd.RangeIndex(size).astype(str)) for size in matrix.shape)
    return ad.AnnData(x, obs=obs, var=var)


def _check_number(name: str, value: int) -> None:
    if value < 1:
        msg = f"{name}={value}: at least 1 is needed"
        raise ValueError(msg)


def _episcanpy() -> Any:
    # what it warns of is its own way of importing, nothing that a user could mend
    with _removed_names(), warnings.catch_warnings(action="ignore"):
        return need("episcanpy", extra="atac")


@contextmanager
def _removed_names() -> Iterator[None]:
    """episcanpy 0.4 imports two names that numpy 2 and anndata 0.11 took away; lend them for as long as that takes."""
    import anndata as ad

    lent: list[tuple[Any, str]] = []
    for module, name, value in ((np, "NaN", np.nan), (ad, "read", ad.read_h5ad)):
        if name not in vars(module):
            setattr(module, name, value)
            lent.append((module, name))
    try:
        yield
    finally:
        for module, name in lent:
            delattr(module, name)

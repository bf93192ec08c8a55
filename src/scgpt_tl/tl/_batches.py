"""Batches and types of cells, read and refused, and the genes by which cells are compared."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scgpt_tl._nearest import nearest
from scgpt_tl.engine.predict import ROWS
from scgpt_tl.metrics._checks import names, types
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._features import variable_genes
from scgpt_tl.tl._columns import refuse_measurements

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.genes.match import GeneMatch

logger = logging.getLogger(__name__)

LEAST_GENES = 20  # below which there is little to compare cells by
_LEAST_CELLS = 50  # in a smaller batch a gene may be absent by chance
_CHOOSING = 20  # cells that a batch must have to choose genes


@dataclass(frozen=True)
class Batches:
    """Which batch each cell is of."""

    names: tuple[str, ...]
    """Sorted, each with a cell."""
    codes: np.ndarray
    """(n_obs,) int64 place among the names."""

    @property
    def counts(self) -> np.ndarray:
        """Cells of each."""
        return np.bincount(self.codes, minlength=len(self.names))

    @property
    def column(self) -> np.ndarray:
        """(n_obs,) names."""
        return np.array(self.names, dtype=object)[self.codes]


def read_batches(adata: AnnData, batch_key: str) -> Batches:
    """Batches of the cells.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        Cells without a batch, measurements, or about as many batches as cells.
    """
    column = names(_column(adata, batch_key, "batch_key", "batches"))
    if n := int(pd.isna(column).sum()):
        msg = f"{n:,} cells have no batch in {batch_key!r}: drop them, or name their batch ('unknown')"
        raise ValueError(msg)
    found, codes = np.unique(column.astype(str), return_inverse=True)
    if len(found) > max(2, adata.n_obs // 2):
        msg = f"batch_key={batch_key!r} has {len(found):,} batches for {adata.n_obs:,} cells: is it the right column?"
        raise ValueError(msg)
    return Batches(tuple(found.tolist()), codes.astype(np.int64))


def read_labels(adata: AnnData, labels_key: str | None) -> np.ndarray | None:
    """Cell types, (n_obs,) str or None where a cell has none; None where they are not asked for.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        Measurements, or types by which no embedding can be scored: fewer than two, or as many as cells.
    """
    if labels_key is None:
        return None
    labels = types(_column(adata, labels_key, "labels_key", "cell types"))
    missing = pd.isna(labels)
    found, known = len(set(labels[~missing])), int((~missing).sum())
    if not 2 <= found < known:
        what = "fewer than two cell types" if found < 2 else f"{found:,} cell types on {known:,} cells"
        msg = f"labels_key={labels_key!r} has {what}: there is nothing to check, leave it out"
        raise ValueError(msg)
    if n := int(missing.sum()):
        logger.warning("%s of %s cells have no label in %r; the check leaves them out", n, len(labels), labels_key)
    return labels


def _column(adata: AnnData, key: str, argument: str, what: str) -> pd.Series:
    """A column of `.obs` that holds names."""
    if key not in adata.obs:
        msg = f"{argument}={key!r} is not in .obs; {nearest(key, map(str, adata.obs))}"
        raise KeyError(msg)
    column = pd.Series(np.asarray(adata.obs[key], dtype=object))
    refuse_measurements(column, key, argument, what, "adata.obs")
    return column


def check_several(batches: Batches, batch_key: str) -> None:
    """Refuse what has nothing to integrate, say what is allowed and may surprise.

    Raises
    ------
    ValueError
        A single batch.
    """
    if len(batches.names) < 2:
        msg = f"batch_key={batch_key!r} has one batch, {batches.names[0]!r}: two or more are needed to integrate"
        raise ValueError(msg)
    alone = [name for name, n in zip(batches.names, batches.counts, strict=True) if n == 1]
    if alone:
        logger.warning(
            "batches of a single cell, from which nothing about them can be learned: %s", ", ".join(alone[:5])
        )


def genes_for(
    adata: AnnData, batches: Batches, match: GeneMatch, *, layer: str | None, n_genes: int, flavor: Any
) -> np.ndarray:
    """Variables to learn from: common to the batches, in the vocabulary, and the most variable of these.

    A gene is common where a cell of each batch expresses it; batches of fewer than 50 cells do not decide, unless all
    are so small. What is variable is decided within each batch of at least 20 cells, and merged.

    Returns
    -------
    (n_vars,) bool.

    Raises
    ------
    ValueError
        Fewer than 20 common genes, or `n_genes` below 20.
    """
    if n_genes < LEAST_GENES:
        msg = f"n_genes={n_genes}: at least {LEAST_GENES} are needed to compare cells"
        raise ValueError(msg)
    expressed = np.zeros((len(batches.names), adata.n_vars), np.int64)
    for start, block in open_layer(adata, layer).blocks(ROWS):
        codes = batches.codes[start : start + block.shape[0]]
        for batch in np.unique(codes):
            expressed[batch] += np.bincount(block[codes == batch].indices, minlength=adata.n_vars)
    deciding = batches.counts >= min(_LEAST_CELLS, batches.counts.max())
    common = (expressed[deciding] > 0).all(0) & (match.ids >= 0)
    if common.sum() < LEAST_GENES:
        msg = (
            f"{int(common.sum())} of the model's genes are expressed in every batch, of {match.n_matched} in the data; "
            f"at least {LEAST_GENES} are needed: do all batches name genes alike, and did each measure them?"
        )
        raise ValueError(msg)
    if common.sum() <= n_genes:
        return common
    chosen = np.zeros(adata.n_vars, bool)
    chosen[np.flatnonzero(common)[_variable(adata, batches, common, layer, n_genes, flavor)]] = True
    return chosen


def _variable(
    adata: AnnData, batches: Batches, common: np.ndarray, layer: str | None, n_genes: int, flavor: Any
) -> np.ndarray:
    """Which of the common genes vary most, bool."""
    import anndata as ad

    choosing = batches.counts >= _CHOOSING
    rows = choosing[batches.codes] if choosing.any() else np.ones(adata.n_obs, bool)
    blocks = open_layer(adata, layer).blocks(ROWS)
    x = sparse.vstack([block[rows[i : i + block.shape[0]]][:, common] for i, block in blocks], format="csr")
    if flavor == "seurat_v3" and (x.data != np.rint(x.data)).any():
        logger.warning("values are no counts: genes are chosen by flavor 'seurat' where 'seurat_v3' wants counts")
        flavor = "seurat"
    obs = pd.DataFrame({"batch": pd.Categorical(batches.column[rows])}, index=pd.RangeIndex(x.shape[0]).astype(str))
    small = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.RangeIndex(x.shape[1]).astype(str)))
    key = "batch" if obs["batch"].nunique() > 1 else None
    return variable_genes(small, n_genes=n_genes, flavor=flavor, batch_key=key)[0]["highly_variable"].to_numpy()

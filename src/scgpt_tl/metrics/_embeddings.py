"""Embeddings that a foundation model must be shown beside: HVG + PCA, Harmony, scVI. Arrays in, arrays out."""

from __future__ import annotations

import logging
import os
import random  # noqa: TID251 - scvi-tools seeds this stream too: what the user had is put back
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scgpt_tl._compat import need
from scgpt_tl.metrics import _checks
from scgpt_tl.metrics._expression import log_normalised, variable_genes


def hvg_pca(
    X: Any,
    *,
    batches: Any = None,
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
    batches
        `(n,)`: genes are chosen by the number of batches that they vary in, so that a gene which only parts batches is
        not. None: by their variation over all cells.
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
    import scanpy as sc

    holder = log_normalised(X, logged)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # scanpy warns of zero cells and of its own future defaults
        holder = holder[:, variable_genes(holder, n_genes, batches)].copy()
        if scale:
            sc.pp.scale(holder, max_value=10)
        size = min(n_components, holder.n_obs - 1, holder.n_vars - 1)
        sc.pp.pca(holder, n_comps=size, svd_solver="arpack", random_state=rng)
    return np.ascontiguousarray(holder.obsm["X_pca"], dtype=np.float32)


def harmony(X: Any, batches: Any, *, rng: int = 0, **options: Any) -> np.ndarray:
    """Harmony (Korsunsky et al. 2019) on HVG + PCA, by harmonypy with its own defaults (extra `harmony`).

    Parameters
    ----------
    X
        `(n, genes)` counts or log-normalised values, dense or sparse; not changed.
    batches
        `(n,)`, none missing.
    rng
        Seed of PCA and of Harmony's clusters.
    options
        Passed on to `hvg_pca`; genes are chosen within batches.

    Returns
    -------
    `(n, D)` float32.

    Raises
    ------
    ImportError
        Without harmonypy; the message is the line that installs it.
    ValueError
        As `hvg_pca`, or with a batch missing or fewer than two of them.
    """
    package = need("harmonypy", extra="harmony")
    batch = _batches(batches, np.shape(X)[0])
    found = hvg_pca(X, batches=batch, rng=rng, **options)
    groups = min(max(2, round(len(found) / 30)), 100)  # harmonypy's own rule gives none to fewer than 15 cells
    run = package.run_harmony(
        found, pd.DataFrame({"batch": batch}), "batch", nclust=groups, random_state=rng, verbose=False
    )
    corrected = np.asarray(run.Z_corr)
    if corrected.shape != found.shape:  # before harmonypy 2 a cell was a column
        corrected = corrected.T
    return np.ascontiguousarray(corrected, dtype=np.float32)


def scvi(
    X: Any,
    batches: Any,
    *,
    epochs: int | None = None,
    n_genes: int = 1200,
    n_latent: int = 30,
    n_layers: int = 2,
    rng: int = 0,
) -> np.ndarray:
    """scVI (Lopez et al. 2018) on highly variable genes, by scvi-tools on the CPU (extra `scvi`).

    Sizes and the negative binomial likelihood are those of scvi-tools' own integration tutorial.

    Parameters
    ----------
    X
        `(n, genes)` counts, dense or sparse; not changed.
    batches
        `(n,)`, none missing.
    epochs
        Passes over the cells; None: scvi-tools' rule, 400 and fewer above 20,000 cells, which takes minutes.
    n_genes
        Highly variable genes, chosen within batches on log-normalised counts.
    n_latent
        Dimensions of the embedding.
    n_layers
        Hidden layers.
    rng
        Seed; torch's, numpy's and Python's own streams are left as they were.

    Returns
    -------
    `(n, n_latent)` float32, means of the latent variables.

    Raises
    ------
    ImportError
        Without scvi-tools; the message is the line that installs it.
    ValueError
        Where X holds anything but counts, or with a batch missing or fewer than two of them.
    """
    batch = _batches(batches, np.shape(X)[0])
    counts = csr_matrix(X, dtype=np.float32)
    if not (
        np.isfinite(counts.data).all() and (counts.data >= 0).all() and (counts.data == np.floor(counts.data)).all()
    ):
        msg = "scVI models counts, and X holds values that are none: give counts, e.g. layer='counts' or adata.raw.X"
        raise ValueError(msg)
    holder = log_normalised(X, False)
    chosen = variable_genes(holder, n_genes, batch)
    holder = holder[:, chosen].copy()
    holder.X = counts[:, chosen]
    holder.obs["batch"] = pd.Categorical(batch)
    at_once = 128 + (holder.n_obs % 128 == 1)  # batch norm cannot learn from one cell
    with _seeded(rng) as package, warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # Lightning's advice on workers, scvi-tools' on genes without counts
        package.model.SCVI.setup_anndata(holder, batch_key="batch")
        model = package.model.SCVI(holder, n_latent=n_latent, n_layers=n_layers, gene_likelihood="nb")
        model.train(
            max_epochs=epochs, accelerator="cpu", devices=1, train_size=1.0, batch_size=at_once,
            enable_progress_bar=False, enable_model_summary=False, logger=False,
        )  # fmt: skip
        return np.ascontiguousarray(model.get_latent_representation(), dtype=np.float32)


def _batches(batches: Any, n_cells: int) -> np.ndarray:
    """Names of the batches `(n,)`, all known and at least two."""
    batch = _checks.names(batches)
    _checks.same_length(n_cells, batch, "batches", "X")
    missing = int(pd.isna(batch).sum())
    if missing or len(set(batch)) < 2:
        msg = f"{missing} of {n_cells} cells have no batch, and there are {len(set(batch) - {None})} distinct batches: "
        msg += "at least 2 are needed, and one for every cell"
        raise ValueError(msg)
    return batch


@contextmanager
def _seeded(rng: int) -> Iterator[Any]:
    """scvi-tools, quiet and under a seed; the global random streams, which it seeds, as they were afterwards."""
    torch = need("torch")
    streams = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    heard = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "scvi")]
    package = need("scvi", extra="scvi")  # importing it draws numbers, and sets its logger
    levels = [one.level for one in heard]
    seed, flags = package.settings.seed, (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    told = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS")}
    for one in heard:
        one.setLevel(logging.ERROR)
    try:
        package.settings.seed = rng
        yield package
    finally:
        package.settings.seed = seed
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
        for name, value in told.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        for one, level in zip(heard, levels, strict=True):
            one.setLevel(level)
        random.setstate(streams[0])
        np.random.set_state(streams[1])  # noqa: NPY002
        torch.random.set_rng_state(streams[2])

"""Cell types learned on a reference and called in a query by simple methods. Arrays in, arrays out."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from scgpt_tl.metrics import _checks
from scgpt_tl.metrics._expression import log_normalised, variable_genes


class Calls(NamedTuple):
    """Cell types that a method gives to the cells of a query."""

    labels: np.ndarray
    """`(n,)` str, the type with the largest probability."""
    probabilities: np.ndarray
    """`(n, C)` float32, rows that sum to one."""
    classes: np.ndarray
    """`(C,)` str, names of the columns, sorted."""


def logistic_regression(
    reference: Any,
    labels: Any,
    query: Any,
    *,
    logged: bool | None = None,
    n_genes: int = 1200,
    strength: float = 0.01,
    rng: int = 0,
) -> Calls:
    """Multinomial logistic regression on highly variable genes of a reference.

    Both sides are log-normalised; genes, their means and their variances are the reference's.

    Parameters
    ----------
    reference
        `(n, genes)` counts or log-normalised values, dense or sparse.
    labels
        `(n,)`; reference cells without one are left out.
    query
        `(m, genes)`, the same genes in the same order.
    logged
        Whether both are log-normalised already; None: as `looks_logged` finds on each.
    n_genes
        Highly variable genes of the reference.
    strength
        Inverse strength of the L2 penalty (scikit-learn's C), small because there are about as many genes as cells.
    rng
        Taken for the sake of one way to call every baseline; nothing is drawn.

    Raises
    ------
    ValueError
        Where genes do not agree, no reference cell has a label, or values are negative or not finite.
    """
    from sklearn.linear_model import LogisticRegression

    codes, classes = _classes(reference, labels, query)
    if len(classes) == 1:
        return majority(reference, labels, query)
    known, asked = _scaled(reference, codes >= 0, query, logged=logged, n_genes=n_genes)
    fitted = LogisticRegression(C=strength, max_iter=1000, random_state=rng).fit(known, codes[codes >= 0])
    return _calls(fitted.predict_proba(asked), classes)


def knn_pca(
    reference: Any,
    labels: Any,
    query: Any,
    *,
    k: int = 15,
    n_components: int = 50,
    logged: bool | None = None,
    n_genes: int = 1200,
    rng: int = 0,
) -> Calls:
    """Votes of the k nearest reference cells in the reference's PCA (Euclidean, equal weights).

    Parameters
    ----------
    reference, labels, query, logged, n_genes
        As in `logistic_regression`.
    k
        Neighbours; fewer where there are fewer cells.
    n_components
        Dimensions of the PCA; fewer where cells or genes are fewer.
    rng
        Seed of the solver's start vector.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    codes, classes = _classes(reference, labels, query)
    known, asked = _scaled(reference, codes >= 0, query, logged=logged, n_genes=n_genes)
    codes = codes[codes >= 0]
    if (size := min(n_components, min(known.shape) - 1)) < 1:
        return majority(reference, labels, query)
    pca = PCA(n_components=size, svd_solver="arpack", random_state=rng).fit(known)
    index = NearestNeighbors(n_neighbors=min(k, len(known))).fit(pca.transform(known))
    voters = codes[index.kneighbors(pca.transform(asked), return_distance=False)]
    shares = np.stack([(voters == code).mean(axis=1) for code in range(len(classes))], axis=1)
    return _calls(shares, classes)


def majority(reference: Any, labels: Any, query: Any) -> Calls:
    """The reference's commonest type for every cell, with the reference's frequencies as probabilities.

    Parameters
    ----------
    reference, labels, query
        As in `logistic_regression`; of the matrices only the sizes matter.
    """
    codes, classes = _classes(reference, labels, query)
    shares = np.bincount(codes[codes >= 0], minlength=len(classes)) / (codes >= 0).sum()
    return _calls(np.tile(shares, (np.shape(query)[0], 1)), classes)


def _calls(shares: np.ndarray, classes: np.ndarray) -> Calls:
    return Calls(classes[shares.argmax(axis=1)], shares.astype(np.float32), classes)


def _classes(reference: Any, labels: Any, query: Any) -> tuple[np.ndarray, np.ndarray]:
    """Code of each reference cell's label, -1 without one, and the names; sizes that do not agree are refused."""
    codes, classes = _checks.codes(labels)
    known, asked = np.shape(reference), np.shape(query)
    if len(known) != 2 or len(asked) != 2 or known[1] != asked[1] or known[0] != len(codes):
        msg = f"reference {known}, its labels ({len(codes)},) and query {asked} do not agree: one label per reference "
        msg += "cell and the same genes on both sides are needed"
        raise ValueError(msg)
    if not len(classes):
        msg = f"none of the {len(codes)} reference cells has a label; is this the right column of .obs?"
        raise ValueError(msg)
    return codes, classes.astype(str)


def _scaled(
    reference: Any, rows: np.ndarray, query: Any, *, logged: bool | None, n_genes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as logs of the reference's variable genes, dense, in units of the reference's deviation."""
    known = log_normalised(csr_matrix(reference)[rows], logged, least=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # scanpy warns of zero cells and of its own future defaults
        chosen = variable_genes(known, n_genes, None)
    a, b = (side.X[:, chosen].toarray() for side in (known, log_normalised(query, logged, least=1)))
    mean, deviation = a.mean(axis=0), a.std(axis=0)
    deviation[deviation == 0] = 1
    return np.clip((a - mean) / deviation, -10, 10), np.clip((b - mean) / deviation, -10, 10)

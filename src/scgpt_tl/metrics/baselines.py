"""Simple methods that a foundation model must be shown beside. Arrays in, arrays out.

Embeddings: `hvg_pca`, and with batches `harmony` and `scvi`. Cell types learned on a reference and called in a query:
`logistic_regression`, `knn_pca`, `majority`. The same network before any training is `models.with_random_weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scgpt_tl.metrics._classifiers import Calls, knn_pca, logistic_regression, majority
from scgpt_tl.metrics._embeddings import harmony, hvg_pca, scvi
from scgpt_tl.metrics._expression import looks_logged

__all__ = ["Calls", "harmony", "hvg_pca", "knn_pca", "logistic_regression", "looks_logged", "majority", "scvi"]

#: Name for `compare` -> how tables show it, and the function.
EMBEDDINGS: dict[str, tuple[str, Callable[..., Any]]] = {
    "hvg_pca": ("HVG + PCA", hvg_pca),
    "harmony": ("Harmony", harmony),
    "scvi": ("scVI", scvi),
}

#: Those that take batches, and the optional package and extra that they need.
NEEDS = {"harmony": ("harmonypy", "harmony"), "scvi": ("scvi", "scvi")}

#: Name for `compare_labels` -> how tables show it, and the function.
CLASSIFIERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "logistic_regression": ("logistic regression", logistic_regression),
    "knn_pca": ("kNN on PCA", knn_pca),
    "majority": ("commonest type", majority),
}

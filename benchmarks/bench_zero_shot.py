"""Zero-shot cell types: pbmc-mini (or ``--model PATH``) beside HVG + PCA and beside random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def evaluate_embedding(emb: Any, labels: Any, *, seeds: Sequence[int] = (0,)) -> dict[str, float | int]:
    """NMI, ARI, ASW and AvgBIO of an `(n, D)` array against `(n,)` labels."""
    from scgpt_tl.metrics._clustering import cluster_scores

    return cluster_scores(emb, labels, seeds=seeds).to_dict()

"""Scores: arrays in, numbers out. `compare` alone takes an AnnData, with the results already in its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.metrics._clustering import ClusterScores as ClusterScores
    from scgpt_tl.metrics._clustering import ari as ari
    from scgpt_tl.metrics._clustering import asw_label as asw_label
    from scgpt_tl.metrics._clustering import avg_bio as avg_bio
    from scgpt_tl.metrics._clustering import cluster_scores as cluster_scores
    from scgpt_tl.metrics._clustering import nmi as nmi
    from scgpt_tl.metrics._compare import compare as compare
    from scgpt_tl.metrics.baselines import hvg_pca as hvg_pca

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ClusterScores": "_clustering",
        "ari": "_clustering",
        "asw_label": "_clustering",
        "avg_bio": "_clustering",
        "cluster_scores": "_clustering",
        "compare": "_compare",
        "hvg_pca": "baselines",
        "nmi": "_clustering",
    },
)

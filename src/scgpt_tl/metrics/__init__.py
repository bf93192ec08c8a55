"""Scores: arrays in, numbers out. `compare` and `compare_labels` alone take an AnnData, results in its slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.metrics._batches import BatchScores as BatchScores
    from scgpt_tl.metrics._batches import asw_batch as asw_batch
    from scgpt_tl.metrics._batches import asw_batch_per_type as asw_batch_per_type
    from scgpt_tl.metrics._batches import avg_batch as avg_batch
    from scgpt_tl.metrics._batches import batch_scores as batch_scores
    from scgpt_tl.metrics._batches import graph_connectivity as graph_connectivity
    from scgpt_tl.metrics._batches import overall as overall
    from scgpt_tl.metrics._classifiers import Calls as Calls
    from scgpt_tl.metrics._classifiers import knn_pca as knn_pca
    from scgpt_tl.metrics._classifiers import logistic_regression as logistic_regression
    from scgpt_tl.metrics._classifiers import majority as majority
    from scgpt_tl.metrics._clustering import ClusterScores as ClusterScores
    from scgpt_tl.metrics._clustering import ari as ari
    from scgpt_tl.metrics._clustering import asw_label as asw_label
    from scgpt_tl.metrics._clustering import avg_bio as avg_bio
    from scgpt_tl.metrics._clustering import cluster_scores as cluster_scores
    from scgpt_tl.metrics._clustering import nmi as nmi
    from scgpt_tl.metrics._compare import compare as compare
    from scgpt_tl.metrics._compare_labels import compare_labels as compare_labels
    from scgpt_tl.metrics._embeddings import harmony as harmony
    from scgpt_tl.metrics._embeddings import hvg_pca as hvg_pca
    from scgpt_tl.metrics._embeddings import scvi as scvi
    from scgpt_tl.metrics._labels import ClassScores as ClassScores
    from scgpt_tl.metrics._labels import class_scores as class_scores
    from scgpt_tl.metrics._labels import ece as ece
    from scgpt_tl.metrics._mixing import MixingScores as MixingScores
    from scgpt_tl.metrics._mixing import kbet as kbet
    from scgpt_tl.metrics._mixing import mixing_scores as mixing_scores
    from scgpt_tl.metrics._networks import NetworkScores as NetworkScores
    from scgpt_tl.metrics._networks import TargetOverlap as TargetOverlap
    from scgpt_tl.metrics._networks import network_scores as network_scores
    from scgpt_tl.metrics._networks import target_overlap as target_overlap

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "BatchScores": "_batches",
        "Calls": "_classifiers",
        "ClassScores": "_labels",
        "ClusterScores": "_clustering",
        "MixingScores": "_mixing",
        "NetworkScores": "_networks",
        "TargetOverlap": "_networks",
        "ari": "_clustering",
        "asw_batch": "_batches",
        "asw_batch_per_type": "_batches",
        "asw_label": "_clustering",
        "avg_batch": "_batches",
        "avg_bio": "_clustering",
        "batch_scores": "_batches",
        "class_scores": "_labels",
        "cluster_scores": "_clustering",
        "compare": "_compare",
        "compare_labels": "_compare_labels",
        "ece": "_labels",
        "graph_connectivity": "_batches",
        "harmony": "_embeddings",
        "hvg_pca": "_embeddings",
        "kbet": "_mixing",
        "knn_pca": "_classifiers",
        "logistic_regression": "_classifiers",
        "majority": "_classifiers",
        "mixing_scores": "_mixing",
        "network_scores": "_networks",
        "nmi": "_clustering",
        "overall": "_batches",
        "scvi": "_embeddings",
        "target_overlap": "_networks",
    },
)

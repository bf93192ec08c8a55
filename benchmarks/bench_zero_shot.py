"""Zero-shot cell types: pbmc-mini (or `--model PATH`) beside HVG + PCA and beside random weights.

    python benchmarks/bench_zero_shot.py [--model NAME_OR_FOLDER] [--only pbmc_sorted_ref]

Four sets that the model was not trained on; needs the real data that SCGPT_TL_DATA names (pbmc68k_reduced comes with
scanpy). Scores are those of docs/evaluation.md, medians over five Leiden seeds, all sides on the same cells in one run.
HVG + PCA is shown scaled and unscaled, since neither is always the stronger baseline; the verdict is held against the
scaled one, which is scanpy's tutorial.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus import HELD_OUT_DONORS

if TYPE_CHECKING:
    from anndata import AnnData

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Judged:
    """A set of cells to judge on."""

    load: Callable[[], AnnData]
    labels: str
    what: str
    seen: str
    """What pbmc-mini saw of it in pretraining."""


def _kang_held_out() -> AnnData:
    from scgpt_tl import datasets

    adata = datasets.kang_ctrl12k()
    return adata[adata.obs["donor"].astype(str).isin(HELD_OUT_DONORS)].copy()


def _load(name: str) -> Callable[[], AnnData]:
    def load() -> AnnData:
        from scgpt_tl import datasets

        return getattr(datasets, name)()

    return load


SETS = {
    "pbmc68k_reduced": Judged(
        _load("pbmc68k_reduced"),
        "bulk_labels",
        "PBMCs, log-normalised, 765 genes; labels by correlation with sorted cells",
        "other cells of the same study (pbmc_donorA), unlabelled; none of these",
    ),
    "pbmc_sorted_ref": Judged(
        _load("pbmc_sorted_ref"),
        "cell_type",
        "PBMCs sorted by antibody; all rows, since nothing here is trained on them",
        "other cells of the same study (pbmc_donorA), unlabelled; none of these",
    ),
    "kang_held_out_donors": Judged(
        _kang_held_out,
        "cell_type",
        "PBMCs of lupus patients 101, 107 and 1015, 1,287 genes",
        "cells of the study's five other donors, unlabelled; none of these",
    ),
    "mixology_3protocol": Judged(
        _load("mixology_3protocol"),
        "cell_type",
        "three lung cancer lines by three protocols, 889 genes: another tissue, strong batch effects",
        "nothing; no cell of this kind",
    ),
}


def evaluate_embedding(emb: Any, labels: Any, *, seeds: Sequence[int] = (0,)) -> dict[str, float | int]:
    """NMI, ARI, ASW and AvgBIO of an `(n, D)` array against `(n,)` labels, and what no clustering tells: kNN macro-F1.

    The last is of the vote of 15 nearest neighbours, five-fold. Cells without a label are left out.
    """
    from sklearn.metrics import f1_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    from scgpt_tl.metrics import cluster_scores

    known = labels.notna().to_numpy()
    named = labels[known].astype(str).to_numpy()
    voted = cross_val_predict(KNeighborsClassifier(15), emb[known], named, cv=5)
    return {
        **cluster_scores(emb, labels, seeds=seeds).to_dict(),
        "kNN macro-F1": float(f1_score(named, voted, average="macro")),
    }


def evaluate_set(judged: Judged, model: Any, *, seeds: Sequence[int] = SEEDS) -> dict[str, dict[str, float | int]]:
    """Scores of the model, of the same network with random weights, and of both kinds of HVG + PCA."""
    from scgpt_tl import metrics, tl
    from scgpt_tl.models import with_random_weights

    adata = judged.load()
    embeddings = {}
    for name, network in (("scGPT", model), ("random weights", with_random_weights(model))):
        start = time.perf_counter()
        tl.scgpt_embed(adata, model=network, key_added="judged", device="cpu", progress=False)
        embeddings[name] = adata.obsm["judged"]
        print(f"  {name}: {adata.n_obs:,} cells embedded in {time.perf_counter() - start:.1f} s", flush=True)
    embeddings["HVG + PCA"] = metrics.hvg_pca(adata.X)
    embeddings["HVG + PCA, unscaled"] = metrics.hvg_pca(adata.X, scale=False)
    labels = adata.obs[judged.labels]
    return {name: evaluate_embedding(emb, labels, seeds=seeds) for name, emb in embeddings.items()}


def main() -> None:
    from _report import Figure, report

    from scgpt_tl.models import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pbmc-mini", help="name or folder")
    parser.add_argument("--only", choices=SETS, action="append", help="judge on this set alone; may be repeated")
    args = parser.parse_args()
    model = load_model(args.model)
    tables, figures = {}, []
    for name in args.only or SETS:
        judged = SETS[name]
        print(f"{name}: {judged.what}")
        try:
            scores = evaluate_set(judged, model)
        except ValueError as error:  # too few of the set's genes in this model's vocabulary
            print(f"  refused: {error}")
            tables[name] = {"what": judged.what, "refused": str(error)}
            continue
        for side, row in scores.items():
            shown = "  ".join(f"{key} {row[key]:.3f}" for key in ("NMI", "ARI", "ASW", "AvgBIO", "kNN macro-F1"))
            print(f"  {side:20}  {shown}")
        seen = judged.seen if model.name == "pbmc-mini" else "not known"
        print(f"  seen in pretraining: {seen}")
        tables[name] = {"what": judged.what, "labels": judged.labels, "seen_in_pretraining": seen, "scores": scores}
        ours, theirs = scores["scGPT"]["AvgBIO"], scores["HVG + PCA"]["AvgBIO"]
        figures.append(Figure(f"AvgBIO {name}, theirs: HVG + PCA", ours=ours, theirs=theirs, aim=1))
        ours, theirs = (scores[side]["kNN macro-F1"] for side in ("scGPT", "HVG + PCA"))
        figures.append(Figure(f"kNN macro-F1 {name}, theirs: HVG + PCA", ours=ours, theirs=theirs))
    whose = "" if args.model == "pbmc-mini" else f"_{Path(args.model).name}"
    report(
        f"zero_shot{whose}",
        figures,
        details={"model": model.name, "weights_sha256": model.sha256, "leiden_seeds": SEEDS, "sets": tables},
        packages=("torch", "scanpy", "igraph", "umap-learn", "scikit-learn"),
    )


if __name__ == "__main__":
    main()

"""Annotation: accuracy, macro-F1 and ECE of `tl.scgpt_annotate` beside simple methods and CellTypist.

    python benchmarks/bench_annotate.py [--tasks kang_donors] [--sides finetune probe] [--seeds 0 1 2] [--cells 500]
                                        [--learn 300]

Needs the real data that SCGPT_TL_DATA names; CellTypist is left out where it is not installed. All sides see the same
cells in one run; seconds and peak memory are those of a process of its own for each. Ours calls some cells "unknown":
they count as wrong; "forced" beside it is the same with the likeliest type for every cell. With `--learn` so many cells
of the reference are drawn, others for each seed, and every side is run on each draw. pbmc3k and five donors of
kang_ctrl12k were seen in pretraining, unlabelled; no cell of any query was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from corpus import HELD_OUT_DONORS

if TYPE_CHECKING:
    from anndata import AnnData

#: Types of pbmc3k and of pbmc_sorted_ref -> five that both have. Dendritic cells and platelets are in one of them only.
COARSE = {
    "Naive CD4 T": "CD4 T", "Memory CD4 T": "CD4 T", "CD8 T": "CD8 T", "B": "B", "NK": "NK",
    "CD14+ Mono": "Monocyte", "FCGR3A+ Mono": "Monocyte",
    "naivet": "CD4 T", "memoryt": "CD4 T", "regulatoryt": "CD4 T", "thelper": "CD4 T",
    "cytotoxict": "CD8 T", "naivecytotoxic": "CD8 T", "bcells": "B", "nk": "NK", "monocytes": "Monocyte",
}  # fmt: skip
#: Of the types of Kang et al., for cells that have no label.
MARKERS = {
    "B cells": ("CD79A", "MS4A1", "CD79B"),
    "CD14+ Monocytes": ("CD14", "LYZ", "S100A8"),
    "CD4 T cells": ("CD3D", "IL7R", "CCR7"),
    "CD8 T cells": ("CD8A", "CD8B", "CD3D"),
    "Dendritic cells": ("FCER1A", "HLA-DQA1", "CLEC10A"),
    "FCGR3A+ Monocytes": ("FCGR3A", "MS4A7", "VMO1"),
    "Megakaryocytes": ("PPBP", "PF4", "GNG11"),
    "NK cells": ("GNLY", "NKG7", "KLRD1"),
}
OURS = ("finetune", "probe", "knn")
THEIRS = ("logistic regression", "kNN on PCA", "CellTypist", "majority")


@dataclass(frozen=True)
class Task:
    """A reference, a query, and what is known of the query."""

    load: Callable[[], tuple[AnnData, AnnData]]
    """Both with the same genes, and `obs["truth"]`; NaN where it is not known."""
    what: str


def _kang_donors() -> tuple[AnnData, AnnData]:
    from scgpt_tl import datasets

    adata = datasets.kang_ctrl12k()
    adata.obs["truth"] = adata.obs["cell_type"].astype(object)
    held_out = adata.obs["donor"].astype(str).isin(HELD_OUT_DONORS).to_numpy()
    return adata[~held_out].copy(), adata[held_out].copy()


def _studies() -> tuple[AnnData, AnnData]:
    from scgpt_tl import datasets

    sides = [datasets.pbmc3k(), datasets.pbmc_sorted_ref()]
    genes = sides[0].var_names.intersection(sides[1].var_names)
    for i, adata in enumerate(sides):
        adata.obs["truth"] = adata.obs["cell_type"].astype(object).map(COARSE)
        sides[i] = adata[adata.obs["truth"].notna().to_numpy(), genes].copy()
    return sides[0], sides[1]


def _stimulated() -> tuple[AnnData, AnnData]:
    """The query holds the stimulated cells, and control cells of donors that the reference lacks."""
    import anndata as ad

    from scgpt_tl.datasets import locate

    folder = locate("kang_ctrl12k").parent.parent / "kang_ifnb2000"
    adata = ad.read_h5ad(next(folder.glob("*.h5ad")))
    control = (adata.obs["condition"] == "ctrl").to_numpy()
    other = adata.obs["donor"].astype(str).isin(HELD_OUT_DONORS).to_numpy()
    adata.obs["truth"] = adata.obs["cell_type"].astype(object)
    known = adata.obs["truth"].notna().to_numpy()
    return adata[control & ~other & known].copy(), adata[~control | (other & known)].copy()


TASKS = {
    "kang_donors": Task(_kang_donors, "five donors of kang_ctrl12k -> donors 101, 107, 1015; 8 types"),
    "pbmc_studies": Task(_studies, "pbmc3k -> pbmc_sorted_ref, five coarse types, shared genes"),
    "kang_stimulated": Task(
        _stimulated, "control cells of five donors -> stimulated cells, and control of three donors"
    ),
}


def call(task: str, side: str, seed: int, cells: int | None, learn: int | None) -> dict[str, Any]:
    """One method on one task, in a process of its own."""
    from _report import peak_rss

    reference, query = (some(adata, cells) for adata in TASKS[task].load())
    reference = some(reference, learn, seed)
    warnings.filterwarnings("ignore")
    before, start = peak_rss(), time.perf_counter()
    labels, shares, classes = (ours if side in OURS else theirs)(reference, query, side, seed)
    seconds, peak = time.perf_counter() - start, peak_rss()
    scores = score(query, labels, shares, classes) | {
        "seconds": seconds,
        "peak_mb": peak / 1e6,
        "start_mb": before / 1e6,
    }
    return scores | (doubt(query, labels, shares, classes) if task == "kang_stimulated" else {})


def some(adata: AnnData, cells: int | None, seed: int = 0) -> AnnData:
    if cells is None or adata.n_obs <= cells:
        return adata
    return adata[np.sort(np.random.default_rng(seed).choice(adata.n_obs, cells, replace=False))].copy()


def ours(reference: AnnData, query: AnnData, method: str, seed: int) -> tuple[Any, Any, Any]:
    from scgpt_tl import tl

    query = query.copy()
    tl.scgpt_annotate(query, reference=reference, labels_key="truth", method=method, rng=seed)
    return query.obs["scgpt_pred"].to_numpy(str), query.obsm["scgpt_probabilities"], query.uns["scgpt_pred"]["classes"]


def theirs(reference: AnnData, query: AnnData, side: str, seed: int) -> tuple[Any, Any, Any]:
    from scgpt_tl import metrics

    truth = reference.obs["truth"].to_numpy(object)
    if side == "CellTypist":
        return celltypist(reference, query, truth)
    if side == "majority":
        return metrics.majority(reference.X, truth, query.X)
    method = metrics.logistic_regression if side == "logistic regression" else metrics.knn_pca
    return method(reference.X, truth, query.X, rng=seed)


def celltypist(reference: AnnData, query: AnnData, truth: np.ndarray) -> tuple[Any, Any, Any]:
    """Trained on the reference; its one-against-all probabilities are divided by their sum."""
    import celltypist as package
    import scanpy as sc

    mend_celltypist()

    sides = []
    for adata in (reference, query):
        logged = adata.copy()
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        sides.append(logged)
    known = np.array([isinstance(name, str) for name in truth])
    model = package.train(sides[0][known].copy(), truth[known].astype(str), n_jobs=1, check_expression=False)
    found = package.annotate(sides[1], model=model)
    shares = found.probability_matrix.to_numpy()
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
    return (
        found.predicted_labels["predicted_labels"].to_numpy(str),
        shares,
        found.probability_matrix.columns.to_numpy(str),
    )


def mend_celltypist() -> None:
    """CellTypist 1.7 asks for LogisticRegression(multi_class="ovr"), which scikit-learn 1.8 no longer has."""
    import sys
    from inspect import signature

    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    if "multi_class" in signature(LogisticRegression).parameters:
        return

    class OneAgainstAll(LogisticRegression):
        """What it was."""

        def __init__(self, *, multi_class: str = "ovr", **options: Any) -> None:
            assert multi_class == "ovr"
            super().__init__(**options)

        def fit(self, X: Any, y: Any) -> Any:
            each = OneVsRestClassifier(LogisticRegression(C=self.C, solver=self.solver, max_iter=self.max_iter)).fit(
                X, y
            )
            self.classes_, self.n_features_in_ = each.classes_, X.shape[1]
            self.coef_ = np.vstack([one.coef_ for one in each.estimators_])
            self.intercept_ = np.concatenate([one.intercept_ for one in each.estimators_])
            return self

    sys.modules["celltypist.train"].LogisticRegression = OneAgainstAll


def score(query: AnnData, labels: Any, shares: Any, classes: Any) -> dict[str, float]:
    from scgpt_tl.metrics import class_scores

    truth = query.obs["truth"].to_numpy(object)
    found = class_scores(truth, labels, probabilities=shares, classes=list(classes))
    forced = class_scores(truth, np.asarray(classes)[shares.argmax(1)])
    return {
        "accuracy": found.accuracy,
        "f1_macro": found.f1_macro,
        "ece": found.ece,
        "unknown": found.n_unknown / found.n_cells,
        "accuracy_forced": forced.accuracy,
        "f1_macro_forced": forced.f1_macro,
    }


def doubt(query: AnnData, labels: Any, shares: Any, classes: Any) -> dict[str, Any]:
    """Confidence on stimulated beside control cells, and whether calls agree with markers."""
    stimulated = (query.obs["condition"] == "stim").to_numpy()
    surest, marked = shares.max(1), by_markers(query)
    found: dict[str, Any] = {}
    for name, rows in (("stimulated", stimulated), ("control", ~stimulated)):
        found |= {
            f"{name}_confidence": float(surest[rows].mean()),
            f"{name}_unknown": float((labels[rows] == "unknown").mean()),
            f"{name}_markers_agree": float((np.asarray(classes)[shares.argmax(1)] == marked)[rows].mean()),
            f"{name}_histogram": np.histogram(surest[rows], np.linspace(0, 1, 21))[0].tolist(),
        }
    return found


def by_markers(query: AnnData) -> np.ndarray:
    """The type whose markers stand out most in each cell: the largest mean z-score of logs."""
    import scanpy as sc

    logged = query.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    scores = []
    for genes in MARKERS.values():
        there = [gene for gene in genes if gene in logged.var_names]
        values = logged[:, there].X.toarray()
        scores.append(((values - values.mean(0)) / (values.std(0) + 1e-9)).mean(1))
    return np.array(list(MARKERS))[np.argmax(scores, axis=0)]


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Confidence on stimulated and control cells, a panel a method."""
    import matplotlib.pyplot as plt

    drawn = ("finetune", "probe", "logistic regression", "CellTypist")
    sides = [side for side in drawn if "control_histogram" in rows.get(side, {})]
    _, panels = plt.subplots(1, len(sides), figsize=(2.6 * len(sides), 2.8), layout="constrained", squeeze=False)
    edges = np.linspace(0, 1, 21)
    for ax, side in zip(panels[0], sides, strict=True):
        for name, color in (("control", "#0072B2"), ("stimulated", "#E69F00")):
            n = np.array(rows[side][f"{name}_histogram"])
            ax.stairs(n / n.sum(), edges, color=color, label=name, fill=name == "control", alpha=0.6)
        ax.set(title=side, xlabel="largest probability")
    panels[0][0].set(ylabel="share of cells")
    panels[0][0].legend(frameon=False, fontsize=8)
    plt.savefig(path, dpi=110)


def main() -> None:
    from _report import Figure, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sides", nargs="+", choices=(*OURS, *THEIRS), default=[*OURS, *THEIRS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, help="most cells of a reference and of a query, for a trial")
    parser.add_argument("--learn", type=int, help="cells of the reference to learn from, drawn anew for each seed")
    parser.add_argument("--draw", type=Path, help="picture of confidences of the third task")
    args = parser.parse_args()
    sides = [side for side in args.sides if side != "CellTypist" or find_spec("celltypist")]
    sizes = {"seeds": args.seeds, "cells": args.cells, "learn": args.learn}
    tables: dict[str, dict[str, Any]] = {}
    figures = []
    for task in args.tasks:
        print(f"{task}: {TASKS[task].what}", flush=True)
        rows = tables[task] = {}
        for side in sides:
            seeds = args.seeds if side in OURS or args.learn else args.seeds[:1]
            found = [alone(task, side, seed, args.cells, args.learn) for seed in seeds]
            rows[side] = {name: mean(one[name] for one in found) for name in found[0] if "histogram" not in name}
            rows[side] |= {name: found[0][name] for name in found[0] if "histogram" in name}
            if len(found) > 1:
                rows[side] |= {f"{x}_sd": stdev(one[x] for one in found) for x in ("accuracy", "f1_macro", "ece")}
            shown = ("accuracy", "f1_macro", "f1_macro_forced", "ece", "seconds", "peak_mb")
            print(f"  {side:20}" + "  ".join(f"{name} {rows[side][name]:.3f}" for name in shown), flush=True)
        figures += compared(task, rows)
        report(  # after each task: what was measured stays when the rest is broken off
            f"annotate_{args.learn}" if args.learn else "annotate",
            [Figure(**figure) for figure in figures],
            details={**sizes, "types": COARSE, "markers": MARKERS, "tasks": tables},
            packages=("torch", "scikit-learn", "scanpy", "celltypist"),
        )
    if args.draw and "kang_stimulated" in tables:
        draw(tables["kang_stimulated"], args.draw)


def compared(task: str, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours beside the best of the others."""
    found: list[dict[str, Any]] = []
    others = [side for side in rows if side in THEIRS]
    for side in (side for side in rows if side in OURS):
        ours = rows[side]
        if others:
            best = max(others, key=lambda other: rows[other]["f1_macro_forced"])
            what = f"macro-F1 {task}, {side} beside {best}"
            found.append(
                {"what": what, "ours": ours["f1_macro_forced"], "theirs": rows[best]["f1_macro_forced"], "aim": 1}
            )
        found.append({"what": f"ECE {task}, {side}", "ours": ours["ece"], "aim": 0.05, "less_is_better": True})
        found.append({"what": f"seconds {task}, {side}", "ours": ours["seconds"], "less_is_better": True})
        found.append({"what": f"peak memory, MB {task}, {side}", "ours": ours["peak_mb"], "less_is_better": True})
    return found


def alone(*given: Any) -> dict[str, Any]:
    """`call` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, given)


if __name__ == "__main__":
    main()

"""Integration: AvgBIO, AvgBATCH and Overall of `tl.scgpt_integrate` beside HVG + PCA, Harmony, scVI and zero-shot.

    python benchmarks/bench_integrate.py [--sets mixology_3protocol] [--seeds 0 1 2] [--cells 1000] [--paper]

Needs the real data that SCGPT_TL_DATA names, and the extras `harmony` and `scvi`. All sides see the same cells; scores
are those of section S.5.3 on the cells that have a label. Seconds and peak memory of each side are those of a process
of its own. Kang's donors but 101, 107 and 1015, pbmc3k and pbmc_donorA were seen, unlabelled, in pretraining.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

#: Names of pbmc3k's types -> those of Kang et al.
COARSE = {
    "Naive CD4 T": "CD4 T cells",
    "Memory CD4 T": "CD4 T cells",
    "CD8 T": "CD8 T cells",
    "B": "B cells",
    "NK": "NK cells",
    "CD14+ Mono": "CD14+ Monocytes",
    "FCGR3A+ Mono": "FCGR3A+ Monocytes",
    "DC": "Dendritic cells",
    "Platelet": "Megakaryocytes",
}


@dataclass(frozen=True)
class Judged:
    """A set to integrate."""

    load: Callable[[], AnnData]
    what: str
    seen: str
    """What pbmc-mini saw of it in pretraining."""


def _kang() -> AnnData:
    from scgpt_tl import datasets

    adata = datasets.kang_ctrl12k()
    adata.obs["batch"] = adata.obs["donor"].astype(str)
    return adata


def _mixology() -> AnnData:
    from scgpt_tl import datasets

    adata = datasets.mixology_3protocol()
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    return adata


def _studies() -> AnnData:
    """Genes that all three have; cells without a label (donorA, stimulated ones) are integrated and not scored."""
    import anndata as ad

    from scgpt_tl import datasets

    parts = {"pbmc3k": datasets.pbmc3k(), "donorA": datasets.pbmc_donor_a()}
    (file,) = (Path(os.environ[datasets.DATA_FOLDER]) / "kang_ifnb2000").glob("*.h5ad")
    parts["kang"] = ad.read_h5ad(file)
    for part in parts.values():
        part.var_names_make_unique()
    parts["pbmc3k"].obs["cell_type"] = parts["pbmc3k"].obs["cell_type"].astype(object).map(COARSE)
    parts["donorA"].obs["cell_type"] = None
    adata = ad.concat(parts, label="batch", index_unique="-", join="inner")
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    return adata


SETS = {
    "kang_ctrl12k": Judged(_kang, "PBMCs of 8 lupus patients, by donor", "five of the donors, unlabelled"),
    "mixology_3protocol": Judged(_mixology, "three cell lines by three protocols", "nothing"),
    "three_studies": Judged(
        _studies, "pbmc3k, pbmc_donorA and kang_ifnb2000, by study", "the first two, and control cells of the third"
    ),
}
BASELINES = ("HVG + PCA", "Harmony", "scVI")
LEIDEN_SEEDS = (0, 1, 2, 3, 4)  # one alone now and then ends in a poor clustering, of any side


def loaded(name: str, n_cells: int | None) -> AnnData:
    """A set, or some of its cells."""
    adata = SETS[name].load()
    if n_cells is not None and n_cells < adata.n_obs:
        rows = np.random.default_rng(0).choice(adata.n_obs, n_cells, replace=False)
        adata = adata[np.sort(rows)].copy()
    return adata


def embedded(side: str, adata: AnnData, seed: int, model: str) -> tuple[np.ndarray, dict[str, Any]]:
    """(n, D) by one side, and what it says of its run."""
    from scgpt_tl import metrics, tl

    batches = adata.obs["batch"].to_numpy()
    if side in BASELINES:
        if side == "HVG + PCA":
            return metrics.hvg_pca(adata.X, batches=batches, rng=seed), {}
        return (metrics.harmony if side == "Harmony" else metrics.scvi)(adata.X, batches, rng=seed), {}
    if side == "zero-shot":
        tl.scgpt_embed(adata, model=model, device="cpu", progress=False, rng=seed)
        return adata.obsm["X_scGPT"], {}
    preset, quiet = side.removeprefix("scGPT, "), {"progress": False, "device": "cpu"}
    tl.scgpt_integrate(adata, batch_key="batch", model=model, preset=preset, train=quiet, rng=seed)
    return adata.obsm["X_scGPT_integrated"], dict(adata.uns["scgpt_integrated"]["checks"])


def _work(pipe: Any, side: str, name: str, n_cells: int | None, seed: int, model: str) -> None:
    """One side on one set, in a process of its own; what goes wrong is told."""
    from _report import peak_rss

    try:
        adata = loaded(name, n_cells)
        start = time.perf_counter()
        found, told = embedded(side, adata, seed, model)
        pipe.send((found, told | {"seconds": time.perf_counter() - start, "peak_mb": peak_rss() / 2**20}))
    except BaseException:  # noqa: BLE001 (told to the process that waits)
        pipe.send(traceback.format_exc())


def alone(*what: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """What `_work` found."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, *what))
    process.start()
    found = ours.recv()
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def scored(points: np.ndarray, adata: AnnData) -> dict[str, float]:
    """AvgBIO, AvgBATCH, Overall and their parts on the cells with a label; of NMI and ARI medians over Leiden seeds."""
    from scgpt_tl import metrics

    labels, batches = (adata.obs[key].to_numpy(object) for key in ("cell_type", "batch"))
    bio = metrics.cluster_scores(points, labels, seeds=LEIDEN_SEEDS)
    batch = metrics.batch_scores(points, labels, batches)
    found = bio.to_dict() | batch.to_dict()
    return found | {"Overall": metrics.overall(bio.avg_bio, batch.avg_batch)}


def judge(name: str, sides: tuple[str, ...], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Side -> means over seeds, and each seed's scores."""
    adata, rows = loaded(name, args.cells), {}
    for side in sides:
        each = []
        for seed in args.seeds:
            points, told = alone(side, name, args.cells, seed, args.model)
            each.append(scored(points, adata) | told)
            shown = "  ".join(f"{key} {each[-1][key]:.3f}" for key in ("AvgBIO", "AvgBATCH", "Overall"))
            print(f"  {side:14} seed {seed}  {shown}  {told['seconds']:.0f} s  {told['peak_mb']:.0f} MB", flush=True)
        rows[side] = {"mean": {key: mean(one[key] for one in each) for key in each[0]}, "seeds": each}
    return rows


def main() -> None:
    from _report import Figure, report

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cells", type=int, help="so many cells of each set, for a small run")
    parser.add_argument("--model", default="pbmc-mini", help="name or folder")
    parser.add_argument("--paper", action="store_true", help='preset="paper" too: hours on a CPU')
    parser.add_argument("--without", nargs="+", choices=BASELINES, default=[], help="sides to leave out")
    args = parser.parse_args()
    kept = tuple(side for side in BASELINES if side not in args.without)
    sides = (*kept, "zero-shot", "scGPT, auto", *(("scGPT, paper",) if args.paper else ()))
    figures, tables = [], {}
    for name in args.sets:
        print(f"{name}: {SETS[name].what}; seen in pretraining: {SETS[name].seen}", flush=True)
        rows = judge(name, sides, args)
        tables[name] = {"what": SETS[name].what, "seen_in_pretraining": SETS[name].seen, "sides": rows}
        ours = rows["scGPT, auto"]["mean"]
        if kept:
            best = max(kept, key=lambda side: rows[side]["mean"]["Overall"])
            theirs = rows[best]["mean"]["Overall"]
            figures.append(Figure(f"Overall {name}, theirs: {best}", ours=ours["Overall"], theirs=theirs, aim=1))
        before = rows["zero-shot"]["mean"]["Overall"]
        figures.append(Figure(f"Overall {name}, theirs: zero-shot", ours=ours["Overall"], theirs=before))
        figures.append(Figure(f"minutes {name}", ours=ours["seconds"] / 60, aim=10, less_is_better=True))
        report(  # after each set: what was measured stays when the rest is broken off
            "integrate" if args.cells is None else "integrate_small",
            figures,
            details={
                "model": args.model,
                "seeds": args.seeds,
                "leiden_seeds": LEIDEN_SEEDS,
                "cells": args.cells,
                "sets": tables,
            },
            packages=("torch", "scanpy", "harmonypy", "scvi-tools", "igraph", "scikit-learn"),
        )


if __name__ == "__main__":
    main()

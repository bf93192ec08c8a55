"""Gene networks against what is known: data bases of regulators, interferon response, measured knock-outs.

    python benchmarks/bench_grn_truth.py [--only truth interferon knockouts] [--cells 200] [--genes 1200]
                                         [--regulators 60] [--model pbmc-mini] [--seed 0]

Every scorer sees the same cells (`--cells` of each group, drawn by seed) and the same genes, and is judged on the same
pairs; "random" is one order drawn by seed. Co-expression of all cells is beside that of the sample, since it costs
nothing to take them all.

truth: pbmc3k, `--genes` highly variable genes and the `--regulators` of CollecTRI that most cells express (with five
known targets among the genes or more). AUPRC and early precision, over those of a random order, against CollecTRI and
TRRUST (`metrics.network_scores`): attention, knock-out, |Spearman|, cosine of gene embeddings, attention with shuffled
weights.

interferon: kang_ifnb2000, control beside interferon-beta. Where the genes of Hallmark's interferon-alpha and -gamma
responses rank by what attention to a regulator, or to all genes in the mean, gained (Difference): AUROC, AUROC by the
size of the change, and how many are among the first 20 and 100. Beside: gain of |Spearman|, shuffled weights, and log
fold change of expression, which needs no network.

knockouts: perturb_papalexi, cells without STAT1, IFNGR1, IFNGR2 or JAK2 beside control cells. Measured targets are the
genes that a Wilcoxon test of all those cells finds changed (adjusted p < 0.05); AUROC of each scorer's ranking of the
other genes, in control cells, perturbed cells and their difference (by size).

pbmc-mini saw pbmc3k and control cells of Kang in pretraining, unlabelled; no stimulated and no knocked-out cell. Needs
the data that SCGPT_TL_DATA names.
"""

from __future__ import annotations

import argparse
import gzip
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _report import Figure, report
from sklearn.metrics import roc_auc_score

from scgpt_tl import get, metrics, pp, tl
from scgpt_tl.models import load_model
from scgpt_tl.pp._genes import genes_of

PARTS = ("truth", "interferon", "knockouts")
STAT = ("STAT1", "STAT2", "IRF1", "IRF7", "IRF8", "IRF9", "JAK1", "TYK2")
KNOCKED_OUT = ("STAT1", "IFNGR1", "IFNGR2", "JAK2")
LEAST_TARGETS = 5


def folder() -> Path:
    return Path(os.environ["SCGPT_TL_DATA"])


def resource(name: str) -> Path:
    return folder() / "gene_resources" / name


def sample(adata: ad.AnnData, n: int, seed: int, groupby: str | None = None) -> ad.AnnData:
    """`n` cells, of each group."""
    rng = np.random.default_rng(seed)
    groups = [np.arange(adata.n_obs)]
    if groupby is not None:
        groups = [np.flatnonzero(adata.obs[groupby] == name) for name in sorted(set(adata.obs[groupby]))]
    kept = [rng.permutation(rows)[:n] for rows in groups]
    return adata[np.sort(np.concatenate(kept))].copy()


def scored(adata: ad.AnnData, method: str, **options: Any) -> tuple[ad.AnnData, float]:
    """Scores by `tl.scgpt_grn`, and the seconds they took."""
    start = time.perf_counter()
    done = tl.scgpt_grn(adata, method=method, copy=True, progress=False, device="cpu", **options)
    return done, time.perf_counter() - start


def cosines(adata: ad.AnnData, model: Any, genes: Sequence[str], regulators: Sequence[str]) -> np.ndarray:
    """(genes, regulators) of the model's own gene embeddings."""
    import torch

    ids = dict(zip(adata.var_names, genes_of(adata, model.vocab).ids, strict=True))
    with torch.inference_mode():
        table = [model.backbone.genes(torch.tensor([ids[name] for name in names])) for names in (genes, regulators)]
    of, to = (part / part.norm(dim=1, keepdim=True) for part in table)
    return (of @ to.T).numpy()


def known_to(adata: ad.AnnData, model: Any) -> np.ndarray:
    """(n_vars,) whether a gene is in the model's vocabulary."""
    return genes_of(adata, model.vocab).ids >= 0


def as_net(scores: np.ndarray, targets: Sequence[str], regulators: Sequence[str]) -> pd.DataFrame:
    """(targets, regulators) as edges."""
    return pd.DataFrame(
        {
            "source": np.tile(np.asarray(regulators, dtype=object), len(targets)),
            "target": np.repeat(np.asarray(targets, dtype=object), len(regulators)),
            "weight": scores.ravel(),
        }
    )


def truth(args: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    model = load_model(args.model)
    full = ad.read_h5ad(folder() / "pbmc3k" / "pbmc3k.h5ad")
    pp.select_genes(full, n_genes=args.genes)
    bases = {
        "CollecTRI": pd.read_csv(resource("collectri_human.csv.gz")),
        "TRRUST": pd.read_csv(resource("trrust_human.tsv.gz"), sep="\t"),
    }
    known = known_to(full, model)
    variable = set(full.var_names[known & full.var["highly_variable"].to_numpy()])
    targets = bases["CollecTRI"][bases["CollecTRI"]["target"].isin(variable)].groupby("source")["target"].nunique()
    share = pd.Series(np.asarray((full.X > 0).mean(axis=0)).ravel(), full.var_names)[known]
    share = share[share.index.isin(targets.index[targets >= LEAST_TARGETS])]
    regulators = share.sort_values(ascending=False, kind="stable").index[: args.regulators].tolist()
    genes = sorted(variable | set(regulators))
    cells = sample(full, args.cells, args.seed)
    options = {"model": model, "genes": genes, "regulators": regulators}
    nets, seconds = {}, {}
    for name, method, adata, more in (
        ("attention", "attention", cells, {}),
        ("knock-out", "knockout", cells, {}),
        ("|Spearman|, the same cells", "coexpression", cells, {}),
        (f"|Spearman|, all {full.n_obs:,} cells", "coexpression", full, {}),
        ("attention, shuffled weights", "attention", cells, {"shuffled": True}),
    ):
        done, seconds[name] = scored(adata, method, **options, **more)
        nets[name] = get.grn_df(done)
        print(f"  {name}: {seconds[name]:.0f} s", flush=True)
    nets["cosine of gene embeddings"] = as_net(cosines(full, model, genes, regulators), genes, regulators)
    drawn = np.random.default_rng(args.seed).random((len(genes), len(regulators)))
    nets["random"] = as_net(drawn, genes, regulators)
    figures, tables = [], {}
    for base, edges in bases.items():
        scores = {
            name: metrics.network_scores(net, edges, genes=genes, regulators=regulators) for name, net in nets.items()
        }
        tables[base] = {name: found.to_dict() for name, found in scores.items()}
        print(pd.DataFrame(tables[base]).T.to_string(float_format="{:.3f}".format))
        ours, theirs = scores["attention"], scores["|Spearman|, the same cells"]
        for what in ("auprc_ratio", "early_precision_ratio"):
            title = f"{base}, {what.replace('_', ' ')}: attention, theirs: |Spearman|"
            figures.append(Figure(title, ours=getattr(ours, what), theirs=getattr(theirs, what)))
    return figures, {"genes": len(genes), "regulators": regulators, "cells": args.cells, "seconds": seconds, **tables}


def placed(scores: np.ndarray, members: np.ndarray) -> dict[str, float]:
    """Where known genes are in a ranking, NaN left out: AUROC, and numbers among the first beside expectation."""
    kept = np.isfinite(scores)
    order = members[kept][np.argsort(-scores[kept], kind="stable")]
    found = {"AUROC": float(roc_auc_score(members[kept], scores[kept]))}
    found["AUROC by size"] = float(roc_auc_score(members[kept], np.abs(scores[kept])))
    for n in (20, 100):
        found |= {f"in top {n}": int(order[:n].sum()), f"expected in top {n}": float(n * order.mean())}
    return found


def interferon(args: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    model = load_model(args.model)
    full = ad.read_h5ad(folder() / "kang_ifnb2000" / "kang_ifnb2000.h5ad")
    pp.select_genes(full, n_genes=args.genes)
    known = known_to(full, model)
    regulators = [name for name in STAT if name in full.var_names and known[full.var_names.get_loc(name)]]
    genes = sorted({*full.var_names[known & full.var["highly_variable"].to_numpy()], *regulators})
    response = hallmark("HALLMARK_INTERFERON_ALPHA_RESPONSE") | hallmark("HALLMARK_INTERFERON_GAMMA_RESPONSE")
    cells = sample(full, args.cells, args.seed, "condition")
    options = {"model": model, "genes": genes, "groupby": "condition", "control": "ctrl"}
    gains, seconds = {}, {}
    for name, method, adata, more in (
        ("attention", "attention", cells, {}),
        ("|Spearman|, the same cells", "coexpression", cells, {}),
        (f"|Spearman|, all {full.n_obs:,} cells", "coexpression", full, {}),
        ("attention, shuffled weights", "attention", cells, {"shuffled": True}),
    ):
        done, seconds[name] = scored(adata, method, **options, **more)
        gains[name] = gain(done, genes)
        print(f"  {name}: {seconds[name]:.0f} s", flush=True)
    members = np.array([name in response for name in genes])
    rows = {}
    for name, gained in gains.items():
        rows["all genes, mean", name] = placed(gained.mean(axis=1), members)
        for regulator in regulators:
            column, own = gained[:, genes.index(regulator)].copy(), genes.index(regulator)
            column[own] = np.nan
            rows[regulator, name] = placed(column, members)
    rows["none", "log fold change, the same cells"] = placed(fold_change(cells)[genes].to_numpy(), members)
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(table.to_string(float_format="{:.3f}".format))
    figures = []
    for regulator in ("STAT1", "IRF7", "IRF9", "all genes, mean"):
        if (regulator, "attention") in rows:
            ours, theirs = rows[regulator, "attention"], rows[regulator, "|Spearman|, the same cells"]
            figures.append(
                Figure(
                    f"interferon genes by gain of {regulator}: AUROC, theirs: |Spearman|",
                    ours["AUROC"],
                    theirs["AUROC"],
                )
            )
    details = {"genes": len(genes), "response": int(members.sum()), "cells": args.cells, "seconds": seconds}
    return figures, details | {"placed": [{"regulator": a, "by": b, **row} for (a, b), row in rows.items()]}


def hallmark(name: str) -> set[str]:
    with gzip.open(resource("hallmark_human.gmt.gz"), "rt") as file:
        return next(set(line.split()[2:]) for line in file if line.startswith(f"{name}\t"))


def gain(done: ad.AnnData, genes: Sequence[str]) -> np.ndarray:
    """(genes, genes) what stimulated cells add, row: target."""
    groups, rows = list(done.uns["scgpt_grn"]["groups"]), done.var_names.get_indexer(genes)
    maps = {name: done.varp[f"scgpt_grn_{i}"][rows][:, rows].toarray() for i, name in enumerate(groups)}
    return maps["stim"] - maps["ctrl"]


def fold_change(cells: ad.AnnData) -> pd.Series:
    """Difference of mean log-normalised values."""
    own = cells.copy()
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    of = {name: np.asarray(own[own.obs["condition"] == name].X.mean(axis=0)).ravel() for name in ("stim", "ctrl")}
    return pd.Series(of["stim"] - of["ctrl"], own.var_names)


def knockouts(args: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    model = load_model(args.model)
    full = ad.read_h5ad(next((folder() / "perturb_papalexi").glob("*.h5ad")))
    full = full[full.obs["condition"].isin(["control", *KNOCKED_OUT])].copy()
    full.obs["condition"] = full.obs["condition"].astype(str).astype("category")
    measured = changed(full)
    known = known_to(full, model)
    genes = full.var_names[known].tolist()
    regulators = [name for name in KNOCKED_OUT if name in genes]
    cells = sample(full, args.cells, args.seed, "condition")
    options = {"model": model, "genes": genes, "groupby": "condition", "control": "control", "regulators": regulators}
    done, seconds = {}, {}
    for name, method, adata, more in (
        ("attention", "attention", cells, {}),
        ("knock-out", "knockout", cells, {}),
        ("|Spearman|, the same cells", "coexpression", cells, {}),
        ("|Spearman|, all cells", "coexpression", full, {}),
        ("attention, shuffled weights", "attention", cells, {"shuffled": True}),
    ):
        done[name], seconds[name] = scored(adata, method, **options, **more)
        print(f"  {name}: {seconds[name]:.0f} s", flush=True)
    embedded = cosines(full, model, genes, regulators)
    rows = []
    for place, regulator in enumerate(regulators):
        targets = measured[regulator]
        members = np.array([name in targets for name in genes])
        if not LEAST_TARGETS <= members.sum() < len(genes) - LEAST_TARGETS:
            continue
        own = genes.index(regulator)
        rankings = {("cosine of gene embeddings", "-"): embedded[:, place]}
        for name, result in done.items():
            for setting, scores in settings(result, genes, regulator).items():
                rankings[name, setting] = scores
        for (name, setting), scores in rankings.items():
            kept = np.isfinite(scores) & (np.arange(len(genes)) != own)
            if kept.any():
                auroc = float(roc_auc_score(members[kept], scores[kept]))
                rows.append({"knock-out of": regulator, "by": name, "setting": setting, "AUROC": auroc})
    table = pd.DataFrame(rows)
    print(table.pivot_table(index=["by", "setting"], columns="knock-out of", values="AUROC").to_string())
    mean = table.groupby(["by", "setting"])["AUROC"].mean()
    figures = [
        Figure(f"targets of knock-outs, {setting}: mean AUROC, theirs: |Spearman|",
               ours=mean["attention", setting], theirs=mean["|Spearman|, the same cells", setting])
        for setting in ("control", "perturbed", "difference")
    ]  # fmt: skip
    absent = [name for name in KNOCKED_OUT if name not in regulators]
    details = {
        "genes": len(genes),
        "cells": args.cells,
        "targets": {k: len(v & set(genes)) for k, v in measured.items()},
    }
    return figures, details | {"not in data or vocabulary": absent, "seconds": seconds, "AUROC": rows}


def changed(full: ad.AnnData) -> dict[str, set[str]]:
    """Genes whose expression a knock-out changes, itself left out."""
    own = full.copy()
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        sc.tl.rank_genes_groups(own, "condition", reference="control", method="wilcoxon")
        tables = {name: sc.get.rank_genes_groups_df(own, name, pval_cutoff=0.05) for name in KNOCKED_OUT}
    return {name: set(table["names"]) - {name} for name, table in tables.items()}


def settings(done: ad.AnnData, genes: Sequence[str], regulator: str) -> dict[str, np.ndarray]:
    """(genes,) scores for one regulator in control cells, in its knock-out, and the size of their difference."""
    run = done.uns["scgpt_grn"]
    if regulator not in list(run["groups"]):
        return {}
    scores = done.varm["scgpt_grn"][done.var_names.get_indexer(genes), :, list(run["regulators"]).index(regulator)]
    control, without = (scores[:, list(run["groups"]).index(name)] for name in ("control", regulator))
    return {"control": control, "perturbed": without, "difference": np.abs(without - control)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cells", type=int, default=200, help="of each group")
    parser.add_argument("--genes", type=int, default=1200)
    parser.add_argument("--regulators", type=int, default=60)
    parser.add_argument("--model", default="pbmc-mini", help="name or folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    figures, details = [], {"model": args.model, "weights_sha256": load_model(args.model).sha256, "seed": args.seed}
    for name, part in (("truth", truth), ("interferon", interferon), ("knockouts", knockouts)):
        if name in args.only:
            print(name, flush=True)
            found, details[name] = part(args)
            figures += found
    report("grn_truth", figures, details=details, packages=("torch", "scanpy", "scikit-learn"))


if __name__ == "__main__":
    main()

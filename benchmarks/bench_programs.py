"""Known biology in gene networks and programs of pbmc3k: embeddings, co-expression and shuffled weights side by side.

    python benchmarks/bench_programs.py [--genes 1200 3000] [--model pbmc-mini] [--seeds 0 1 2]

Needs the real data that SCGPT_TL_DATA names. The model is taken zero-shot; pbmc3k's cells were seen, unlabelled, in
pbmc-mini's pretraining. Genes are the most variable ones and those of the sets below. Every side has the same genes,
the same kNN graph (15, by cosine; of centred expression that is Pearson's correlation, as in the preprint, 4.7), the
same Leiden and the same score of activity.

    percentile   of a set's pairs among all pairs of genes by similarity, mean; 50 is chance
    together     share of a set's pairs that are in one program
    I from II    probability that a pair within a HLA class is more alike than a pair of both; 50 is chance
    right type   programs of markers, the markers themselves left out, that are most active in the type that these mark
    by type      share of the variance of a program's activity that lies between cell types, mean over programs
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from itertools import combinations
from statistics import mean
from typing import Any

import numpy as np
from scipy import sparse

SETS = {
    "CD3D/E/G": ("CD3D", "CD3E", "CD3G"),
    "CD79A/B": ("CD79A", "CD79B"),
    "HLA class I": ("HLA-A", "HLA-B", "HLA-C"),
    "HLA class II": ("HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1", "HLA-DQA1", "HLA-DQB1"),
}
T = ("Naive CD4 T", "Memory CD4 T", "CD8 T")
MARKERS = {
    ("CD3D", "CD3E", "CD3G"): T,
    ("CD79A", "CD79B", "MS4A1"): ("B",),
    ("HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1"): ("B", "DC", "CD14+ Mono", "FCGR3A+ Mono"),
    ("S100A8", "S100A9", "CD14"): ("CD14+ Mono",),
    ("FCGR3A", "MS4A7"): ("FCGR3A+ Mono",),
    ("GNLY", "GZMB", "PRF1"): ("NK",),
    ("CD8A", "CD8B"): ("CD8 T",),
    ("PPBP", "PF4"): ("Platelet",),
    ("FCER1A", "CLEC10A"): ("DC",),
}


def loaded(n_genes: int, model: Any) -> tuple[Any, np.ndarray]:
    """pbmc3k, and columns (M,) of variable genes and those of the sets, in the model's vocabulary."""
    from scgpt_tl import datasets, pp
    from scgpt_tl.pp._genes import genes_of

    adata = datasets.pbmc3k()
    pp.select_genes(adata, n_genes=n_genes)
    named = {gene for genes in (*SETS.values(), *MARKERS) for gene in genes}
    chosen = adata.var["highly_variable"].to_numpy() | adata.var_names.isin(named)
    return adata, np.flatnonzero(chosen & (genes_of(adata, model.vocab).ids >= 0))


def in_context(model: Any) -> np.ndarray:
    """(n_vars, D) embeddings of all genes, averaged over the cells that express them; no selection is needed."""
    from scgpt_tl import datasets, tl

    adata = datasets.pbmc3k()
    adata.obs["cells"] = "all"
    tl.scgpt_embed(adata, model=model, groupby="cells", device="cpu", progress=False)
    return adata.varm["scGPT_context"][:, 0]


def sides(
    adata: Any, columns: np.ndarray, model: Any, seeds: list[int], contexts: np.ndarray
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name, seed and features (M, any) of the genes."""
    import torch

    from scgpt_tl.engine.shuffle import shuffled
    from scgpt_tl.pp._genes import genes_of
    from scgpt_tl.pp._logs import log_blocks

    ids = torch.from_numpy(genes_of(adata, model.vocab).ids[columns])
    logs = sparse.vstack([block[:, columns] for _, block in log_blocks(adata)]).toarray()
    networks = {("embedding", 0): model.network}
    networks |= {("shuffled weights", seed): shuffled(model.network, seed) for seed in seeds}
    for (name, seed), network in networks.items():
        with torch.inference_mode():
            yield name, seed, network.backbone.genes(ids).numpy()
    yield "in context", 0, contexts[columns]
    yield "co-expression", 0, (logs - logs.mean(axis=0)).T.astype(np.float32)


def judged(adata: Any, columns: np.ndarray, features: np.ndarray, seed: int) -> dict[str, float]:
    """Every figure of one side."""
    from scgpt_tl.tl._activity import activity
    from scgpt_tl.tl._programs import gene_graph, programs, usual_resolution

    found, _ = programs(gene_graph(features)[1], [usual_resolution(len(columns))], seed=seed)
    program = dict(zip(adata.var_names[columns], found[:, 0].tolist(), strict=True))
    scores = alike(adata, columns, features)
    for name, genes in SETS.items():
        pairs = list(combinations(genes, 2))
        scores[f"{name}: together"] = 100 * mean(program[a] == program[b] >= 0 for a, b in pairs)
    members = [columns[found[:, 0] == number] for number in range(found.max() + 1)]
    return scores | {
        "programs of markers active in the right type": 100 * mean(right_types(adata, members, program, seed)),
        "variance of activity by type": 100 * by_type(adata, activity(adata, members, layer=None, seed=seed)),
        "programs": len(members),
        "genes in a program": 100 * float((found >= 0).mean()),
    }


def right_types(adata: Any, members: list[np.ndarray], program: dict[str, int], seed: int) -> list[bool]:
    """Of each set of markers, whether the rest of the program that most of them are in points to their type."""
    from scgpt_tl.tl._activity import activity

    rests = []
    for genes in MARKERS:
        numbers = [program[gene] for gene in genes if program.get(gene, -1) >= 0]
        whole = members[max(numbers, key=numbers.count)] if numbers else np.empty(0, int)
        rests.append(np.setdiff1d(whole, adata.var_names.get_indexer(genes)))
    filled = [rest if len(rest) else np.array([0]) for rest in rests]
    active, types = activity(adata, filled, layer=None, seed=seed), adata.obs["cell_type"]
    names = types.cat.categories
    best = names[np.argmax([active[(types == name).to_numpy()].mean(axis=0) for name in names], axis=0)]
    return [bool(len(rest)) and name in of for rest, name, of in zip(rests, best, MARKERS.values(), strict=True)]


def by_type(adata: Any, active: np.ndarray) -> float:
    """Share of the variance of each program's activity that lies between cell types, mean over programs."""
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    active, codes = active[codes >= 0], codes[codes >= 0]
    centred = active - active.mean(axis=0)
    means = np.array([centred[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
    between = (np.bincount(codes)[:, None] * means**2).sum(axis=0)
    return float((between / np.maximum((centred**2).sum(axis=0), 1e-12)).mean())


def alike(adata: Any, columns: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """Percentiles of the sets' pairs among all, and class I from class II."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    every = unit @ unit.T
    sorted_pairs = np.sort(every[np.triu_indices(len(columns), 1)])
    place = {gene: i for i, gene in enumerate(adata.var_names[columns])}

    def cosines(pairs: Any) -> np.ndarray:
        return np.array([every[place[a], place[b]] for a, b in pairs])

    scores = {}
    for name, genes in SETS.items():
        within = cosines(combinations(genes, 2))
        scores[f"{name}: cosine"] = float(within.mean())
        scores[f"{name}: percentile"] = 100 * float(np.searchsorted(sorted_pairs, within).mean()) / len(sorted_pairs)
    one, two = SETS["HLA class I"], SETS["HLA class II"]
    within = np.concatenate([cosines(combinations(one, 2)), cosines(combinations(two, 2))])
    across = cosines([(a, b) for a in one for b in two])
    scores["HLA class I from II"] = 100 * float((within[:, None] > across).mean())
    return scores


def averaged(each: list[dict[str, float]], of: Callable[[list[float]], float] = mean) -> dict[str, float]:
    return {name: of([scores[name] for scores in each]) for name in each[0]}


def main() -> None:
    from _report import Figure, report

    from scgpt_tl import load_model

    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", nargs="+", type=int, default=[1200, 3000])
    parser.add_argument("--model", default="pbmc-mini", help="name or folder")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of shuffled weights")
    args = parser.parse_args()
    model, figures, tables = load_model(args.model), [], {}
    contexts = in_context(model)
    for n_genes in args.genes:
        adata, columns = loaded(n_genes, model)
        found: dict[str, list[dict[str, float]]] = {}
        for name, seed, features in sides(adata, columns, model, args.seeds, contexts):
            found.setdefault(name, []).append(judged(adata, columns, features, seed))
        rows = {name: averaged(each) for name, each in found.items()}
        tables[str(n_genes)] = {"genes": len(columns), "sides": rows}
        print(f"{len(columns)} genes ({n_genes} variable)\n  {'':48}" + "".join(f"{name:>18}" for name in rows))
        for what in rows["embedding"]:
            print(f"  {what:48}" + "".join(f"{rows[name][what]:18.2f}" for name in rows))
        for what, value in rows["embedding"].items():
            if not what.endswith(": cosine"):  # cosines of different features say nothing of each other
                figures.append(
                    Figure(f"{what}, {n_genes} genes; theirs: co-expression", value, rows["co-expression"][what])
                )
    details = {"model": args.model, "seeds": args.seeds, "data": "pbmc3k", "tables": tables}
    report("programs", figures, details=details, packages=("torch", "scanpy", "igraph", "scikit-learn"))


if __name__ == "__main__":
    main()

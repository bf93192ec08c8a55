"""Programs of gene embeddings beside those of co-expression, by the pathways that they hold (preprint, Figure 5D, E).

    python benchmarks/bench_pathways.py [--only pbmc3k kang] [--genes 1200] [--model pbmc-mini] [--resolutions 1 5 ...]
                                        [--gene-sets FILE.gmt]

`tl.compare_programs` on 1,200 highly variable genes of each set, the paper's resolutions, Reactome, Bonferroni at 0.05
within a method and resolution, with two backgrounds: the genes that were compared (our default), and all genes that
were measured. The random control is the model's programs with their genes exchanged. Figures take the resolution at
which each method finds most. pbmc-mini saw pbmc3k and control cells of Kang in pretraining, unlabelled. Needs the data
that SCGPT_TL_DATA names, and GSEApy.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import anndata as ad
from _report import Figure, report

from scgpt_tl import pp, tl

SETS = {"pbmc3k": "pbmc3k/pbmc3k.h5ad", "kang": "kang_ifnb2000/kang_ifnb2000.h5ad"}
RESOLUTIONS = (1, 5, 10, 20, 30, 40, 50, 60)


def compared(adata: ad.AnnData, background: str, args: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    start = time.perf_counter()
    found = tl.compare_programs(
        adata,
        gene_sets=args.gene_sets,
        model=args.model,
        resolutions=args.resolutions,
        background=adata.var_names if background == "measured" else None,
    )
    seconds = time.perf_counter() - start
    wide = found.table.pivot_table(index="resolution", columns="method", values=["n_programs", "n_pathways", "common"])
    print(f"  background: {background}, {seconds:.0f} s\n{wide.astype(int).to_string()}", flush=True)
    most = found.table.loc[found.table.groupby("method")["n_pathways"].idxmax()].set_index("method")
    union = {m: set(part["pathway"]) for m, part in found.pathways.groupby("method")}
    ours, theirs = union.get("embedding", set()), union.get("coexpression", set())
    print(f"  by the embedding alone: {'; '.join(sorted(ours - theirs)[:12]) or 'none'}")
    print(f"  by co-expression alone: {'; '.join(sorted(theirs - ours)[:12]) or 'none'}")
    by = {method: int(n) for method, n in most["n_pathways"].items()}
    figures = [Figure("most pathways of any resolution, theirs: co-expression", by["embedding"], by["coexpression"]),
               Figure("most pathways of random programs", by["random"])]  # fmt: skip
    lists = {"common": ours & theirs, "embedding alone": ours - theirs, "coexpression alone": theirs - ours}
    details = {"table": found.table.to_dict("records"), "seconds": seconds, "params": dict(found.params)}
    return figures, details | {"pathways of all resolutions": {name: sorted(those) for name, those in lists.items()}}


def main() -> None:
    folder = Path(os.environ["SCGPT_TL_DATA"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=tuple(SETS))
    parser.add_argument("--genes", type=int, default=1200)
    parser.add_argument("--model", default="pbmc-mini", help="name or folder")
    parser.add_argument("--resolutions", nargs="+", type=float, default=RESOLUTIONS)
    parser.add_argument("--gene-sets", default=str(folder / "gene_resources" / "reactome_pathways.gmt.gz"))
    args = parser.parse_args()
    figures, details = [], {"model": args.model, "genes": args.genes}
    for name in args.only:
        adata = ad.read_h5ad(folder / SETS[name])
        pp.select_genes(adata, n_genes=args.genes)
        for background in ("compared", "measured"):
            print(name)
            found, details[f"{name}, {background}"] = compared(adata, background, args)
            figures += [Figure(f"{name}, {background} genes: {f.what}", f.ours, f.theirs) for f in found]
    report("pathways", figures, details=details, packages=("torch", "scanpy", "igraph", "gseapy"))


if __name__ == "__main__":
    main()

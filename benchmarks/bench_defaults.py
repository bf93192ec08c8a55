"""Time and memory of `tl.scgpt_annotate` and `tl.scgpt_integrate` by default: 2,700 cells, 1,200 variable genes.

    python benchmarks/bench_defaults.py [--rounds 5] [--threads 2]

Control cells of Kang et al. Annotation: 2,700 labelled cells of five donors are learned from, 2,700 cells of the other
three are called. Integration: 2,700 cells of all eight donors, brought together by donor. Genes are the 1,200 most
variable ones (`pp.select_genes`) of each. The model is pbmc-mini, which has seen five of the donors unlabelled. Each
call is made in a process of its own, on `threads` threads; the model is loaded within the call. Peak memory is that of
the whole process, libraries and data included. How good the results are is said by bench_annotate and bench_integrate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from _report import Figure, peak_rss, report
from _sides import Side, serve

CELLS, GENES = 2700, 1200
MINUTES = 10  # promised, of each
UNSEEN = ("101", "107", "1015")


def cells(donors: Callable[[Any], Any]) -> Any:
    """Some cells of some donors, with their most variable genes."""
    import numpy as np

    import scgpt_tl

    adata = scgpt_tl.datasets.kang_ctrl12k()
    rows = np.flatnonzero(donors(adata.obs["donor"].astype(str)).to_numpy())
    chosen = np.sort(np.random.default_rng(0).choice(rows, CELLS, replace=False))
    adata = adata[chosen].copy()
    scgpt_tl.pp.select_genes(adata, n_genes=GENES)
    return adata[:, adata.var["highly_variable"]].copy()


def annotate() -> dict[str, Any]:
    import scgpt_tl

    reference, query = cells(lambda donor: ~donor.isin(UNSEEN)), cells(lambda donor: donor.isin(UNSEEN))
    start = time.perf_counter()
    scgpt_tl.tl.scgpt_annotate(query, reference=reference, labels_key="cell_type")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak_rss(), "shape": [reference.shape, query.shape]}


def integrate() -> dict[str, Any]:
    import scgpt_tl

    adata = cells(lambda donor: donor != "")
    start = time.perf_counter()
    scgpt_tl.tl.scgpt_integrate(adata, batch_key="donor")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak_rss(), "shape": [adata.shape]}


SIDES: Mapping[str, Callable[[], dict[str, Any]]] = {"annotate": annotate, "integrate": integrate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve({"run": SIDES[options.side]})
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(options.rounds):
        for name, rounds in found.items():
            with Side(name, __file__, threads=options.threads) as side:
                rounds.append(side.ask(do="run"))
            print(name, {key: round(value, 1) for key, value in rounds[-1].items() if key != "shape"}, flush=True)
    figures = []
    for name, rounds in found.items():
        seconds, peak = (statistics.median(told[key] for told in rounds) for key in ("seconds", "peak"))
        figures.append(Figure(f"{name}, minutes", seconds / 60, aim=MINUTES, less_is_better=True))
        figures.append(Figure(f"{name}, peak GB of the process", peak / 1e9, less_is_better=True))
    details = {"threads": options.threads, "rounds": options.rounds, "every_round": found}
    report("defaults", figures, details=details, packages=("scgpt_tl", "torch", "anndata", "scanpy", "numba"))


if __name__ == "__main__":
    main()

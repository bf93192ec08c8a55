"""Quantile binning: `pp.bin_values`' kernel beside `scgpt.preprocess.binning`, one thread against one.

    python benchmarks/bench_binning.py --peer-python PATH     (or SCGPT_PEER_PYTHON; see peers/setup.sh)

1,000 cells x 3,000 genes of counts and of distinct floats, at 5, 25 and 100 % non-zeros. The published function is
called row by row on dense float32 rows that lie ready, as its collator calls it; ours on the CSR matrix. Each side runs
in its own environment, round by round in turn, compile time apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from _report import Figure, report, versions
from _sides import Side, peer_python, serve

CELLS, GENES, N_BINS = 1000, 3000, 51
AIMS = {("counts", 5): 15, ("counts", 100): 5, ("floats", 5): 10, ("floats", 100): 4}
LONG_ENOUGH = 0.3  # seconds: a pass is repeated until the clock's grain does not matter


def matrix(kind: str, percent: int) -> np.ndarray:
    """(CELLS, GENES) float32, the same in both environments."""
    rng = np.random.default_rng(percent)
    scale = rng.gamma(0.5, 3.0, size=(CELLS, GENES))
    values = 1 + rng.poisson(scale) if kind == "counts" else rng.gamma(1.0, 1.0, size=(CELLS, GENES)) + 1e-6
    return np.where(rng.random((CELLS, GENES)) < percent / 100, values, 0).astype(np.float32)


def timed(run: Callable[[], object]) -> dict[str, float]:
    """Cells per second of one pass, which is repeated while it is short."""
    passes, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < LONG_ENOUGH:
        run()
        passes += 1
    return {"rate": CELLS * passes / spent}


def ours() -> dict[str, Callable[..., Mapping[str, Any]]]:
    from scipy import sparse

    from scgpt_tl._random import name_keys
    from scgpt_tl.pp._quantiles import bin_csr

    keys, ready = name_keys(f"gene{i}" for i in range(GENES)), {}

    def prepare(kind: str, percent: int) -> dict[str, Any]:
        ready["x"] = sparse.csr_matrix(matrix(kind, percent))
        run("spread")
        return {}

    def run(ties: str = "spread") -> dict[str, float]:
        x = ready["x"]
        return timed(lambda: bin_csr(x.indptr, x.indices, x.data, keys, n_bins=N_BINS, ties=ties, seed=0))

    return {"prepare": prepare, "run": run, "versions": lambda: versions("numba", "scipy")}


def published() -> dict[str, Callable[..., Mapping[str, Any]]]:
    from scgpt.preprocess import binning

    ready = {}

    def prepare(kind: str, percent: int) -> dict[str, Any]:
        ready["x"] = matrix(kind, percent)
        return run()

    def run() -> dict[str, float]:
        return timed(lambda: [binning(row, N_BINS) for row in ready["x"]])

    return {"prepare": prepare, "run": run, "versions": lambda: versions("scgpt", "torch")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=["ours", "published"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(ours() if options.side == "ours" else published())
        return
    figures, spread = [], {}
    with Side("ours", __file__) as we, Side("published", __file__, python=peer_python(options.peer_python)) as they:
        for kind in ("counts", "floats"):
            for percent in (5, 25, 100):
                we.ask(do="prepare", kind=kind, percent=percent)
                they.ask(do="prepare", kind=kind, percent=percent)
                rates: dict[str, list[float]] = {"ours": [], "published": [], "upper": []}
                for _ in range(options.rounds):
                    rates["ours"].append(we.ask(do="run")["rate"])
                    rates["published"].append(they.ask(do="run")["rate"])
                    rates["upper"].append(we.ask(do="run", ties="upper")["rate"])
                middle = {name: statistics.median(values) for name, values in rates.items()}
                what = f"{kind}, {percent} % non-zeros, cells/s"
                spread[what] = rates
                figures.append(Figure(what, middle["ours"], middle["published"], AIMS.get((kind, percent))))
                figures.append(Figure(f'{kind}, {percent} %, ties="upper"', middle["upper"], middle["published"]))
        details = {
            "cells": CELLS, "genes": GENES, "n_bins": N_BINS, "threads": 1, "rounds": options.rounds,
            "every_round": spread, "published_versions": they.ask(do="versions"), "our_versions": we.ask(do="versions"),
        }  # fmt: skip
    report("binning", figures, details=details, packages=("numba", "scipy"))


if __name__ == "__main__":
    main()

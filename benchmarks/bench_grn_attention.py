"""Ranked attention between genes: memory as cells grow, and time beside a plain forward.

    python benchmarks/bench_grn_attention.py [--genes 1200 3000] [--cells 100 1000] [--threads 2] [--rounds 5]
                                             [--only memory time] [--networks pbmc-mini] [--timed-cells 4]

Memory: `attention_scores` over synthetic counts by a small network of random weights (2 layers x 64, 2 heads: maps are
as large as any network's), every number of genes and cells in a process of its own that tells its largest resident
memory. The peak must not grow with the cells; the aim is a growth below a tenth of one M x M sum.

Time: milliseconds a cell of `attention_scores`, all genes shown, beside the plain forward that gives its embedding
(`encode` with `cell_only`, in the same minibatches), in interleaved rounds: a network of 12 x 512 x 8 heads with random
weights and 1,200 genes, and pbmc-mini with both numbers of genes. Ranking, with the products q k' that it ranks, is
timed apart on queries and keys that the forward gave.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import THREADS, Figure, measure, peak_rss, report
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from scgpt_tl._random import name_keys
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network, ScGPT
from scgpt_tl.engine.attention import Maps, attention_scores
from scgpt_tl.engine.pairs import ROWS
from scgpt_tl.engine.predict import Compute, minibatches
from scgpt_tl.engine.ranks import RankSums
from scgpt_tl.models.model import load_model
from scgpt_tl.tokens.tokenize import Tokenizer

GENES, CELLS, TIMED_CELLS = (1200, 3000), (100, 1000), 4
BIG, SMALL = "12 x 512 x 8", "pbmc-mini"
AIMS = {BIG: 2.5, SMALL: 10.0}
SIZES: dict[str, dict[str, int]] = {
    BIG: {"d_model": 512, "n_heads": 8, "n_layers": 12, "d_ff": 512},
    "2 x 64 x 2": {"d_model": 64, "n_heads": 2, "n_layers": 2, "d_ff": 64},
}
QUIET = Compute(device="cpu", progress=False)


def network(name: str, n_genes: int) -> tuple[ScGPT, Tokenizer]:
    """A network and a tokenizer that shows its first genes in every cell."""
    if name == SMALL:
        model = load_model(name)
        backbone, keys = model.backbone, model.vocab.keys
    else:
        torch.manual_seed(0)
        backbone = Network(
            ModelConfig(n_tokens=n_genes + 3, pad_id=n_genes, cls_id=n_genes + 1, **SIZES[name])
        ).backbone
        keys = name_keys(f"GENE{i}" for i in range(n_genes + 3))
    return backbone.eval(), Tokenizer(
        np.arange(n_genes), keys, backbone.config.cls_id, max_length=n_genes + 1, zeros=True
    )


def counts(n_cells: int, n_genes: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Blocks of cells that express a third of the genes."""
    for start in range(0, n_cells, ROWS):
        rng = np.random.default_rng(start)
        shape = min(ROWS, n_cells - start), n_genes
        x = (1 + rng.poisson(rng.gamma(0.5, 3.0, shape))) * (rng.random(shape) < 1 / 3)
        yield start, sparse.csr_matrix(x.astype(np.float32))


def score(
    backbone: ScGPT,
    tokenizer: Tokenizer,
    rows: Iterable[tuple[int, sparse.csr_matrix]],
    n_cells: int,
    regulators: np.ndarray | None = None,
) -> np.ndarray:
    how: dict[str, Any] = {"groups": np.zeros(n_cells, np.int64), "n_groups": 1, "compute": QUIET, "total": n_cells}
    return attention_scores(backbone, iter(rows), tokenizer, regulators=regulators, **how)


def child(n_genes: int, n_cells: int) -> dict[str, float]:
    """In a process of its own: peak memory of the pass, and before its first cell."""
    backbone, tokenizer = network("2 x 64 x 2", n_genes)
    score(*network("2 x 64 x 2", 50), counts(2, 50), 2)  # compiled, threads begun
    ready, start = peak_rss(), time.perf_counter()
    score(backbone, tokenizer, counts(n_cells, n_genes), n_cells)
    return {"peak": peak_rss(), "ready": ready, "seconds": time.perf_counter() - start}


def memory(options: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    env = os.environ | dict.fromkeys(THREADS, str(options.threads))
    figures, runs = [], {}
    for genes in options.genes:
        for cells in options.cells:
            command = [sys.executable, __file__, "--threads", str(options.threads), "--child", str(genes), str(cells)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)  # noqa: S603 (this very file)
            found = runs[f"{genes} genes, {cells} cells"] = json.loads(done.stdout.splitlines()[-1])
            above = (found["peak"] - found["ready"]) / 1e6
            print(
                f"{genes:,} genes, {cells:>5,} cells: peak {found['peak'] / 1e6:,.0f} MB, {above:,.0f} MB above the "
                f"loaded network, {1e3 * found['seconds'] / cells:,.0f} ms a cell",
                flush=True,
            )
            figures.append(Figure(f"peak above the loaded network, {genes:,} genes, {cells:,} cells, MB", above))
        first, last = (runs[f"{genes} genes, {cells} cells"]["peak"] for cells in (options.cells[0], options.cells[-1]))
        what = f"growth of peak memory, {genes:,} genes, {options.cells[0]:,} to {options.cells[-1]:,} cells, MB"
        aim = max(5.0, 0.8 * genes**2 / 1e6)  # a tenth of a sum of int64; below some MB an allocator's moods show
        figures.append(Figure(what, (last - first) / 1e6, aim=aim, less_is_better=True))
    return figures, runs


@torch.inference_mode()
def seconds(name: str, n_genes: int, options: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """Per cell: the plain forward, the whole pass, ranking alone; and for two regulators."""
    backbone, tokenizer = network(name, n_genes)
    n, threads = options.timed_cells, torch.get_num_threads()
    rows = list(counts(n, n_genes))
    block = tokenizer(rows[0][1])
    budget = QUIET.tokens(backbone, torch.device("cpu"))
    batches = [block.batch(cells) for cells in minibatches(block.lengths, budget)]
    tables, last = backbone.tables(), backbone.config.n_layers - 1
    kept: list[list[torch.Tensor]] = []
    for batch in batches:
        found = backbone.queries_and_keys(batch, last, tables=tables)
        kept += zip(*(x.split(n_genes + 1) for x in found), strict=True)

    def forward() -> None:
        for batch in batches:
            backbone.encode(batch, cell_only=True, tables=tables)

    def ranking(columns: np.ndarray | None = None) -> None:
        with ThreadPoolExecutor(threads) as pool:
            maps = Maps(RankSums(1, n_genes, columns, threads, pool.map if threads > 1 else map))
            for q, k in kept:
                maps.add(q[1:], k[1:], 0)

    two = np.array([0, n_genes // 2])
    whole = partial(score, backbone, tokenizer, rows, n)
    sides = {
        "plain forward": forward,
        "whole pass": whole,
        "ranking": ranking,
        "whole pass, two regulators": partial(whole, regulators=two),
        "ranking, two regulators": partial(ranking, two),
    }
    times = measure(sides, rounds=options.rounds)
    each = {side: 1e3 * found.median / n for side, found in times.items()}
    plain, what = each["plain forward"], f"{name}, {n_genes:,} genes"
    keys = n_genes**2 * backbone.config.n_heads
    figures = [Figure(f"{what}: {side}, ms a cell", value) for side, value in each.items()]
    figures += [
        Figure(f"{what}: ranking, ns a score", 1e6 * each["ranking"] / keys),
        Figure(f"{what}: whole pass / plain forward", each["whole pass"] / plain, aim=AIMS[name], less_is_better=True),
        Figure(f"{what}: two regulators / plain forward", each["whole pass, two regulators"] / plain),
        Figure(f"{what}: ranking / plain forward", each["ranking"] / plain),
    ]
    return figures, {side: found.seconds for side, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=GENES)
    parser.add_argument("--cells", type=int, nargs="+", default=CELLS)
    parser.add_argument("--timed-cells", type=int, default=TIMED_CELLS, help=f"up to {ROWS}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("memory", "time"), default=("memory", "time"))
    parser.add_argument("--networks", nargs="+", choices=(BIG, SMALL), default=(BIG, SMALL))
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    figures, details = [], {"threads": options.threads, "rounds": options.rounds, "timed cells": options.timed_cells}
    if "memory" in options.only:
        found, details["bytes"] = memory(options)
        figures += found
    if "time" in options.only:
        every_round = details["every_round"] = {}
        for name in options.networks:
            for genes in options.genes[:1] if name == BIG else options.genes:
                found, every_round[f"{name}, {genes} genes"] = seconds(name, genes, options)
                figures += found
    report("grn_attention", figures, details=details, packages=("torch", "numba"))


if __name__ == "__main__":
    main()

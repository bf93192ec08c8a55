"""Reading for training, no model: cells per second and core, and memory, from h5ad and zarr.

    python benchmarks/bench_feed.py [--kinds h5ad zarr] [--cells FEW MANY] [--rounds N] [--folder PLACE]

Synthetic cells of about 1,000 non-zeros among 20,000 genes in an unordered vocabulary, chunked and compressed as each
library does unasked. Every number of cells is read in a process of its own: an epoch a round, from the file through
shuffle and tokeniser to `CellBatch`. Cells per second of processor time, all threads together, are cells per second
and core; the wall clock is told beside it. Files stay in the system's cache: this is the cost of the work, not of a
disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import Figure, peak_rss, report

GENES, NONZEROS, PIECE, CELLS = 20_000, 1_000, 5_000, 64
KINDS = ("h5ad", "h5ad-gzip", "zarr")
MAX_LENGTH = 1_200


def write(path: Path, kind: str, n_cells: int) -> None:
    """A CSR matrix of counts in AnnData's layout; at most a piece of it is ever in memory."""
    import anndata as ad
    import h5py
    import pandas as pd
    import zarr

    rng = np.random.default_rng(0)
    store: Any = zarr.open_group(path, mode="w") if kind == "zarr" else h5py.File(path, "w")
    store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    ad.io.write_elem(store, "obs", pd.DataFrame(index=np.arange(n_cells).astype(str)))
    ad.io.write_elem(store, "var", pd.DataFrame(index=[f"gene{i}" for i in range(GENES)]))
    group = store.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, GENES]})
    lengths = rng.poisson(NONZEROS, n_cells)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    make = group.create_array if kind == "zarr" else group.create_dataset
    as_is = {} if kind == "zarr" else {"chunks": True, "compression": "gzip" if kind == "h5ad-gzip" else None}
    make("indptr", shape=indptr.shape, dtype="int64")[:] = indptr
    indices, data = (
        make(name, shape=(int(indptr[-1]),), dtype=dtype, **as_is)
        for name, dtype in (("indices", "int32"), ("data", "float32"))
    )
    for start in range(0, n_cells, PIECE):
        columns = some_columns(rng, lengths[start : start + PIECE])
        at = slice(int(indptr[start]), int(indptr[start]) + len(columns))
        indices[at], data[at] = columns, 1 + rng.poisson(rng.gamma(0.6, 3.0, len(columns)))
    if kind != "zarr":
        store.close()


def some_columns(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Sorted columns of each row, as many as asked for, one row after the other: scaled sums of random gaps."""
    n = lengths[:, None]
    place = np.arange(lengths.max() + 1)
    sums = np.cumsum(rng.exponential(size=(len(lengths), len(place))) * (place <= n), axis=1)
    columns = (sums / sums[:, -1:] * (GENES - n)).astype(np.int32) + place.astype(np.int32)
    return columns[place < n]


def feed_epochs(path: Path, rounds: int) -> dict[str, Any]:
    """In a process of its own: an epoch a round; processor and wall seconds of each, peak memory before and after."""
    import torch  # noqa: F401 (its memory is no part of the feed's)

    from scgpt_tl._random import name_keys
    from scgpt_tl.engine.data import Plan, feed
    from scgpt_tl.tl._corpus import open_corpus
    from scgpt_tl.tokens.tokenize import Tokenizer

    (source,) = open_corpus(path)
    columns = np.random.default_rng(1).permutation(GENES)
    tokenizer = Tokenizer(columns, name_keys(f"gene{i}" for i in range(GENES + 3)), GENES, max_length=MAX_LENGTH)
    studies = [source.study(tokenizer)]
    tokenizer(studies[0].take(np.arange(8)))  # compiled
    ready, found = peak_rss(), {"cpu": [], "wall": []}
    plan = Plan(studies, cells=CELLS, ratios=(0.5,), seed=0, held_out=0.0, training=True)
    for number in range(rounds):
        wall, cpu, cells = time.perf_counter(), time.process_time(), 0
        for _, batch in feed(plan.epoch(number), studies, lambda _, block, __: block.batch(np.arange(len(block.keys)))):
            cells += batch.n_cells
        assert cells == source.n_cells
        found["cpu"].append(time.process_time() - cpu)
        found["wall"].append(time.perf_counter() - wall)
    return {"ready": ready, "peak": peak_rss(), **found}


def measure(path: Path, n_cells: int, rounds: int) -> dict[str, Any]:
    """Read in another process."""
    command = [sys.executable, __file__, "--child", str(path), "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 (this very file)
    found = json.loads(done.stdout.splitlines()[-1])
    cpu, wall = (n_cells / statistics.median(found[clock]) for clock in ("cpu", "wall"))
    print(
        f"{path.stem:>16} {n_cells:>9,} cells: {cpu:,.0f} cells/s and core, {wall:,.0f} cells/s of wall clock, peak "
        f"{found['peak'] / 1e6:,.0f} MB ({found['ready'] / 1e6:,.0f} MB before the first)",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=("h5ad", "zarr"))
    parser.add_argument("--cells", nargs=2, type=int, default=(20_000, 200_000))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the cells are written (two GB); a temporary one")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(feed_epochs(args.child, args.rounds)))
        return
    few, many = args.cells
    for kind in args.kinds:
        runs = {}
        for n_cells in (few, many):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                path = Path(folder) / f"{kind}.{'zarr' if kind == 'zarr' else 'h5ad'}"
                write(path, kind, n_cells)
                runs[n_cells] = measure(path, n_cells, args.rounds)
        rate = {clock: many / statistics.median(runs[many][clock]) for clock in ("cpu", "wall")}
        growth = (runs[many]["peak"] - runs[few]["peak"]) / 1e6
        figures = [
            Figure(f"cells/s and core, {many:,} cells, {kind}", ours=rate["cpu"], aim=5000),
            Figure(f"cells/s of wall clock, {many:,} cells, {kind}", ours=rate["wall"]),
            Figure(
                f"growth of peak memory, {few:,} to {many:,} cells, {kind}, MB", growth, aim=300, less_is_better=True
            ),
            Figure(
                f"peak above what is loaded, {many:,} cells, {kind}, MB",
                (runs[many]["peak"] - runs[many]["ready"]) / 1e6,
            ),
        ]
        details = {"genes": GENES, "nonzeros": NONZEROS, "max_length": MAX_LENGTH, "cells": CELLS, "runs": runs}
        report(f"feed_{kind}", figures, details=details, packages=("torch", "numba", "h5py", "zarr"))


if __name__ == "__main__":
    main()

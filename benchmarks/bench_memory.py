"""Memory of embedding a matrix on disk: 20,000 cells beside 200,000, from a backed h5ad and from zarr.

    python benchmarks/bench_memory.py [--model NAME_OR_FOLDER] [--kinds h5ad zarr] [--cells FEW MANY] [--folder PLACE]

Synthetic cells of about 150 non-zeros among the model's genes, written a piece at a time. Each embedding runs in a
process of its own, with `out=` on disk, and tells its largest resident memory; the aim is growth below 300 MB from the
smaller number of cells to the larger.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import Figure, peak_rss, report

NONZEROS, PIECE, AIM_MB = 150, 10_000, 300
KINDS = ("h5ad", "zarr")


def write(path: Path, kind: str, n_cells: int, genes: list[str]) -> None:
    """A CSR matrix of counts in AnnData's layout; at most a piece of it is ever in memory."""
    import anndata as ad
    import h5py
    import pandas as pd
    import zarr

    rng = np.random.default_rng(0)
    store: Any = h5py.File(path, "w") if kind == "h5ad" else zarr.open_group(path, mode="w")
    store.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    ad.io.write_elem(store, "obs", pd.DataFrame(index=np.arange(n_cells).astype(str)))
    ad.io.write_elem(store, "var", pd.DataFrame(index=genes))
    group = store.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, len(genes)]})
    lengths = np.clip(rng.poisson(NONZEROS, n_cells), 1, len(genes))
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total, chunk = int(indptr[-1]), PIECE * NONZEROS
    sizes = {"shape": (total,), "chunks": (min(chunk, total),)}
    make = group.create_dataset if kind == "h5ad" else group.create_array
    indices, data = make("indices", dtype="int32", **sizes), make("data", dtype="float32", **sizes)
    make("indptr", shape=indptr.shape, dtype="int64")[:] = indptr
    for start in range(0, n_cells, PIECE):
        some = lengths[start : start + PIECE]
        at = slice(int(indptr[start]), int(indptr[start] + some.sum()))
        indices[at] = np.concatenate([np.sort(rng.choice(len(genes), n, replace=False)) for n in some])
        data[at] = 1 + rng.poisson(1.0, int(some.sum()))
    if kind == "h5ad":
        store.close()


def embed(path: Path, kind: str, model: str, out: Path) -> dict[str, float]:
    """In a process of its own: peak memory before and after, seconds."""
    import anndata as ad
    import zarr

    import scgpt_tl

    if kind == "h5ad":
        adata = ad.read_h5ad(path, backed="r")
    else:
        group = zarr.open_group(path, mode="r")
        adata = ad.AnnData(
            ad.io.sparse_dataset(group["X"]), obs=ad.io.read_elem(group["obs"]), var=ad.io.read_elem(group["var"])
        )
    loaded = scgpt_tl.load_model(model)
    ready, start = peak_rss(), time.perf_counter()
    scgpt_tl.tl.scgpt_embed(adata, model=loaded, out=out, progress=False, device="cpu")
    return {"peak": peak_rss(), "ready": ready, "seconds": time.perf_counter() - start}


def measure(kind: str, n_cells: int, model: str, folder: Path) -> dict[str, float]:
    """Write, embed in another process, remove."""
    from scgpt_tl.genes.bundle import read_bundle

    path = folder / f"cells{n_cells}.{kind}"
    write(path, kind, n_cells, read_bundle(model).vocab.genes)
    out = folder / f"{kind}{n_cells}.out.zarr"
    command = [sys.executable, __file__, "--child", str(path), kind, str(out), "--model", model]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 (this very file)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{kind:5} {n_cells:>9,} cells: peak {found['peak'] / 1e6:,.0f} MB "
        f"({found['ready'] / 1e6:,.0f} MB before the first cell), {n_cells / found['seconds']:,.0f} cells/s",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pbmc-mini")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--cells", nargs=2, type=int, default=(20_000, 200_000))
    parser.add_argument("--folder", type=Path, help="where the cells are written (some hundred MB); a temporary one")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        path, kind, out = args.child
        print(json.dumps(embed(Path(path), kind, args.model, Path(out))))
        return
    few, many = args.cells
    for kind in args.kinds:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            runs = {n: measure(kind, n, args.model, Path(folder)) for n in (few, many)}
        growth = (runs[many]["peak"] - runs[few]["peak"]) / 1e6
        above = (runs[many]["peak"] - runs[many]["ready"]) / 1e6
        what = f"growth of peak memory, {few:,} to {many:,} cells, {kind}, MB"
        figures = [
            Figure(what, ours=growth, aim=AIM_MB, less_is_better=True),
            Figure(f"peak above the loaded model, {many:,} cells, {kind}, MB", ours=above),
        ]
        details = {"model": args.model, "nonzeros_per_cell": NONZEROS, "bytes": runs}
        report(f"memory_{kind}", figures, details=details, packages=("torch", "anndata", "h5py", "zarr"))


if __name__ == "__main__":
    main()

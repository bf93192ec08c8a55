"""Embedding on a CPU: `tl.scgpt_embed` beside the published pipeline, as shipped and with its fast path off.

    python benchmarks/bench_embed_cpu.py --peer-python PATH     (or SCGPT_PEER_PYTHON; see peers/setup.sh)

A network of 12 x 512 x 8 with seeded random weights in the published layout (60,697 tokens), 32 cells of synthetic
counts with 416 to 1,354 expressed genes (798 on average), at most 1,200 tokens a cell. Three processes with equal
threads, asked in turn: ours, `scgpt.tasks.embed_data`, and the same with torch's attention fast path off. The embedding
pass is compared, model in memory; the whole call, loading included, is printed beside it. The rate of a 2048^3 product
is measured in our process between the rounds.

FLOPs are those executed on real tokens: a full block costs 8 d^2 + 4 d f a token and 4 T d for its attention; the last
one keys and values for every token and the rest for `<cls>` alone. Table look-ups count for nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _report import Figure, peak_rss, report, versions
from _sides import Side, peer_python, serve

CELLS, GENES, TOKENS, MAX_LENGTH, BATCH = 32, 3000, 60_697, 1200, 32
SHORTEST, LONGEST, MEAN = 416, 1354, 798
D, D_FF, HEADS, LAYERS = 512, 512, 8, 12
GIB = 2**30


def expressed() -> np.ndarray:
    """Genes per cell: from SHORTEST to LONGEST, MEAN on average."""
    lengths = np.random.default_rng(0).lognormal(0, 0.35, CELLS)
    low, high = 0.0, 1e4  # the scale that gives the mean once the ends are cut
    for _ in range(60):
        middle = (low + high) / 2
        cut = np.clip(middle * lengths, SHORTEST, LONGEST)
        low, high = (middle, high) if cut.mean() < MEAN else (low, middle)
    counts = cut.round().astype(int)
    counts[counts.argmin()], counts[counts.argmax()] = SHORTEST, LONGEST
    return counts


def write_inputs(folder: Path) -> None:
    """cells.h5ad, and model/ in the published layout."""
    import anndata as ad
    import pandas as pd
    import torch
    from scipy import sparse

    rng = np.random.default_rng(1)
    x = np.zeros((CELLS, GENES), np.float32)
    for row, n in zip(x, expressed(), strict=True):
        row[rng.choice(GENES, n, replace=False)] = 1 + rng.poisson(rng.gamma(0.5, 3.0, n))
    cells, genes = [f"cell{i}" for i in range(CELLS)], [f"GENE{i}" for i in range(GENES)]
    adata = ad.AnnData(sparse.csr_matrix(x), obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=genes))
    adata.write_h5ad(folder / "cells.h5ad")

    model = folder / "model"
    model.mkdir()
    names = [*(f"GENE{i}" for i in range(TOKENS - 3)), "<pad>", "<cls>", "<eoc>"]
    (model / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    arguments = {
        "embsize": D, "d_hid": D_FF, "nlayers": LAYERS, "nheads": HEADS, "n_layers_cls": 3, "dropout": 0.2,
        "n_bins": 51, "max_seq_len": MAX_LENGTH, "pad_token": "<pad>", "pad_value": -2, "mask_value": -1,
        "input_style": "binned", "input_emb_style": "continuous",
    }  # fmt: skip
    (model / "args.json").write_text(json.dumps(arguments))
    torch.save(random_weights(), model / "best_model.pt")


def random_weights() -> dict[str, Any]:
    """Names and shapes of a published human checkpoint; values small enough that signals neither die nor explode."""
    import torch

    random = torch.Generator().manual_seed(0)
    state: dict[str, Any] = {}

    def linear(name: str, out: int, into: int, *, bias: bool = True, spelled: str = "{}.weight") -> None:
        state[spelled.format(name)] = (torch.rand(out, into, generator=random) * 2 - 1) / into**0.5
        if bias:
            state[spelled.format(name).replace("weight", "bias")] = (torch.rand(out, generator=random) - 0.5) * 0.02

    def norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.ones(D), torch.zeros(D)

    state["encoder.embedding.weight"] = torch.rand(TOKENS, D, generator=random) * 0.2 - 0.1
    norm("encoder.enc_norm")
    linear("value_encoder.linear1", D, 1)
    linear("value_encoder.linear2", D, D)
    norm("value_encoder.norm")
    for i in range(LAYERS):
        layer = f"transformer_encoder.layers.{i}"
        linear(f"{layer}.self_attn.Wqkv", 3 * D, D)
        linear(f"{layer}.self_attn.out_proj", D, D)
        linear(f"{layer}.linear1", D_FF, D)
        linear(f"{layer}.linear2", D, D_FF)
        norm(f"{layer}.norm1")
        norm(f"{layer}.norm2")
    for place, out in (("0", D), ("2", D), ("4", 1)):
        linear(f"decoder.fc.{place}", out, D)
    linear("mvc_decoder.gene2query", D, D)
    linear("mvc_decoder.W", D, D, bias=False)
    return state


def useful_flops() -> float:
    """Multiplications and additions of one embedding pass over the cells, `<cls>` only in the last block."""
    tokens = np.minimum(expressed() + 1, MAX_LENGTH).astype(float)
    full = (8 * D * D + 4 * D * D_FF) * tokens + 4 * D * tokens**2
    last = 4 * D * D * tokens + 4 * D * tokens + (4 * D * D + 4 * D * D_FF)
    return float(((LAYERS - 1) * full + last).sum())


def ours() -> dict[str, Callable[..., Mapping[str, Any]]]:
    import anndata as ad
    import torch

    import scgpt_tl

    ready: dict[str, Any] = {}

    def prepare(folder: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        ready["folder"] = Path(folder)
        ready["adata"] = ad.read_h5ad(ready["folder"] / "cells.h5ad")
        before = peak_rss()
        embed(ready["adata"][:4].copy(), model())
        return {"before": before}

    def model() -> Any:
        if "model" not in ready:
            ready["model"] = scgpt_tl.load_model(str(ready["folder"] / "model"))
        return ready["model"]

    def embed(adata: Any, model: Any) -> Any:
        scgpt_tl.tl.scgpt_embed(adata, model=model, max_length=MAX_LENGTH, device="cpu", dtype="float32")
        return adata.obsm["X_scGPT"]

    def run() -> dict[str, Any]:
        adata, loaded = ready["adata"].copy(), model()
        start = time.perf_counter()
        emb = embed(adata, loaded)
        return {"embed": time.perf_counter() - start, "emb": emb.tolist()}

    def whole() -> dict[str, Any]:
        adata = ready["adata"].copy()
        ready.pop("model", None)  # or the peak of memory would count two
        start = time.perf_counter()
        embed(adata, str(ready["folder"] / "model"))
        return {"whole": time.perf_counter() - start}

    def gemm() -> dict[str, float]:
        a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
        a @ b
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        return {"rate": 10 * 2 * 2048**3 / (time.perf_counter() - start)}

    return {
        "prepare": prepare, "run": run, "whole": whole, "gemm": gemm,
        "peak": lambda: {"bytes": peak_rss()}, "versions": lambda: versions("torch", "numba", "anndata"),
    }  # fmt: skip


def published(*, fast_path: bool) -> dict[str, Callable[..., Mapping[str, Any]]]:
    import anndata as ad
    import torch
    from scgpt.tasks import cell_emb

    torch.backends.mha.set_fastpath_enabled(fast_path)
    ready: dict[str, Any] = {}
    inner = cell_emb.get_batch_cell_embeddings

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        emb = inner(*args, **kwargs)
        ready["embed"] = time.perf_counter() - start
        return emb

    cell_emb.get_batch_cell_embeddings = timed

    def embed(adata: Any) -> Any:
        return cell_emb.embed_data(
            adata, ready["folder"] / "model", gene_col="index", max_length=MAX_LENGTH, batch_size=BATCH, device="cpu"
        )

    def prepare(folder: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        ready["folder"] = Path(folder)
        ready["adata"] = ad.read_h5ad(ready["folder"] / "cells.h5ad")
        before = peak_rss()
        embed(ready["adata"][:4].copy())
        return {"before": before}

    def run() -> dict[str, Any]:
        adata = ready["adata"].copy()
        start = time.perf_counter()
        done = embed(adata)
        return {"embed": ready["embed"], "whole": time.perf_counter() - start, "emb": done.obsm["X_scGPT"].tolist()}

    return {
        "prepare": prepare, "run": run,
        "peak": lambda: {"bytes": peak_rss()}, "versions": lambda: versions("scgpt", "torch", "anndata"),
    }  # fmt: skip


SIDES: dict[str, Callable[[], dict[str, Callable[..., Mapping[str, Any]]]]] = {
    "ours": ours,
    "published": lambda: published(fast_path=True),
    "published_slow_path": lambda: published(fast_path=False),
}


def take_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round of every side, the product's rate, and the agreement of the embeddings."""
    found: dict[str, dict[str, list[float]]] = {name: {"embed": [], "whole": []} for name in sides}
    found["gemm"], embeddings = {"rate": []}, {}
    for _ in range(rounds):
        for name, side in sides.items():
            answer = side.ask(do="run")
            embeddings[name] = np.array(answer.pop("emb"))
            if name == "ours":
                answer |= side.ask(do="whole")
                found["gemm"]["rate"].append(side.ask(do="gemm")["rate"])
            for what, seconds in answer.items():
                found[name][what].append(seconds)
    if "ours" in embeddings:
        for name in sides:
            found[name]["cosine to ours"] = (embeddings[name] * embeddings["ours"]).sum(axis=1).tolist()
    return found


def figures(found: Mapping[str, Mapping[str, list[float]]], peaks: Mapping[str, float]) -> list[Figure]:
    def rate(name: str, what: str) -> float:
        return CELLS / statistics.median(found[name][what])

    theirs = [("published", "as shipped", 4.0), ("published_slow_path", "its fast path off", 2.5)]
    theirs = [side for side in theirs if side[0] in found]
    if "ours" not in found:
        return [Figure(f"cells/s, published, {words}", rate(name, "embed")) for name, words, _ in theirs]
    lines = [
        Figure(f"cells/s, {words}", rate("ours", "embed"), rate(name, "embed"), aim) for name, words, aim in theirs
    ]
    lines += [
        Figure(f"cells/s with loading, {words}", rate("ours", "whole"), rate(name, "whole"))
        for name, words, _ in theirs
    ]
    gemm = statistics.median(found["gemm"]["rate"])
    achieved = useful_flops() / statistics.median(found["ours"]["embed"])
    lines.append(Figure("share of the GEMM rate", achieved / gemm, aim=0.7))
    lines.append(Figure("GFLOP/s; a 2048^3 product beside it", achieved / 1e9, gemm / 1e9))
    lines += [
        Figure(
            f"peak GiB, {words}", peaks["ours"], peaks[name], 2.0 if name == "published" else None, less_is_better=True
        )
        for name, words, _ in theirs
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=list(SIDES), default=list(SIDES), help="sides to run (to try it out)"
    )
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(SIDES[options.side]())
        return
    peer, sides = peer_python(options.peer_python) if set(options.only) - {"ours"} else None, {}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for name in options.only:
            python = {} if name == "ours" else {"python": peer}
            sides[name] = Side(name, __file__, threads=options.threads, **python)
        before = {
            name: side.ask(do="prepare", folder=folder, threads=options.threads)["before"] / GIB
            for name, side in sides.items()
        }
        found = take_turns(sides, options.rounds)
        peaks = {name: side.ask(do="peak")["bytes"] / GIB for name, side in sides.items()}
        installed = {name: side.ask(do="versions") for name, side in sides.items()}
        for side in sides.values():
            side.__exit__()
    details = {
        "cells": CELLS, "expressed_genes": expressed().tolist(), "tokens": TOKENS, "max_length": MAX_LENGTH,
        "network": f"{LAYERS} x {D} x {HEADS}, feed-forward {D_FF}", "batch_size_published": BATCH,
        "threads": options.threads, "rounds": options.rounds, "useful_gflop": useful_flops() / 1e9,
        "every_round": found, "peak_gib_before_embedding": before, "versions": installed,
    }  # fmt: skip
    report("embed_cpu", figures(found, peaks), details=details)


if __name__ == "__main__":
    main()

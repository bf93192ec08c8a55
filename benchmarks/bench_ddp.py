"""Two processes beside one: the same loss curve at the same global batch.

    python benchmarks/bench_ddp.py [--epochs 10]

A small pretraining without dropout (gloo, CPU), GEP + GEPC + cell prompts, and again with the contrast, whose cells are
gathered from both processes. Prints the losses of both curves and the largest relative difference.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from _report import Figure, report

AIM = 1e-3


def curves(recipe: str, devices: int, folder: Path, epochs: int) -> dict[str, list[float]]:
    """Losses of each epoch."""
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    import scgpt_tl

    rng = np.random.default_rng(0)
    kind = np.arange(512)[:, None] % 4 == np.arange(300)[None] % 4
    counts = rng.poisson(np.where(kind, 2.0, 0.2)).astype(np.float32)
    genes = pd.DataFrame(index=[f"G{i}" for i in range(300)])
    cells = ad.AnnData(sparse.csr_matrix(counts), pd.DataFrame(index=np.arange(512).astype(str)), genes)
    train = scgpt_tl.TrainConfig(epochs=epochs, cells=64, max_length=120, device="cpu", progress=False, held_out=0.1)
    train = replace(train, devices=devices, strategy="ddp_spawn" if devices > 1 else "auto")
    out = folder / f"{recipe}{devices}"
    model = scgpt_tl.tl.scgpt_pretrain(cells, out=out, size="nano", train=train, recipe=recipe)
    history = model.provenance["history"]
    return {name: [h[name] for h in history] for name in history[0] if "/" in name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    figures, details = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in ("generative", "generative+contrast"):
            one, two = (curves(recipe, n, Path(folder), args.epochs) for n in (1, 2))
            worst = max(float(np.max(np.abs(np.array(two[k]) / np.array(one[k]) - 1))) for k in one)
            print("\n".join(f"{k:22} {one[k][-1]:.6f}  {two[k][-1]:.6f}" for k in one))
            what = f"{recipe}: largest relative difference of any loss, {args.epochs} epochs"
            figures.append(Figure(what, ours=worst, aim=AIM, less_is_better=True))
            details[recipe] = {"one process": one, "two processes": two}
    report("ddp", figures, details=details, packages=("torch", "lightning"))


if __name__ == "__main__":
    main()

"""The paper's scaling experiment in small: the same network and cell-steps on 1,000, 5,000 and all cells.

    SCGPT_TL_DATA=... python benchmarks/bench_scaling.py --out DIR [--passes 2]

Cells of the smaller corpora are a sample of each study in proportion. All runs take as many steps as `--passes` epochs
over all cells. Judged by the loss on studies that no run trained on (pbmc_sorted_ref, the three Kang donors kept out)
and by zero-shot scores on the four sets of bench_zero_shot.py. Goes on where it was cut off. Draws docs/scaling.png.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import Figure, report
from bench_zero_shot import SETS, evaluate_embedding
from corpus import EDITION, studies

import scgpt_tl
from scgpt_tl.engine.data import Plan, feed
from scgpt_tl.engine.progress import Progress
from scgpt_tl.engine.recipes import GENERATIVE, hide, losses
from scgpt_tl.engine.run import tokenizer_for
from scgpt_tl.tl import open_corpus

SIZES = (1000, 5000, None)
DRAWN = Path(__file__).parents[1] / "docs" / "scaling.png"


def sample(cells: dict[str, Any], n: int | None) -> dict[str, Any]:
    """About n cells, from each study in proportion."""
    if n is None:
        return cells
    total, rng = sum(x.n_obs for x in cells.values()), np.random.default_rng(0)
    parts = {}
    for name, adata in cells.items():
        chosen = rng.choice(adata.n_obs, round(n * adata.n_obs / total), replace=False)
        parts[name] = adata[np.sort(chosen)].copy()
    return parts


def judge(model: Any) -> dict[str, dict[str, float | int]]:
    """Zero-shot scores on each set."""
    found = {}
    for name, judged in SETS.items():
        adata = judged.load()
        scgpt_tl.tl.scgpt_embed(adata, model=model, device="cpu", progress=False)
        found[name] = evaluate_embedding(adata.obsm["X_scGPT"], adata.obs[judged.labels], seeds=(0, 1, 2, 3, 4))
    return found


@torch.no_grad()
def held_out_losses(model: Any, cells: dict[str, Any]) -> dict[str, float]:
    """Losses of the generative recipe on studies that no run saw, means over cells."""
    sources = open_corpus(cells, model_vocab=model.vocab)
    studies = [x.study(tokenizer_for(model, x.genes, EDITION, 0)) for x in sources]
    options = {"cells": 128, "ratios": GENERATIVE.ratios, "seed": 0}
    epoch = Plan(studies, **options, held_out=1.0, training=False).epoch(0)
    sums = Progress()

    def prepare(study: Any, block: Any, draw: Any) -> Any:
        cells = block.batch(np.arange(len(block.keys)))
        return hide(GENERATIVE, cells, block.keys, study.tokenizer.gene_keys, ratio=draw.ratio, mask_value=-1.0)

    for draw, minibatch in feed(epoch, studies, prepare):
        parts = losses(model.network, minibatch, GENERATIVE).parts
        sums.add({name: float(x) for name, x in parts.items()}, len(draw.rows))
    return sums.means()


def draw(rows: dict[str, dict[str, Any]]) -> None:
    """Held-out loss and AvgBIO against cells."""
    import matplotlib.pyplot as plt

    cells = [row["cells"] for row in rows.values()]
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(cells, [row["held_out"]["gep"] for row in rows.values()], "o-", color="#0072B2", label="genes")
    left.plot(cells, [row["held_out"]["gepc"] for row in rows.values()], "s--", color="#E69F00", label="cell")
    left.set(ylabel="error on studies kept out\n(squared, in units of the largest bin)")
    styles = zip(SETS, ("o-", "s--", "^:", "v-."), ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True)
    for name, style, color in styles:
        right.plot(cells, [row["zero_shot"][name]["AvgBIO"] for row in rows.values()], style, color=color, label=name)
    right.set(ylabel="AvgBIO, zero-shot")
    for ax in (left, right):
        ax.set(xscale="log", xlabel="cells of the corpus, equal cell-steps")
        ax.set_xticks(cells, [f"{n:,}" for n in cells])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.6))
        ax.spines[["top", "right"]].set_visible(False)
    plt.savefig(DRAWN, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=EDITION.epochs)
    args = parser.parse_args()
    cells = studies()
    total = sum(x.n_obs for x in cells.values())
    kept_out = {name: SETS[name].load() for name in ("pbmc_sorted_ref", "kang_held_out_donors")}
    rows: dict[str, dict[str, Any]] = {}
    for n in SIZES:
        some = sample(cells, n)
        size = sum(x.n_obs for x in some.values())
        train = replace(EDITION, epochs=round(args.passes * total / size), held_out=0.0, progress=False)
        model = scgpt_tl.tl.scgpt_pretrain(some, out=args.out / f"cells{n or 'all'}", size="mini", train=train)
        steps, held_out, zero_shot = (
            model.provenance["history"][-1]["step"],
            held_out_losses(model, kept_out),
            judge(model),
        )
        rows[str(n or "all")] = {"cells": size, "steps": steps, "held_out": held_out, "zero_shot": zero_shot}
        shown = "  ".join(f"{name} {row['AvgBIO']:.3f}" for name, row in zero_shot.items())
        print(f"{size:,} cells, {steps:,} steps: gep {held_out['gep']:.4f}  {shown}", flush=True)
    draw(rows)
    most, fewest = rows["all"], rows["1000"]
    figures = [
        Figure(
            "error of gene prompts on studies kept out, all cells beside 1,000",
            ours=most["held_out"]["gep"],
            theirs=fewest["held_out"]["gep"],
            less_is_better=True,
        )
    ]
    for name in SETS:
        ours, theirs = (row["zero_shot"][name]["AvgBIO"] for row in (most, fewest))
        figures.append(Figure(f"AvgBIO {name}, all cells beside 1,000", ours=ours, theirs=theirs))
    report("scaling", figures, details={"passes": args.passes, "runs": rows}, packages=("torch", "lightning"))


if __name__ == "__main__":
    main()

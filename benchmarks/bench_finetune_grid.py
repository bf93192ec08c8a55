"""What fine-tuning adds: zero-shot probe, frozen + head, LoRA, full, and full from random weights.

    python benchmarks/bench_finetune_grid.py [--seeds 0 1 2] [--models DIR ...] [--cells 3000] [--epochs 5]

Types of five donors of kang_ctrl12k, at most 3,000 cells to learn from and 5 epochs; judged on donors 101, 107, 1015,
every cell with its likeliest type. `--models` takes folders of models pretrained on fewer cells (bench_scaling.py makes
cells1000, cells5000, cellsall): each is fine-tuned in full, the paper's Figure 2F in small.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _report import Figure, report
from bench_annotate import TASKS, some

import scgpt_tl
from scgpt_tl.engine.annotate import options_for
from scgpt_tl.metrics import class_scores
from scgpt_tl.models import load_model, with_random_weights


def judged(model: Any, method: str, seed: int, data: tuple[Any, Any], epochs: int) -> dict[str, float]:
    """Scores on the query, every cell with its likeliest type."""
    reference, query = data[0], data[1].copy()
    train = None
    if method not in ("probe", "knn"):
        default = options_for(method, model.config, None, reference.n_obs)
        train = {"epochs": min(epochs, default.epochs), "progress": False}
    start = time.perf_counter()
    scgpt_tl.tl.scgpt_annotate(
        query, reference=reference, labels_key="truth", model=model, method=method, train=train, rng=seed
    )
    seconds = time.perf_counter() - start
    found = query.uns["scgpt_pred"]
    shares, classes = query.obsm["scgpt_probabilities"], found["classes"]
    scores = class_scores(query.obs["truth"], classes[shares.argmax(1)], probabilities=shares, classes=classes)
    return {"accuracy": scores.accuracy, "f1_macro": scores.f1_macro, "ece": scores.ece, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--query-cells", type=int, help="for a trial; all where it is not given")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--model", default="pbmc-mini")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    reference, query = TASKS["kang_donors"].load()
    data = some(reference, args.cells), some(query, args.query_cells)
    base = load_model(args.model)
    sides: dict[str, tuple[Any, str]] = {
        "zero-shot probe": (base, "probe"),
        "frozen + head": (base, "head"),
        "LoRA": (base, "lora"),
        "full": (base, "finetune"),
        "probe of random weights": (with_random_weights(base), "probe"),
        "full from random weights": (with_random_weights(base), "finetune"),
    } | {f"full from {folder.name}": (load_model(folder), "finetune") for folder in args.models}
    rows: dict[str, dict[str, float]] = {}
    for side, (model, method) in sides.items():
        found = [judged(model, method, seed, data, args.epochs) for seed in args.seeds]
        rows[side] = {name: mean(one[name] for one in found) for name in found[0]}
        if len(found) > 1:
            rows[side] |= {f"{name}_sd": stdev(one[name] for one in found) for name in found[0]}
        shown = "  ".join(f"{name} {rows[side][name]:.3f}" for name in ("accuracy", "f1_macro", "ece", "seconds"))
        print(f"{side:28}{shown}", flush=True)
    full, scratch = rows["full"], rows["full from random weights"]
    figures = [
        Figure(f"{name}, full beside from random weights", ours=full[name], theirs=scratch[name], aim=1)
        for name in ("accuracy", "f1_macro")
    ]
    figures += [
        Figure(f"f1_macro, full beside {side}", ours=full["f1_macro"], theirs=row["f1_macro"])
        for side, row in rows.items()
        if side not in ("full", "full from random weights")
    ]
    sizes = {"cells": data[0].n_obs, "query_cells": data[1].n_obs, "epochs": args.epochs, "seeds": args.seeds}
    report("finetune_grid", figures, details={**sizes, "model": base.name, "sides": rows}, packages=("torch", "peft"))


if __name__ == "__main__":
    main()

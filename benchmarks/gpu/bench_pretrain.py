"""Pretraining step on a CUDA device: cells per second of the 51 M network, one masked pass and the paper's two.

Forward, backward, clipping and optimiser in bfloat16 autocast, half of 1,024 genes unknown; as it is, and with the
blocks compiled. FLOPs are those executed: the last block computes what is asked for, unknown genes see known ones and
themselves, and flash attention's backward computes its scores again. The best published figure is 842 cells/s for one
pass on an H100 (fast-scgpt, 37 % of its peak); it is quoted, not measured here.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from _measured import CONFIG, GENES, batch, matmul_rate, network, seconds
from _report import Figure, report

from scgpt_tl.engine.recipes import Recipe, losses
from scgpt_tl.tokens.corrupt import Minibatch

CELLS, UNKNOWN = 64, 0.5
PASSES = {
    "one masked pass": (Recipe("one masked pass", {"gep": 1.0, "gepc": 1.0}), 1, 1500),
    "gene and cell prompts": (Recipe("two passes", {"gep": 1.0, "gepc": 1.0, "prompt": 1.0}), 2, 850),
}


def step_flops(passes: int) -> float:
    """Executed multiplications and additions of a step, per cell."""
    d, f, n = CONFIG.d_model, CONFIG.d_ff, CONFIG.n_layers
    tokens, unknown = GENES + 1, int(GENES * UNKNOWN)
    known, asked = tokens - unknown, unknown + 1
    linear = (n - 1) * (8 * d * d + 4 * d * f) * tokens  # blocks but the last
    linear += 4 * d * d * tokens + (4 * d * d + 4 * d * f) * asked  # keys and values of all; the rest where asked
    linear += 2 * d * d * tokens + 4 * d * d * unknown  # value encoder; GEP
    attention = 4 * d * known * ((n - 1) * tokens + asked)
    gepc = 4 * d * d * unknown  # in the first pass
    return passes * (3 * linear + 3.5 * attention) + 3 * gepc


def rate(recipe: Recipe, *, compiled: bool) -> tuple[list[float], float]:
    """Seconds of every round, and the peak of memory in GiB."""
    net = network().train()
    if compiled:
        net.backbone.compile_blocks()
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    cells = batch(CELLS, unknown=UNKNOWN)
    minibatch = Minibatch(cells, cells.values, ~cells.known)
    torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            total = losses(net, minibatch, recipe).total
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()

    return seconds(step), torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    """Measure and report."""
    peak, figures = matmul_rate(), []
    details: dict[str, Any] = {"device": torch.cuda.get_device_name(), "cells": CELLS, "matmul_tflops": peak / 1e12}
    for what, (recipe, passes, aim) in PASSES.items():
        for compiled in (False, True):
            name = f"{what}, compiled" if compiled else what
            times, memory = rate(recipe, compiled=compiled)
            cells = CELLS / median(times)
            share = cells * step_flops(passes) / peak
            figures += [
                Figure(f"{name}, 1,024 genes, cells/s", cells, aim=aim),
                Figure(f"{name}: share of the measured bf16 matmul rate", share),
            ]
            details[name] = {"seconds": times, "peak_gib": memory, "gflop_per_cell": step_flops(passes) / 1e9}
    report("gpu_pretrain", figures, details=details, packages=("torch", "flash_attn"))


if __name__ == "__main__":
    main()

"""Pretraining step on a CUDA device: cells per second of the 51 M network, one masked pass and the paper's two.

The best published figure is 842 cells/s for one pass on an H100 (fast-scgpt); it is quoted, not measured here.
"""

from __future__ import annotations

from statistics import median

import torch
from _measured import batch, network, seconds
from _report import Figure, report

from scgpt_tl.engine.recipes import Recipe, losses

CELLS = 64
ONE = Recipe("one masked pass", {"gep": 1.0, "gepc": 1.0})
TWO = Recipe("gene prompts, then cell prompts", {"gep": 1.0, "gepc": 1.0, "prompt": 1.0})


def rate(recipe: Recipe) -> tuple[float, list[float]]:
    """Cells per second of forward, backward and optimiser, and the rounds."""
    net = network().train()
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    cells = batch(CELLS, unknown=0.5)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            total = losses(net, cells, recipe).total
        optimiser.zero_grad()
        total.backward()
        optimiser.step()

    times = seconds(step)
    return CELLS / median(times), times


def main() -> None:
    """Measure and report."""
    one, two = rate(ONE), rate(TWO)
    report(
        "gpu_pretrain",
        [
            Figure("one masked pass, 1,024 genes, cells/s", ours=one[0], aim=1500),
            Figure("gene and cell prompts, 1,024 genes, cells/s", ours=two[0], aim=850),
        ],
        details={"device": torch.cuda.get_device_name(), "cells": CELLS, "one": one[1], "two": two[1]},
        packages=("torch", "flash_attn"),
    )


if __name__ == "__main__":
    main()

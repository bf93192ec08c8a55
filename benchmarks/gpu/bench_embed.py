"""Embedding on a CUDA device: cells per second of the 51 M network, and its share of the measured bf16 matmul rate."""

from __future__ import annotations

from statistics import median

import torch
from _measured import batch, encode_flops, matmul_rate, network, seconds
from _report import Figure, report

CELLS = 256


def main() -> None:
    """Measure and report."""
    backbone = network().eval().backbone
    cells = batch(CELLS)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        tables = backbone.tables()
        times = seconds(lambda: backbone.encode(cells, cell_only=True, tables=tables))
    took, peak = median(times), matmul_rate()
    achieved = encode_flops(CELLS, cell_only=True) / took
    report(
        "gpu_embed",
        [
            Figure("embedding, 1,024 genes, cells/s", ours=CELLS / took),
            Figure("share of the measured bf16 matmul rate", ours=achieved / peak, aim=0.35),
        ],
        details={"device": torch.cuda.get_device_name(), "matmul_tflops": peak / 1e12, "seconds": times},
        packages=("torch", "flash_attn"),
    )


if __name__ == "__main__":
    main()

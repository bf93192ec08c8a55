"""What the GPU benchmarks share: the 51 M network, batches of 1,024 genes, the measured matmul rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.tokens.batch import CellBatch, cumulative

GENES, N_TOKENS = 1024, 60_697
CONFIG = ModelConfig(n_tokens=N_TOKENS, pad_id=60_694, cls_id=60_695, flag_unknown=True, dropout=0.0)


def network() -> Network:
    """12 x 512 x 8 with seeded random weights."""
    torch.manual_seed(0)
    return Network(CONFIG).cuda()


def batch(cells: int, *, unknown: float = 0.0) -> CellBatch:
    """`cells` cells of `<cls>` and GENES genes, the last share of them unknown."""
    length = GENES + 1
    ids = torch.randint(0, N_TOKENS - 3, (cells, length))
    ids[:, 0] = CONFIG.cls_id
    values = torch.randint(1, 51, (cells, length)).float()
    known = (torch.arange(length) < length - int(GENES * unknown)).repeat(cells)
    made = CellBatch(
        ids.flatten(),
        values.flatten(),
        cumulative(torch.full((cells,), length)),
        known=known if unknown else None,
    )
    return made.to("cuda")


def seconds(work: Callable[[], object], rounds: int = 5) -> list[float]:
    """Time of each round, after two that are not counted."""
    times = []
    for i in range(rounds + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times += [time.perf_counter() - start] if i > 1 else []
    return times


def matmul_rate(size: int = 8192) -> float:
    """bf16 FLOP/s of a square product, the best of 5."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / min(seconds(lambda: a @ a))


def encode_flops(cells: int, *, cell_only: bool) -> float:
    """Executed multiplications and additions of one forward pass over `cells` cells."""
    d, f, n = CONFIG.d_model, CONFIG.d_ff, CONFIG.n_layers
    tokens = GENES + 1
    block = (8 * d * d + 4 * d * f) * tokens + 4 * d * tokens**2
    last = 4 * d * d * tokens + 4 * d * tokens + 4 * d * d + 4 * d * f if cell_only else block
    return cells * ((n - 1) * block + last)

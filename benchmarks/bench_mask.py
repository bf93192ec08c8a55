"""The generative attention mask, forward and backward: the kernel that is chosen beside the plain mask.

    python benchmarks/bench_mask.py [--sizes 512 1024 2048 4096] [--rounds 5] [--device cpu] [--threads 2]

8 heads of 64, cells of equal length, float32 on a CPU and bfloat16 on CUDA. "Plain mask" is torch's own fused attention
handed the (tokens x tokens) mask, ready-made and in its own type, so that nothing but the attention is timed.
"Written out" is softmax(q k' + mask) v in plain tensor operations, up to 2,048 tokens. First with half of the tokens
unknown, then with 256 known ones, where the share should fall as 256 / tokens does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from _report import Figure, Timing, measure, report
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from scgpt_tl.core.attention import Layout, attend, choose, visible

HEADS, WIDTH = 8, 64
TOKENS = {"cpu": 4096, "cuda": 65_536}  # in all cells together
SIZES = (512, 1024, 2048, 4096)
WRITTEN_OUT_UP_TO = 2048  # beyond it the weights want more memory than they are worth here
KNOWN, AIM = 256, 0.6


def problem(size: int, n_known: int, device: str) -> tuple[list[torch.Tensor], Layout, torch.Tensor]:
    """q, k, v of cells of `size` tokens, the first `n_known` of each known; and the mask to be added to the scores."""
    torch.manual_seed(0)
    cells = max(1, TOKENS[device] // size)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    leaves = [torch.randn(cells * size, HEADS, WIDTH, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
    offsets = torch.arange(cells + 1, device=device) * size
    layout = Layout(offsets, offsets, torch.full((cells,), n_known, device=device))
    mask = torch.zeros(size, size, device=device, dtype=dtype).masked_fill_(~next(visible(layout)), -torch.inf)
    return leaves, layout, mask


def times(size: int, n_known: int, options: argparse.Namespace) -> dict[str, Timing]:
    """Seconds of each kernel, in interleaved rounds."""
    leaves, layout, mask = problem(size, n_known, options.device)
    weights = torch.randn_like(leaves[0])

    def plain_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        padded = (x.view(-1, size, HEADS, WIDTH).transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(*padded, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    def timed(attention: Callable[..., torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            out = attention(*leaves)
            torch.autograd.grad(out, leaves, weights)
            if options.device == "cuda":
                torch.cuda.synchronize()

        return work

    chosen = choose(leaves[0], layout)
    sides = {"ours": timed(lambda *x: attend(*x, layout, kernel=chosen)), "plain mask": timed(plain_mask)}
    if size <= WRITTEN_OUT_UP_TO:
        sides["written out"] = timed(lambda *x: attend(*x, layout, kernel="plain"))
    return measure(sides, rounds=options.rounds)


def lines(size: int, half: Mapping[str, Timing], few: Mapping[str, Timing]) -> list[Figure]:
    """One size's figures."""

    def share(found: Mapping[str, Timing]) -> float:
        return found["ours"].median / found["plain mask"].median

    what = f"{size} tokens"
    found = [Figure(f"{what}, half unknown: ours / plain mask", share(half), aim=AIM, less_is_better=True)]
    if "written out" in half:
        found.append(
            Figure(f"{what}, half unknown: ours / written out", half["ours"].median / half["written out"].median)
        )
    found.append(Figure(f"{what}, {KNOWN} known: ours / plain mask", share(few)))
    found.append(Figure(f"{what}, {KNOWN} known: {KNOWN} / tokens", KNOWN / size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=list(TOKENS), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures, every_round = [], {}
    for size in options.sizes:
        found = {"half": times(size, size // 2, options), "few": times(size, KNOWN, options)}
        figures += lines(size, **found)
        every_round[size] = {what: {name: t.seconds for name, t in some.items()} for what, some in found.items()}
    leaves, layout, mask = problem(options.sizes[0], options.sizes[0] // 2, options.device)
    details: dict[str, Any] = {
        "tokens": TOKENS[options.device], "heads": HEADS, "width": WIDTH, "dtype": str(mask.dtype),
        "device": options.device, "threads": options.threads, "rounds": options.rounds,
        "kernel": choose(leaves[0], layout), "plain mask": "torch scaled_dot_product_attention with a dense mask",
        "every_round": every_round,
    }  # fmt: skip
    report("mask" if options.device == "cpu" else "gpu_mask", figures, details=details, packages=("torch",))


if __name__ == "__main__":
    main()

"""Parameters that learn and peak memory: LoRA, frozen embeddings and recomputed blocks beside full fine-tuning.

    python benchmarks/bench_lora.py [--cells 4] [--tokens 1200] [--layers 12] [--rank 8]

The network of the published models (12 layers of 512, 60,697 tokens) in float32 on the CPU. Each way of training runs
in a process of its own: two steps of AdamW on the GEP loss of `cells` x `tokens`, half of them hidden. The second step
has the optimiser's state beside the activations. Peak memory is the largest resident memory above what the process held
before the network was built; the median of the rounds is kept. Every way is measured twice: on the system's heap as it
is, and with MALLOC_MMAP_THRESHOLD_ at 1 MB, where glibc hands every large block back when it is freed. Small tensors
that stay (an adapter's, rank x tokens) otherwise keep the holes of large ones that are gone from being used again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from _report import Figure, peak_rss, report

VOCABULARY = 60_697
SIDES: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen embeddings": {"freeze": ("embeddings",)},
    "recomputed blocks": {"checkpointing": True},
    "LoRA": {"lora": True},
    "LoRA, recomputed blocks": {"lora": True, "checkpointing": True},
}
NAMES = (
    ("learned", "parameters that learn", 1),
    ("peak", "peak memory, MB", 1e6),
    ("live", "peak memory with large blocks handed back, MB", 1e6),
    ("seconds", "seconds a step", 1),
)


def resident() -> int:
    """Memory of this process now, bytes."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * 4096


def cells(n_cells: int, n_tokens: int) -> Any:
    """Random genes and bins; the second half of each cell's tokens is hidden."""
    import torch

    from scgpt_tl.tokens.batch import CellBatch, cumulative

    rng = torch.Generator().manual_seed(0)
    total = n_cells * n_tokens
    offsets = cumulative(torch.full((n_cells,), n_tokens))
    ids, values = torch.randint(3, VOCABULARY, (total,), generator=rng), torch.randint(1, 51, (total,), generator=rng)
    ids[offsets[:-1]] = 1
    batch = CellBatch(ids, values.float(), offsets)
    return replace(batch, known=torch.arange(total) % n_tokens < n_tokens // 2)


def child(side: str, n_cells: int, n_tokens: int, n_layers: int, rank: int) -> dict[str, float]:
    """In a process of its own: two steps; what learns, memory, seconds."""
    import torch

    from scgpt_tl import objectives
    from scgpt_tl._compat import need
    from scgpt_tl.core.config import ModelConfig
    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine import tune

    options, batch = SIDES[side], cells(n_cells, n_tokens)
    if options.get("lora"):
        need("peft", extra="lora")  # its own memory is not the network's
    before = resident()
    network = Network(ModelConfig(VOCABULARY, pad_id=0, cls_id=1, n_layers=n_layers, flag_unknown=True))
    assert hasattr(network.backbone, "recompute"), "this network cannot compute its blocks again"
    network.backbone.recompute = options.get("checkpointing", False)
    tune.freeze(network, options.get("freeze", ()))
    with tune.adapters(network, rank) if options.get("lora") else nullcontext():
        start = time.perf_counter()
        learned = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            encoded = network.backbone.encode(batch)
            guess = network.heads.gene_expression(encoded, batch).value
            loss = objectives.masked_mse(guess, batch.values, ~batch.known)
            loss.backward()
            optimizer.step()
        peak, seconds = peak_rss() - before, (time.perf_counter() - start) / 2
        assert bool(torch.isfinite(loss))
    total = sum(p.numel() for p in network.parameters())
    return {"learned": sum(p.numel() for p in learned), "parameters": total, "peak": peak, "seconds": seconds}


def measure(side: str, args: argparse.Namespace, *, handed_back: bool) -> dict[str, float]:
    """Start the child, read its answer."""
    sizes = [str(x) for x in (args.cells, args.tokens, args.layers, args.rank)]
    command = [sys.executable, __file__, "--child", side, *sizes]
    env = os.environ | ({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if handed_back else {})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)  # noqa: S603 (this very file)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side:24} {'handed back' if handed_back else 'heap as it is':14} "
        f"{found['learned']:>11,} of {found['parameters']:,} learn, "
        f"peak {found['peak'] / 1e6:,.0f} MB, {found['seconds']:.1f} s a step",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, *sizes = args.child
        print(json.dumps(child(side, *map(int, sizes))))
        return
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side, found in rounds.items():
            heap = measure(side, args, handed_back=False)
            found.append(heap | {"live": measure(side, args, handed_back=True)["peak"]})
    middle = {
        side: {name: sorted(one[name] for one in found)[len(found) // 2] for name in found[0]}
        for side, found in rounds.items()
    }
    full = middle.pop("full")
    figures = []
    for side, found in middle.items():
        for name, what, unit in NAMES:
            figures.append(
                Figure(f"{what}, {side} beside full", found[name] / unit, full[name] / unit, less_is_better=True)
            )
    sizes = {name: vars(args)[name] for name in ("cells", "tokens", "layers", "rank", "rounds")}
    report(
        "lora", figures, details={**sizes, "steps": 2, "sides": {"full": full, **middle}}, packages=("torch", "peft")
    )


if __name__ == "__main__":
    main()

"""A training step on a CPU: ours beside the published package's network and objectives.

    python benchmarks/bench_train_step.py --peer-python PATH     (or SCGPT_PEER_PYTHON; see peers/setup.sh)

12 x 512 x 8, 60,697 tokens, 4 cells of `<cls>` and 1,200 genes each, 40 % of the values masked; GEP, GEPC and 10 x ECS;
forward, backward, clipping at 1 and the optimiser (Adam as in the published fine-tuning; AdamW, fused, as in our
engine). The same weights and inputs go to both sides, and before anything is timed their losses and gradients are
compared without dropout. Cells are equally long, so that the published side pads nothing.

Three pairs, each side a process of its own, asked in turn:

- dropout 0.2 as each package has it: the published layers drop attention weights too, ours do not unless asked;
- the very same with attention dropout on our side as well, by the plain kernel (one of our processes more);
- no dropout on either side.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _report import Figure, peak_rss, report, versions
from _sides import Side, peer_python, serve

CELLS, GENES, TOKENS, RATIO = 4, 1200, 60_697, 0.4
PAD, CLS, MASKED = 60_694, 60_695, -1.0
D, D_FF, HEADS, LAYERS, DROPOUT = 512, 512, 8, 12, 0.2
ECS_WEIGHT, ECS_THRESHOLD, RATE = 10.0, 0.8, 1e-4
GIB = 2**30


def write_inputs(folder: Path) -> None:
    """batch.npz: ids, target, hidden, all (CELLS, GENES + 1), `<cls>` first. Every cell shows the same genes."""
    rng = np.random.default_rng(0)
    genes = rng.choice(PAD, GENES, replace=False)
    ids = np.concatenate([np.full((CELLS, 1), CLS), np.tile(genes, (CELLS, 1))], 1)
    target = np.zeros(ids.shape, np.float32)
    target[:, 1:] = rng.integers(1, 51, (CELLS, GENES)) * (rng.random((CELLS, GENES)) < 0.4)
    hidden = np.zeros(ids.shape, bool)
    for row in hidden:
        row[1 + rng.choice(GENES, int(GENES * RATIO), replace=False)] = True
    np.savez(folder / "batch.npz", ids=ids, target=target, hidden=hidden)


class Learner:
    """One side: a network, its loss, its optimiser, taken through steps."""

    def __init__(self, network: Any, loss: Callable[[], Any], optimiser: Any):
        self.network, self.loss, self.optimiser = network, loss, optimiser

    def step(self) -> dict[str, float]:
        """Seconds of forward and backward, and of the whole; and of processor time, on all cores together."""
        import torch

        start, cpu = time.perf_counter(), time.process_time()
        self.loss().backward()
        computed = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return {
            "computed": computed - start,
            "step": time.perf_counter() - start,
            "processor": time.process_time() - cpu,
        }

    def without_dropout(self) -> dict[str, float]:
        """Loss and norm of its gradient."""
        import torch

        loss = self.network.eval() and self.loss()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        self.optimiser.zero_grad()
        self.network.train()
        return {"loss": float(loss.detach()), "gradient": float(norm)}


def served(make: Callable[[Path, int], Learner]) -> dict[str, Callable[..., Mapping[str, Any]]]:
    """What a side answers to."""
    import torch

    ready: dict[str, Learner] = {}

    def prepare(folder: str, threads: int, layers: int) -> dict[str, float]:
        torch.set_num_threads(threads)
        ready["learner"] = make(Path(folder), layers)
        return ready["learner"].without_dropout()

    return {
        "prepare": prepare, "step": lambda: ready["learner"].step(),
        "peak": lambda: {"bytes": peak_rss()}, "versions": lambda: versions("scgpt", "torch"),
    }  # fmt: skip


def ours(*, dropout: float, attn_dropout: float = 0.0) -> dict[str, Callable[..., Mapping[str, Any]]]:
    def make(folder: Path, _: int) -> Learner:
        import torch

        from scgpt_tl import objectives
        from scgpt_tl.core.scgpt import Network
        from scgpt_tl.models._names import infer_config, to_ours
        from scgpt_tl.tokens.batch import CellBatch

        state = torch.load(folder / "weights.pt", weights_only=True)
        state = {to_ours(name): x for name, x in state.items()}
        options = {"n_heads": HEADS, "pad_id": PAD, "cls_id": CLS, "dropout": dropout, "attn_dropout": attn_dropout}
        network = Network(infer_config(state, **options))
        network.load_state_dict(state)
        ids, target, hidden = (torch.from_numpy(x) for x in np.load(folder / "batch.npz").values())
        cells = CellBatch.from_padded(ids, target.masked_fill(hidden, MASKED), pad_id=PAD)
        at = hidden.flatten().nonzero().squeeze(1)
        asked = target.flatten()[at]

        def loss() -> torch.Tensor:
            backbone, heads = network.backbone, network.heads
            encoded = backbone.encode(cells, at=at)
            gep = heads.gene_expression(encoded, cells, at=at).value
            gepc = heads.cell_expression(encoded, cells, backbone.genes(cells.gene_ids[at]), at=at).value
            similarity = objectives.elastic_similarity(encoded.cell, ECS_THRESHOLD)
            return objectives.masked_mse(gep, asked) + objectives.masked_mse(gepc, asked) + ECS_WEIGHT * similarity

        return Learner(network.train(), loss, torch.optim.AdamW(network.parameters(), lr=RATE, fused=True))

    return served(make)


def published(*, dropout: float) -> dict[str, Callable[..., Mapping[str, Any]]]:
    def make(folder: Path, layers: int) -> Learner:
        import torch
        from scgpt.loss import masked_mse_loss
        from scgpt.model import TransformerModel

        torch.manual_seed(0)
        network = TransformerModel(
            TOKENS, D, HEADS, D_FF, layers,
            vocab={"<pad>": PAD, "<cls>": CLS}, dropout=dropout, pad_token="<pad>",  # noqa: S106 (a token of genes)
            pad_value=-2, do_mvc=True, ecs_threshold=ECS_THRESHOLD, input_emb_style="continuous", n_input_bins=51,
            use_fast_transformer=False,
        )  # fmt: skip
        torch.save(network.state_dict(), folder / "weights.pt")
        ids, target, hidden = (torch.from_numpy(x) for x in np.load(folder / "batch.npz").values())
        shown, padding = target.masked_fill(hidden, MASKED), ids.eq(PAD)

        def loss() -> torch.Tensor:
            out = network(ids, shown, src_key_padding_mask=padding, MVC=True, ECS=True)
            gep, gepc = (masked_mse_loss(out[name], target, hidden) for name in ("mlm_output", "mvc_output"))
            return gep + gepc + ECS_WEIGHT * out["loss_ecs"]

        return Learner(network.train(), loss, torch.optim.Adam(network.parameters(), lr=RATE))

    return served(make)


SIDES: dict[str, Callable[[], dict[str, Callable[..., Mapping[str, Any]]]]] = {
    "published": lambda: published(dropout=DROPOUT),
    "ours": lambda: ours(dropout=DROPOUT),
    "ours, attention too": lambda: ours(dropout=DROPOUT, attn_dropout=DROPOUT),
    "published, no dropout": lambda: published(dropout=0.0),
    "ours, no dropout": lambda: ours(dropout=0.0),
}
#: Processes that live at the same time, the published one first: it writes the weights.
GROUPS = {
    "dropout": ("published", "ours", "ours, attention too"),
    "no dropout": ("published, no dropout", "ours, no dropout"),
}


def take_turns(names: tuple[str, ...], options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Seconds of every round of every side of a group, peaks of memory, versions."""
    peer, sides = peer_python(options.peer_python), {}
    for name in names:
        python = {"python": peer} if name.startswith("published") else {}
        sides[name] = Side(name, __file__, threads=options.threads, **python)
    question = {"do": "prepare", "folder": folder, "threads": options.threads, "layers": options.layers}
    starts = {name: side.ask(**question) for name, side in sides.items()}
    for what in ("loss", "gradient"):
        values = [start[what] for start in starts.values()]
        if not all(math.isclose(value, values[0], rel_tol=1e-3) for value in values):
            sys.exit(f"the sides do not compute the same: {starts}")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(1 + options.rounds):  # one round that is not counted
        for name, side in sides.items():
            answer = side.ask(do="step")
            rounds[name] += [answer] if turn else []
    found = {
        name: {
            "without dropout": starts[name],
            "rounds": rounds[name],
            "peak": side.ask(do="peak")["bytes"] / GIB,
            "versions": side.ask(do="versions"),
        }
        for name, side in sides.items()
    }
    for side in sides.values():
        side.__exit__()
    return found


def figures(found: Mapping[str, Any]) -> list[Figure]:
    def seconds(name: str, what: str) -> float:
        return statistics.median(answer[what] for answer in found[name]["rounds"])

    pairs = [
        ("dropout as each has it", "ours", "published", (3.0, 2.0)),
        ("dropout in attention too", "ours, attention too", "published", (None, None)),
        ("no dropout", "ours, no dropout", "published, no dropout", (None, None)),
    ]
    lines = []
    for words, mine, theirs, (faster, smaller) in pairs:
        if mine not in found:
            continue
        lines += [
            Figure(f"{words}: s per step", seconds(mine, "step"), seconds(theirs, "step"), faster, less_is_better=True),
            Figure(
                f"{words}: s forward and backward", seconds(mine, "computed"), seconds(theirs, "computed"), None, True
            ),
            Figure(
                f"{words}: s of processor time", seconds(mine, "processor"), seconds(theirs, "processor"), None, True
            ),
            Figure(f"{words}: peak GiB", found[mine]["peak"], found[theirs]["peak"], smaller, less_is_better=True),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer, to try it out")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(SIDES[options.side]())
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for group in options.groups:
            found |= take_turns(GROUPS[group], options, folder)
    details = {
        "cells": CELLS, "tokens_per_cell": GENES + 1, "vocabulary": TOKENS, "mask_ratio": RATIO,
        "network": f"{options.layers} x {D} x {HEADS}, feed-forward {D_FF}", "dropout": DROPOUT,
        "ecs_weight": ECS_WEIGHT, "threads": options.threads, "rounds": options.rounds, "sides": found,
    }  # fmt: skip
    report("train_step", figures(found), details=details)


if __name__ == "__main__":
    main()

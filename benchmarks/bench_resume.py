"""Killed at a random moment and called again: the final weights beside those of an unbroken run, bit for bit.

    python benchmarks/bench_resume.py [--kills 20]

Each round starts a small pretraining in a process of its own (dropout, both passes, contrast), kills it with SIGKILL
after a random time, calls it again until it ends, and compares all weights with those of the unbroken run.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _report import Figure, report

EPOCHS = 6


def child(out: Path) -> None:
    """The run: synthetic cells, two studies."""
    import torch
    from scipy import sparse

    import scgpt_tl
    from scgpt_tl.engine import pretrain

    torch.set_num_threads(1)
    pretrain.SIZES["nano"]["dropout"] = 0.1
    import anndata as ad
    import pandas as pd

    studies: dict[str, Any] = {}
    for name, n in (("a", 400), ("b", 250)):
        rng = np.random.default_rng(n)
        counts = rng.poisson(rng.gamma(0.3, 2.0, (n, 300))).astype(np.float32)
        genes = pd.DataFrame(index=[f"G{i}" for i in range(300)])
        studies[name] = ad.AnnData(sparse.csr_matrix(counts), pd.DataFrame(index=np.arange(n).astype(str)), genes)
    train = scgpt_tl.TrainConfig(epochs=EPOCHS, cells=32, max_length=80, save_every=3, device="cpu", progress=False)
    print("ready", flush=True)
    scgpt_tl.tl.scgpt_pretrain(studies, out=out, size="nano", train=train)


def start(out: Path) -> subprocess.Popen[str]:
    """Start a run; return when it is about to train."""
    command = [sys.executable, __file__, "--child", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 (this very file)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        unbroken = start(folder / "unbroken")
        began = time.perf_counter()
        assert unbroken.wait() == 0
        whole = time.perf_counter() - began
        expected = (folder / "unbroken" / "model.safetensors").read_bytes()
        draws, equal, steps = np.random.default_rng(), 0, []
        for number in range(args.kills):
            out = folder / "broken"
            process = start(out)
            moment = float(draws.uniform(0, 0.9 * whole))
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            killed = process.wait() == -signal.SIGKILL
            left = sorted(path.name for path in (folder / "broken.training").glob("*"))
            assert start(out).wait() == 0
            same = (out / "model.safetensors").read_bytes() == expected
            equal += same and killed
            steps.append({"seconds": moment, "killed": killed, "left": left, "equal": same})
            print(
                f"{number + 1:2}: killed after {moment:.1f} s ({', '.join(left) or 'nothing saved yet'}): {same}",
                flush=True,
            )
            shutil.rmtree(out)
        report(
            "resume",
            [Figure(f"bit-equal results of {args.kills} runs killed before their end", ours=equal, aim=args.kills)],
            details={"rounds": steps, "unbroken_seconds": whole},
            packages=("torch", "lightning"),
        )


if __name__ == "__main__":
    main()

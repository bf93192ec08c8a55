"""What it costs to begin: `import scgpt_tl` beside an empty Python, and, with `--demo`, `make demo` once installed.

python benchmarks/bench_start.py [--demo]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from _report import Figure, measure, report

ROOT = Path(__file__).resolve().parents[1]
AIM = 0.3  # seconds, of the import alone


def run(code: str) -> str:
    """In a fresh interpreter that finds the same package."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code]  # ours
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout  # noqa: S603


def loaded() -> list[str]:
    """Modules that the import brings in."""
    code = "import sys; before = set(sys.modules); import scgpt_tl; print(*sorted(set(sys.modules) - before))"
    return run(code).split()


def demo() -> float:
    """Seconds of `make demo`, installation apart: an unmeasured call makes the environment."""
    make = shutil.which("make") or "make"
    subprocess.run([make, ".venv/.has-package"], cwd=ROOT, check=True)  # noqa: S603
    start = time.perf_counter()
    subprocess.run([make, "demo"], cwd=ROOT, check=True)  # noqa: S603
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", action="store_true", help="also time `make demo`; installs into .venv first")
    args = parser.parse_args()
    times = measure({"import": lambda: run("import scgpt_tl"), "empty": lambda: run("pass")})
    modules = loaded()
    foreign = sorted({name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"scgpt_tl"})
    whole, empty = times["import"].median, times["empty"].median
    figures = [
        Figure("seconds of `python -c 'import scgpt_tl'`", ours=whole),
        Figure("seconds of `python -c pass`", ours=empty),
        Figure("seconds of the import alone", ours=whole - empty, aim=AIM, less_is_better=True),
        Figure("packages loaded beside the standard library", ours=len(foreign), aim=0, less_is_better=True),
    ]
    if args.demo:
        figures.append(Figure("seconds of `make demo`, installation apart", ours=demo()))
    report("start", figures, details={"rounds": 5, "modules": modules, "foreign": foreign})


if __name__ == "__main__":
    main()

"""What every benchmark shares: the machine, the versions, medians of interleaved rounds, and one JSON file a figure.

    from _report import Figure, measure, report

    times = measure({"ours": lambda: embed(data), "published": lambda: embed_data(data)})
    report(
        "embedding_cpu",
        [Figure("cells per second", ours=n / times["ours"].median, theirs=n / times["published"].median, aim=4)],
        details={"cells": n},
        packages=("torch", "numba"),
    )

Needs the standard library alone, so that it runs wherever the thing measured does.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("SCGPT_TL_BENCH_OUT") or Path(__file__).parent / "results")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Timing:
    """Seconds of every round of one side, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Figure:
    """One line of a report: both sides of a comparison, or one number where there is no other side.

    `aim` is the ratio promised (ours / theirs where more is better, theirs / ours where less is), or, without another
    side, the value itself.
    """

    what: str
    ours: float
    theirs: float | None = None
    aim: float | None = None
    less_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None without another side, or where what is divided by is 0."""
        if self.theirs is None or (self.ours if self.less_is_better else self.theirs) == 0:
            return None
        return self.theirs / self.ours if self.less_is_better else self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None where none was set."""
        if self.aim is None:
            return None
        if self.ratio is not None:
            return self.ratio >= self.aim
        return self.ours <= self.aim if self.less_is_better else self.ours >= self.aim


def measure(sides: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm: int = 1) -> dict[str, Timing]:
    """Time every side in turn, round by round, so that a slow minute of the machine falls on all of them.

    `warm` unmeasured rounds come first: compile time is not part of a figure.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm + rounds):
        for name, run in sides.items():
            gc.collect()
            start = time.perf_counter()
            run()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def report(
    name: str, figures: Sequence[Figure], *, details: Mapping[str, Any] | None = None, packages: Sequence[str] = ()
) -> Path:
    """Print the figures and write them, with the machine and the versions, to `results/<name>.json`.

    `details` says what was measured (cells, genes, seeds, rounds): whatever another needs to repeat it.
    """
    document = {
        "name": name,
        "figures": [{**asdict(figure), "ratio": figure.ratio, "met": figure.met} for figure in figures],
        "details": dict(details or {}),
        "machine": machine(),
        "versions": versions(*packages),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    width = max([len(figure.what) for figure in figures], default=4)
    print(f"{name}  ({document['machine']['cpu']}, {document['machine']['cores']} cores)")
    print(f"  {'':{width}}  {'ours':>12}  {'theirs':>12}  {'ratio':>8}  {'aim':>8}")
    for figure in figures:
        cells = [
            _number(value, n)
            for value, n in zip((figure.ours, figure.theirs, figure.ratio, figure.aim), (12, 12, 8, 8), strict=True)
        ]
        print(f"  {figure.what:{width}}  {'  '.join(cells)}  {'below the aim' if figure.met is False else ''}".rstrip())
    return path


def machine() -> dict[str, Any]:
    """Processor, memory, system and accelerator; nothing that names one machine or a place on it."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
        if hasattr(os, "sysconf")
        else None,
        "system": _system(),
        "gpu": _gpu(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
    }


def versions(*packages: str) -> dict[str, str]:
    """Python's version, ours, and those of the packages named; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for package in ("scgpt_tl", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = getattr(sys.modules.get(package), "__version__", "absent")
    return found


def peak_rss() -> int:
    """Largest resident memory of this process so far, bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _number(value: float | None, width: int) -> str:
    text = "-" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text:>{width}}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.mac_ver()[0]}".strip()


def _gpu() -> str | None:
    torch = sys.modules.get("torch")  # not loaded for this alone: a benchmark of binning has no business with it
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None

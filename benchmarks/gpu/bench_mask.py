"""The generative mask on a CUDA device: `../bench_mask.py` there, in bfloat16."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1]

if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER))
    sys.argv[1:1] = ["--device", "cuda"]
    runpy.run_path(str(FOLDER / "bench_mask.py"), run_name="__main__")

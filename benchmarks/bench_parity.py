"""How far the published package's own numbers are: the largest difference in each test against the golden files.

    python benchmarks/bench_parity.py

Runs tests/core/test_golden.py and the end-to-end test of tl.scgpt_embed, and records every comparison that they make
(atol 1e-5 + rtol 1e-5, float32) instead of a pass alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _report import Figure, report

TESTS = Path(__file__).parents[1] / "tests"


class Recorder:
    """Notes the largest absolute difference that each test met."""

    def __init__(self) -> None:
        self.differences: dict[str, float] = {}
        self.failed: list[str] = []
        self._compare = np.testing.assert_allclose

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Listen to numpy's comparison during one test."""

        def compare(found: Any, expected: Any, *args: Any, **kwargs: Any) -> None:
            difference = float(np.max(np.abs(np.asarray(found) - np.asarray(expected)), initial=0))
            name = item.name.replace(f"{TESTS}/", "").removeprefix("test_")
            self.differences[name] = max(difference, self.differences.get(name, 0.0))
            self._compare(found, expected, *args, **kwargs)

        np.testing.assert_allclose = compare

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        if report.failed:
            self.failed.append(report.nodeid)


def main() -> None:
    """Run and report."""
    recorder = Recorder()
    files = [
        str(TESTS / "core" / "test_golden.py"),
        f"{TESTS / 'tl' / 'test_embed.py'}::test_embeddings_are_the_published_ones",
    ]
    pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[recorder])
    np.testing.assert_allclose = recorder._compare  # noqa: SLF001
    if recorder.failed:
        msg = f"not equal: {', '.join(recorder.failed)}"
        raise SystemExit(msg)
    figures = [
        Figure(name, ours=difference, less_is_better=True) for name, difference in sorted(recorder.differences.items())
    ]
    report("parity", figures, details={"bound": "1e-5 + 1e-5 of the value", "unit": "largest absolute difference"})


if __name__ == "__main__":
    main()

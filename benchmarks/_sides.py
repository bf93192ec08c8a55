"""Two sides of a comparison that cannot share an interpreter: each a process of its own, asked in turn.

    with Side("published", script, python=peer_python()) as theirs:      the driver
        theirs.ask(do="bin", kind="counts")["seconds"]

    serve({"bin": lambda kind: {"seconds": ...}})                         the same script, started with --side NAME

Questions and answers are lines of JSON. Needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PEER = "SCGPT_PEER_PYTHON"
#: Every library that counts threads by a variable of its own.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def peer_python(given: str | None = None) -> str:
    """Python of the environment that benchmarks/peers/setup.sh makes."""
    python = given or os.environ.get(PEER)
    if not python:
        sys.exit(f"no Python for the published package: sh benchmarks/peers/setup.sh DIR, then --peer-python or {PEER}")
    return python


class Side:
    """One side, alive in its own process until the block ends."""

    def __init__(self, name: str, script: str, *, python: str = sys.executable, threads: int = 1) -> None:
        self.name = name
        env = os.environ | {variable: str(threads) for variable in _THREADS}
        source = Path(__file__).parents[1] / "src"
        if python == sys.executable:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), env.get("PYTHONPATH")]))
        else:
            env.pop("PYTHONPATH", None)  # the other environment is measured as its packages are
        self._process = subprocess.Popen(  # noqa: S603 (this very script)
            [python, script, "--side", name], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} stopped at {question}; what it said is above")
        return json.loads(answer)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(handlers: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answer questions until there are no more. Whatever is printed meanwhile goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        answer = handlers[question.pop("do")](**question)
        answers.write(json.dumps(dict(answer)) + "\n")
        answers.flush()

"""Run the tutorials and put their results into them, as they are committed.

    python tutorials/execute.py [annotate.ipynb ...]

Each runs from top to bottom in a fresh kernel and in a folder that is gone afterwards, with the data that SCGPT_TL_DATA
names, and is written when all of it has run. Progress bars are left out; warnings and everything else stay.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
_BAR = re.compile(r"\d+%\|.*?\| *[\d.]+\w?/[\d.]+\w? \[")


def execute(path: Path) -> float:
    """Run one notebook in place; seconds that it took."""
    book = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="scgpt_tl_") as folder:
        NotebookClient(book, timeout=None, resources={"metadata": {"path": folder}}).execute()
    seconds = time.perf_counter() - start
    for number, cell in enumerate(book.cells):
        cell.id, cell.metadata = f"cell-{number:02}", nbformat.from_dict({})  # a new run changes results alone
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    book.metadata = nbformat.from_dict({"kernelspec": book.metadata["kernelspec"], "language_info": {"name": "python"}})
    nbformat.write(book, path)
    return seconds


def _tidy(outputs: list[Any]) -> list[Any]:
    """Without progress bars, and streams that were cut into pieces joined."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.get("name") == "stderr":
            lines = re.split(r"[\r\n]+", output.text)
            output.text = "".join(f"{line}\n" for line in lines if line.strip() and not _BAR.search(line))
    return [output for output in kept if output.get("text") != ""]


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's wish for widgets, with a path of this machine
    for notebook in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        print(f"{notebook.name}: {execute(notebook):.0f} s", flush=True)

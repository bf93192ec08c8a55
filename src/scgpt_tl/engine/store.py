"""Embeddings on disk: a zarr array that a run which was cut off goes on filling."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr

from scgpt_tl._files import named_folder
from scgpt_tl.engine.predict import ROWS, Seen

if TYPE_CHECKING:
    import numpy as np

_FORMAT = "scgpt_tl embedding 1"
_PARTS = re.compile(r"zarr\.json|c|zarr\.[0-9a-f]+\.partial")  # of an array; the last: of a write that was killed


def check_store(out: str | Path) -> Path:
    """The path of a store that can be made, gone on with or replaced, asked before long work; `~` is the home folder.

    Only what an earlier run wrote can be replaced, and an empty folder filled: whatever else lies there is the user's.

    Raises
    ------
    ValueError
        It has no name of its own.
    FileExistsError
        It holds something else.
    """
    path = named_folder(out, example="embedding.zarr")
    if not path.exists():
        return path
    names = [part.name for part in path.iterdir()] if path.is_dir() else ["a file"]
    left = [name for name in names if not name.endswith(".partial")]  # alone, of a run killed as it began
    if not all(map(_PARTS.fullmatch, names)) or (left and not _is_ours(path)):
        msg = f"out={str(path)!r} is no embedding of ours: give another path (overwrite=True replaces embeddings alone)"
        raise FileExistsError(msg)
    return path


def _is_ours(path: Path) -> bool:
    """By the mark, read without zarr, which minds what else a store holds."""
    try:
        head = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        return bool(head["attributes"]["format"] == _FORMAT)
    except (OSError, ValueError, LookupError, TypeError):
        return False


@dataclass
class EmbeddingStore:
    """(n_obs, D) float32 in a zarr folder, filled from the first row on, one chunk per block.

    Its attributes say which run it belongs to, how many rows are done and what was met in them; they change after the
    rows are on disk.
    """

    array: Any
    start: int
    """Rows that an earlier run had done."""
    seen: Seen
    """What was met so far; the run adds to it."""

    @classmethod
    def open(cls, path: str | Path, shape: tuple[int, int], run: dict[str, Any], *, overwrite: bool) -> EmbeddingStore:
        """Create, or go on with the same run; `overwrite` starts anew, in place of any run.

        Raises
        ------
        FileExistsError
            `path` holds another run, or, with `overwrite` too, something else.
        ValueError
            It has no name of its own.
        OSError
            It cannot be written.
        """
        path = check_store(path)
        mark = json.loads(json.dumps(run))  # as it reads back
        held = _is_ours(path)
        if held and not overwrite:
            return cls._resume(path, shape, mark)
        options: dict[str, Any] = {"dtype": "float32", "fill_value": float("nan"), "overwrite": held, "zarr_format": 3}
        options["attributes"] = {"format": _FORMAT, "run": mark, "rows_done": 0, "seen": asdict(Seen())}
        array = zarr.create_array(store=path, shape=shape, chunks=(ROWS, shape[1]), **options)
        return cls(array, 0, Seen())

    @classmethod
    def _resume(cls, path: Path, shape: tuple[int, int], mark: dict[str, Any]) -> EmbeddingStore:
        array = zarr.open_array(store=path, mode="r+")
        held = array.attrs.get("run")
        if array.shape != shape or held != mark:
            differ = sorted(k for k in mark if not isinstance(held, dict) or held.get(k) != mark[k])
            msg = (
                f"out={str(path)!r} holds another run (different: {', '.join(differ) or 'shape'}): give another path, "
                "or overwrite=True if it may go"
            )
            raise FileExistsError(msg)
        state: dict[str, Any] = dict(array.attrs)
        return cls(array, int(state["rows_done"]), Seen(**state["seen"]))

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        self.array[self.start + rows.start : self.start + rows.stop] = values
        self.array.attrs.update({"rows_done": self.start + rows.stop, "seen": asdict(self.seen)})

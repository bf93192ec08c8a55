"""What functions that learn and then tell have in common: where the model lies, and what is kept of its training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scgpt_tl.models.model import Model


@contextmanager
def folder_for(save: str | Path | None, name: str) -> Iterator[Path]:
    """Where to learn: the user's folder, or one that is gone in the end."""
    if save is not None:
        yield Path(save).expanduser()
        return
    with TemporaryDirectory(prefix="scgpt_tl_", ignore_cleanup_errors=True) as folder:
        try:
            yield Path(folder) / name
        except (KeyboardInterrupt, SystemExit) as stop:
            msg = "stopped; nothing was kept, since save= names no folder from which the same call could go on"
            raise type(stop)(msg) from stop


def in_memory(model: Model) -> Model:
    """A model whose file may go: what was memory-mapped is in memory."""
    arrays = {name: np.array(x) for name, x in model.arrays.items()}
    return replace(model, network=copy.deepcopy(model.network), arrays=arrays)


def history_columns(model: Model) -> dict[str, Any]:
    """Training history as columns; "train/loss" lies in "train", since h5ad takes no slash in a name."""
    columns: dict[str, Any] = {}
    records = model.provenance.get("history") or []
    for name in dict.fromkeys(name for record in records for name in record):
        values = np.array([record.get(name, np.nan) for record in records])
        group, _, part = name.partition("/")
        if part:
            columns.setdefault(group, {})[part] = values
        else:
            columns[name] = values
    return columns

"""What functions that learn and then tell have in common: where the model lies, and what is kept of its training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.predict import AS_IN_TRAINING, Compute
from scgpt_tl.genes.bundle import FILES
from scgpt_tl.models._folder import check_place

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.models.model import Model


def compute_of(train: TrainConfig | Mapping[str, Any] | None) -> Compute:
    """Where cells are embedded: as training is said to compute."""
    return Compute.like(TrainConfig().changed(train))


def unheard(train: TrainConfig | Mapping[str, Any] | None) -> list[str]:
    """Options that were given, and that a model that has learned does not hear."""
    said = TrainConfig().changed(train)
    changed = (f.name for f in fields(said) if getattr(said, f.name) != f.default)
    given = train if isinstance(train, Mapping) else changed
    return [f"train.{name}" for name in given if name not in AS_IN_TRAINING]


def returned(data: AnnData, model: Model, *, copy: bool, return_model: bool) -> Any:
    """What a function that learns hands back: nothing, the copy, the model, or both."""
    wanted = [x for x, is_wanted in ((data, copy), (model, return_model)) if is_wanted]
    return tuple(wanted) if len(wanted) > 1 else wanted[0] if wanted else None


def check_save(save: str | Path | None, *, overwrite: bool) -> None:
    """Refuse a place for what will be learned that cannot be one; whose model lies there is asked when it is known.

    Raises
    ------
    FileExistsError
        A file, or a folder of other things than a model that this package has written.
    ValueError, NotADirectoryError, PermissionError
        See `check_place`.
    """
    if save is None:
        return
    folder = Path(save).expanduser()
    if folder.is_file():
        msg = f"save={str(save)!r} is a file: give a folder, which is made where it is not there"
        raise FileExistsError(msg)
    whole = all((folder / name).is_file() for name in FILES["native"])
    if folder.is_dir() and any(folder.iterdir()) and not whole:
        mend = "give a new or an empty folder" + ("; overwrite=True replaces a saved model alone" if overwrite else "")
        msg = f"save={str(save)!r} holds files that are no model of scgpt_tl: {mend}"
        raise FileExistsError(msg)
    check_place(folder)


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

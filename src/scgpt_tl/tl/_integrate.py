"""`tl.scgpt_integrate`: batches brought together by fine-tuning, or by a folder that has learned to."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import scgpt_tl
from scgpt_tl._random import as_seed
from scgpt_tl._slots import OWNER, SLOTS, copied, refuse_foreign
from scgpt_tl.engine.integrate import NEW_BATCHES, PRESETS, Integrator, Lesson, check_choice, learn, train_for
from scgpt_tl.engine.predict import ROWS, Compute
from scgpt_tl.engine.study import Source
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._check import LEAST_SHARE
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._batches import Batches, check_several, genes_for, read_batches
from scgpt_tl.tl._embed import _check_input
from scgpt_tl.tl._kin import kin_groups
from scgpt_tl.tl._learned import folder_for, history_columns, in_memory
from scgpt_tl.tl._lost import what_was_lost
from scgpt_tl.tl._zero_shot import digest, made_before, zero_shot

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.models.model import Model

logger = logging.getLogger(__name__)
_MAKER = "tl.scgpt_integrate"
_FEW = 0.8  # share of the genes learned from below which it is said


def scgpt_integrate(  # noqa: PLR0913 (each is a choice of its own; how to train is grouped)
    adata: AnnData,
    *,
    batch_key: str,
    model: str | Path | Model = "pbmc-mini",
    labels_key: str | None = None,
    preset: str = "auto",
    n_genes: int = 1200,
    train: TrainConfig | None = None,
    layer: str | None = None,
    save: str | Path | None = None,
    new_batches: str = "mean",
    key_added: str | None = None,
    return_model: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    rng: int | np.random.Generator = 0,
) -> AnnData | Model | tuple[AnnData, Model] | None:
    """Embed cells of several batches so that batches mix and cell types stay apart (preprint, section 4.5).

    A pretrained `model` is fine-tuned on these cells; no cell type is used. Where `model` is one that an earlier call
    has made (a folder of `save=`, or what `return_model=True` gave), nothing is trained: it embeds the cells as it has
    learned to, those of batches that it knows by their statistics.

    Parameters
    ----------
    adata
        Cells of two or more batches: counts or normalised values, in memory or backed.
    batch_key
        Column of `.obs` with the batches.
    model
        Name, folder or `Model` to learn from; or one that has learned to integrate.
    labels_key
        Column of `.obs` with cell types, to check whether they are as well apart as before; they teach nothing.
    preset
        - "paper": as published. Masked values, from genes and from the cell (GEP, GEPC), with the probability of zero;
          ECS, DAR, statistics of each batch (DSBN); genes that a cell does not express are shown; 15 epochs.
        - "auto": ours, for a CPU. Masked values, and cells that lie together in the zero-shot embedding, across
          batches, must find each other; zeros are dropped.
    n_genes
        Most variable genes that are read, of those that all batches express.
    train
        How to train, in place of the preset's options.
    layer
        Layer to read; None is `.X`.
    save
        Folder for what was learned: `scgpt_integrate(other, batch_key=, model=folder)` embeds with it. Training that
        was cut off goes on when it is called again with the same arguments.
    new_batches
        With a model that has learned: what to do with cells of batches that it does not know. "mean": the mean of the
        known batches' statistics; "adapt": statistics of the new cells themselves, so that they matter to each other;
        "refuse". A model of preset "auto" has no statistics of batches, and embeds all cells alike.
    key_added
        Write under this key, in `.obsm` and `.uns`, instead of the defaults below.
    return_model
        Return the model that has learned (beside the copy, with `copy`).
    overwrite
        Write over slots, or a `save` folder, that hold something else; what is learned is then learned anew.
    copy
        Return a changed copy and leave `adata` alone.
    rng
        Seed of everything that is learned. A saved folder keeps its own.

    Returns
    -------
    None; the copy, the model, or both where they are asked for. Sets, when all is done:

    `.obsm["X_scGPT_integrated"]` : float32 (n_obs, D)
        Cell embeddings of length 1.
    `.obsm["X_scGPT"]` : float32 (n_obs, D)
        The zero-shot embedding of the model before it learned, with `.uns["scgpt"]`; only where nothing is there.
    `.uns["scgpt_integrated"]` : dict
        `params`, `genes` (those read), `batches` (those known to the model), `history`, and `checks` (see Notes).

    Raises
    ------
    ValueError
        Batches that cannot be integrated (one batch, cells without one, measurements), too few genes in common, an
        unknown preset or policy, no such layer, batches not known with "refuse", values that cannot be read, a model of
        another task or one that was changed, a slot that holds something else.
    KeyError
        No such column.
    FileNotFoundError
        No such model.
    FileExistsError
        `save` holds something else.

    Notes
    -----
    `checks` compares with the zero-shot embedding: `overlap`, the mean share of a cell's 15 nearest cells of its own
    batch that it keeps; `mixing_before` and `mixing_after`, how many of all its nearest cells are of other batches (1:
    as many as by chance); with `labels_key` NMI and ASW of either. A warning is logged where `overlap` is below 0.1, or
    NMI or ASW fell by more than 0.02.

    Examples
    --------
    >>> scgpt_tl.tl.scgpt_integrate(adata, batch_key="donor", save="donors")
    >>> scgpt_tl.tl.scgpt_integrate(tomorrow, batch_key="donor", model="donors", new_batches="adapt")
    """
    check_choice("preset", preset, PRESETS)
    check_choice("new_batches", new_batches, NEW_BATCHES)
    key, run = (SLOTS.integrated, SLOTS.integration) if key_added is None else (key_added, key_added)
    asked = _Asked(batch_key, preset, n_genes, train, layer, save, overwrite, as_seed(rng))
    _check_places(adata, key, run, overwrite=overwrite, copy=copy)
    cells = _cells(adata, batch_key, labels_key)
    loaded = load_model(model)
    learned = _has_learned(loaded)
    _check_input(adata, _as_pretrained(loaded), layer, None)
    made = _applied(adata, cells, loaded, asked, new_batches) if learned else _learned(adata, cells, loaded, asked)
    made.checks.update(_checked(made, cells, asked.seed))
    if copy:
        adata = copied(adata)
    _write(adata, made, asked, key, run)
    returned = [x for x, wanted in ((adata, copy), (made.model, return_model)) if wanted]
    return tuple(returned) if len(returned) > 1 else returned[0] if returned else None


@dataclass(frozen=True)
class _Asked:
    """What the caller said."""

    batch_key: str
    preset: str
    n_genes: int
    train: TrainConfig | None
    layer: str | None
    save: str | Path | None
    overwrite: bool
    seed: int


@dataclass(frozen=True)
class _Cells:
    """What `.obs` says of the cells."""

    batches: Batches
    labels: np.ndarray | None
    """(n_obs,) str, None where a cell has none."""


@dataclass(frozen=True)
class _Made:
    """All that will be written."""

    model: Model
    embedding: np.ndarray
    before: np.ndarray | None
    """(n_obs, D) zero-shot; None where it is not known."""
    slots: dict[str, Any] | None
    """`.uns` entry of the zero-shot embedding, where it is new."""
    new: tuple[str, ...]
    """Batches that the model did not learn."""
    policy: str
    checks: dict[str, float]


def _check_places(adata: Any, key: str, run: str, *, overwrite: bool, copy: bool) -> None:
    """Refuse what could not be written at the end, or would write over something else."""
    if not (hasattr(adata, "obsm") and hasattr(adata, "varm") and hasattr(adata, "isbacked")):
        msg = f"adata is {type(adata).__name__}; AnnData is expected (of a MuData, one modality: mdata['rna'])"
        raise TypeError(msg)
    refuse_foreign(
        adata, {"obsm": (key,), "uns": (run,)}, key=run, maker=_MAKER, overwrite=overwrite, argument="key_added"
    )
    if adata.is_view and adata.isbacked and not copy:
        msg = "adata is a view of a backed object, which takes no results: give copy=True, or adata.to_memory()"
        raise ValueError(msg)


def _cells(adata: AnnData, batch_key: str, labels_key: str | None) -> _Cells:
    """Columns of `.obs`, with what is wrong about them said before any work."""
    batches = read_batches(adata, batch_key)
    if labels_key is None:
        return _Cells(batches, None)
    if labels_key not in adata.obs:
        msg = f"labels_key={labels_key!r} is not in .obs (there: {', '.join(map(repr, adata.obs)) or 'none'})"
        raise KeyError(msg)
    column = pd.Series(np.asarray(adata.obs[labels_key], dtype=object))
    missing = column.isna() | (column.astype(str).str.strip() == "")
    if column[~missing].astype(str).nunique() < 2:
        msg = f"labels_key={labels_key!r} has fewer than two cell types: there is nothing to check, leave it out"
        raise ValueError(msg)
    if missing.any():
        n = int(missing.sum())
        logger.warning("%s of %s cells have no label in %r; the check leaves them out", n, len(column), labels_key)
    labels = np.array(column.astype(str), dtype=object)
    labels[missing.to_numpy()] = None
    return _Cells(batches, labels)


def _has_learned(model: Model) -> bool:
    """Whether a model is to be applied, and not to learn from."""
    if "annotation" in model.provenance:
        msg = (
            f"model {model.name!r} tells cell types (tl.scgpt_annotate): to integrate, give a pretrained model, or a "
            "folder that tl.scgpt_integrate(..., save=) has made"
        )
        raise ValueError(msg)
    return "integration" in model.provenance or model.config.input_norm == "domain"


def _as_pretrained(model: Model) -> Model:
    """The same for a check that refuses models of this function."""
    return replace(model, config=replace(model.config, input_norm="none"))


def _learned(adata: AnnData, cells: _Cells, model: Model, asked: _Asked) -> _Made:
    """Fine-tune a model on these cells, and embed them with it."""
    batches = cells.batches
    check_several(batches, asked.batch_key)
    train = train_for(asked.preset, model.config, asked.train, adata.n_obs)
    compute = Compute(device=train.device, progress=train.progress)
    match = genes_of(adata, model.vocab)
    flavor = "seurat_v3" if asked.preset == "paper" else "seurat"
    chosen = genes_for(adata, batches, match, layer=asked.layer, n_genes=asked.n_genes, flavor=flavor)
    before, slots = zero_shot(adata, model, layer=asked.layer, seed=asked.seed, compute=compute)
    genes = np.where(chosen, match.names, "").tolist()
    source = Source(
        "cells",
        genes,
        partial(open_layer, adata, asked.layer),
        adata.n_obs,
        batches=batches.column,
        manifest={"sha256": digest(adata, asked.layer), "file": None},
    )
    told = {"batch_key": asked.batch_key, "cells": adata.n_obs, "counts": batches.counts.tolist()}
    lesson = Lesson(source, tuple(sorted(set(genes) - {""})), told)
    how: dict[str, Any] = {"preset": asked.preset, "train": train, "seed": asked.seed}
    with folder_for(asked.save, "integrator") as out:
        found = learn(
            lesson,
            model=model,
            out=out,
            kin=lambda: kin_groups(before, batches.codes, seed=asked.seed),
            overwrite=asked.overwrite,
            **how,
        )
        integrator = Integrator.of(found if asked.save else in_memory(found))
    embedding = _embedded(adata, integrator, batches, asked, compute)
    return _Made(integrator.model, embedding, before, slots, (), "", {})


def _applied(adata: AnnData, cells: _Cells, model: Model, asked: _Asked, new_batches: str) -> _Made:
    """Embed cells with a model that has learned."""
    integrator, batches, compute = Integrator.of(model), cells.batches, Compute()
    idle = [name for name in ("train", "save") if getattr(asked, name) is not None]
    idle += ["preset"] if asked.preset not in ("auto", integrator.preset) else []
    if idle:
        msg = f"{', '.join(idle)} says how to learn, and model {model.name!r} has learned to integrate: leave it out"
        raise ValueError(msg)
    ids = genes_of(adata, model.vocab).ids
    _check_genes(ids, integrator)
    known = set(model.batches or ())
    new = tuple(name for name in batches.names if name not in known)
    if new and new_batches == "refuse":
        msg = (
            f"batches {', '.join(map(repr, new[:5]))} are not among those that model {model.name!r} has learned "
            f"({', '.join(map(repr, sorted(known)[:5]))}{', ...' if len(known) > 5 else ''}): new_batches='mean' or "
            "'adapt' embeds them all the same"
        )
        raise ValueError(msg)
    if new and integrator.per_batch:
        integrator = integrator.extended(new)
        if new_batches == "adapt":
            integrator = _adapted(adata, integrator, batches, new, asked.layer)
        logger.info("%d batches are new to model %r: %s of them", len(new), model.name, new_batches)
    embedding = _embedded(adata, integrator, batches, asked, compute)
    before = made_before(adata, None, asked.layer)
    return _Made(model, embedding, before, None, new, new_batches if new else "", {})


def _check_genes(ids: np.ndarray, integrator: Integrator) -> None:
    """Cells must have enough of the genes that a model has learned from."""
    learned = integrator.model.vocab.ids(list(integrator.genes))
    share = float(np.isin(learned, ids).mean())
    said = (
        f"{share:.0%} of the {len(learned):,} genes that model {integrator.model.name!r} learned from are in the data"
    )
    if share < LEAST_SHARE:
        msg = f"{said}, at least {LEAST_SHARE:.0%} are needed: do both name genes alike?"
        raise ValueError(msg)
    if share < _FEW:
        logger.warning("%s: these cells lie apart for want of the others", said)


def _adapted(
    adata: AnnData, integrator: Integrator, batches: Batches, new: tuple[str, ...], layer: str | None
) -> Integrator:
    """Statistics of the new batches from their own cells; those of the others stay."""
    rows = np.isin(batches.column, new)
    some = Batches(batches.names, batches.codes[rows])
    ids = genes_of(adata, integrator.model.vocab).ids
    return integrator.measured(open_layer(adata[rows], layer).blocks(ROWS), ids, _codes(some, integrator))


def _codes(batches: Batches, integrator: Integrator) -> np.ndarray:
    """(n_obs,) int64 number of each cell's batch in the model; 0 for all where batches make no difference."""
    if not integrator.per_batch:
        return np.zeros(len(batches.codes), np.int64)
    place = {name: i for i, name in enumerate(integrator.model.batches or ())}
    return np.array([place.get(name, -1) for name in batches.names], np.int64)[batches.codes]


def _embedded(adata: AnnData, integrator: Integrator, batches: Batches, asked: _Asked, compute: Compute) -> np.ndarray:
    ids = genes_of(adata, integrator.model.vocab).ids
    rows = open_layer(adata, asked.layer).blocks(ROWS)
    return integrator.embed(rows, ids, _codes(batches, integrator), compute=compute)


def _checked(made: _Made, cells: _Cells, seed: int) -> dict[str, float]:
    if made.before is None or len(made.before) < 4:
        return {}
    return what_was_lost(made.before, made.embedding, cells.batches.codes, cells.labels, seed=seed)


def _write(adata: AnnData, made: _Made, asked: _Asked, key: str, run: str) -> None:
    """All slots, at once."""
    model = made.model
    kept, base = model.provenance["integration"], model.provenance["base"]
    params = {
        "model": model.name,
        "weights_sha256": model.sha256,
        "base": base["name"],
        "base_sha256": base["sha256"],
        "preset": kept["preset"],
        "recipe": model.provenance["recipe"]["name"],
        "batch_key": asked.batch_key,
        "layer": "X" if asked.layer is None else asked.layer,
        "seed": kept["seed"],
        "zeros": kept["zeros"],
        "n_genes": len(kept["genes"]),
        "new_batches": np.array(made.new, dtype=str),
        "policy": made.policy,
        "train": {name: str(value) for name, value in model.provenance["train"].items()},
        "scgpt_tl": scgpt_tl.__version__,
        "torch": model.provenance["torch"],
    }
    result = {
        OWNER: _MAKER,
        "params": params,
        "genes": np.array(kept["genes"], dtype=str),
        "batches": np.array(model.batches, dtype=str),
        "history": history_columns(model),
        "checks": made.checks,
    }
    if made.slots is not None and SLOTS.embedding not in adata.obsm and SLOTS.run not in adata.uns:
        adata.obsm[SLOTS.embedding] = made.before
        adata.uns[SLOTS.run] = made.slots
    adata.obsm[key] = made.embedding
    adata.uns[run] = result

"""`tl.scgpt_integrate`: batches brought together by fine-tuning, or by a folder that has learned to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

import scgpt_tl
from scgpt_tl._nearest import check_choice
from scgpt_tl._random import as_seed
from scgpt_tl._slots import OWNER, SLOTS, check_anndata, copied, refuse_backed_view, refuse_embed_s, refuse_foreign
from scgpt_tl.engine.integrate import NEW_BATCHES, PRESETS, SMALL, Integrator, Lesson, learn, train_for
from scgpt_tl.engine.predict import ROWS, Seen
from scgpt_tl.engine.study import Source
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._apply import check_genes, codes_of, with_batches
from scgpt_tl.tl._batches import check_several, genes_for, read_batches, read_labels
from scgpt_tl.tl._embed import _check_input
from scgpt_tl.tl._kin import kin_groups
from scgpt_tl.tl._learned import check_save, compute_of, folder_for, history_columns, in_memory, returned, unheard
from scgpt_tl.tl._lost import what_was_lost
from scgpt_tl.tl._stored import digest
from scgpt_tl.tl._zero_shot import made_before, zero_shot

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.predict import Compute
    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._batches import Batches

logger = logging.getLogger(__name__)
_MAKER = "tl.scgpt_integrate"
_N_GENES = 1200


def scgpt_integrate(  # noqa: PLR0913 (each is a choice of its own; how to train is grouped)
    adata: AnnData,
    *,
    batch_key: str,
    model: str | Path | Model = "pbmc-mini",
    labels_key: str | None = None,
    preset: str = "auto",
    n_genes: int | None = None,
    train: TrainConfig | Mapping[str, Any] | None = None,
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
          ECS, DAR, statistics of each batch (DSBN); genes that a cell does not express are shown; 15 epochs. For the
          published weights: small models get worse by it, and are warned of.
        - "auto": ours, for a CPU. Masked values, and cells that lie together in the zero-shot embedding, across
          batches, must find each other; zeros are dropped.
    n_genes
        Most variable genes that are read, of those that all batches express. None: 1,200.
    train
        How to train: a dict of options to change in the preset's, such as `{"epochs": 3, "progress": False}`, or a
        whole `TrainConfig`. With a model that has learned, `device`, `progress`, `max_memory` and `max_tokens` alone
        may be given: where and how cells are embedded.
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
        Write under this key, in `.obsm` and `.uns`, instead of the defaults below. Not one of `tl.scgpt_embed`.
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
        `params`, `genes` (those read), `batches` (those known to the model), `n_empty` (cells that express none of
        these genes), `history`, and `checks` (see Notes).

    Raises
    ------
    ValueError
        Batches that cannot be integrated (one batch, cells without one, measurements), cell types that cannot be
        scored, too few genes in common, an unknown preset or policy, no such layer, batches not known with "refuse",
        values that cannot be read, an argument that a model which has learned does not hear, a model of another task or
        one that was changed, a slot that holds something else.
    KeyError
        No such column.
    FileNotFoundError
        No such model.
    FileExistsError
        `save` is a file, or holds something else; before anything is learned.

    Notes
    -----
    `checks` compares with the zero-shot embedding: `overlap`, the mean share of a cell's 15 nearest cells of its own
    batch that it keeps; `mixing_before` and `mixing_after`, how many of all its nearest cells are of other batches (1:
    as many as by chance); with `labels_key` NMI and ASW of either. A warning is logged where `overlap` is below 0.1, or
    NMI or ASW fell by more than 0.02. With a model that has learned there are `checks` where `.obsm["X_scGPT"]` is of
    the model that it started from. When a model learns, its zero-shot embedding is always made anew.

    Statistics of a batch (preset "paper") are those of all its cells with nothing hidden. The published code keeps
    running means over cells with hidden values; batches that are adapted to later could not be compared with these.

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
    refuse_embed_s(key_added)
    check_save(save, overwrite=overwrite)
    cells = _Cells(read_batches(adata, batch_key), read_labels(adata, labels_key))
    loaded = load_model(model)
    learned = _has_learned(loaded)
    _check_input(adata, _as_pretrained(loaded), layer, None)
    made = _applied(adata, cells, loaded, asked, new_batches) if learned else _learned(adata, cells, loaded, asked)
    checks = _checked(made, cells, asked.seed)
    if copy:
        adata = copied(adata)
    _write(adata, made, asked, checks, (key, run))
    return returned(adata, made.model, copy=copy, return_model=return_model)


@dataclass(frozen=True)
class _Asked:
    """What the caller said."""

    batch_key: str
    preset: str
    n_genes: int | None
    train: TrainConfig | Mapping[str, Any] | None
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
    n_empty: int
    """Cells that express no gene that is read."""


def _check_places(adata: Any, key: str, run: str, *, overwrite: bool, copy: bool) -> None:
    """Refuse what could not be written at the end, or would write over something else."""
    check_anndata(adata, "adata")
    refuse_foreign(
        adata, {"obsm": (key,), "uns": (run,)}, key=run, maker=_MAKER, overwrite=overwrite, argument="key_added"
    )
    refuse_backed_view(adata, "adata", copy=copy)


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
    if asked.preset == "paper" and model.config.d_model < SMALL:
        logger.warning(
            "preset='paper' is made for the published weights, 512 wide: model %r (%d wide) does not get used to a "
            "norm for each batch in 15 epochs, and types mixed where it was tried; small models have preset='auto'",
            model.name, model.config.d_model,
        )  # fmt: skip
    train = train_for(asked.preset, model.config, asked.train, adata.n_obs)
    compute = compute_of(train)
    match = genes_of(adata, model.vocab)
    flavor = "seurat_v3" if asked.preset == "paper" else "seurat"
    n_genes = _N_GENES if asked.n_genes is None else asked.n_genes
    chosen = genes_for(adata, batches, match, layer=asked.layer, n_genes=n_genes, flavor=flavor)
    genes = np.where(np.isin(match.ids, match.ids[chosen]), match.names, "").tolist()  # all columns of a gene
    source = Source(
        "cells",
        genes,
        partial(open_layer, adata, asked.layer),
        adata.n_obs,
        batches=batches.column,
        manifest={"sha256": digest(open_layer(adata, asked.layer)), "file": None},
    )
    told = {"batch_key": asked.batch_key, "cells": adata.n_obs, "counts": batches.counts.tolist()}
    lesson = Lesson(source, tuple(sorted(set(genes) - {""})), told)
    before = cache(partial(zero_shot, adata, model, layer=asked.layer, seed=asked.seed, compute=compute))
    how: dict[str, Any] = {"preset": asked.preset, "train": train, "seed": asked.seed, "overwrite": asked.overwrite}
    with folder_for(asked.save, "integrator") as out:
        how["kin"] = lambda: kin_groups(before()[0], batches.codes, seed=asked.seed)
        found = learn(lesson, model=model, out=out, **how)
        integrator = Integrator.of(found if asked.save else in_memory(found))
    embedding, n_empty = _embedded(adata, integrator, batches, asked.layer, compute)
    return _Made(integrator.model, embedding, *before(), (), "", n_empty)


def _applied(adata: AnnData, cells: _Cells, model: Model, asked: _Asked, new_batches: str) -> _Made:
    """Embed cells with a model that has learned."""
    integrator, idle = Integrator.of(model), unheard(asked.train)
    given = {"save": asked.save is not None, "n_genes": asked.n_genes is not None}
    given["preset"] = asked.preset not in ("auto", integrator.preset)
    if idle := [*idle, *(name for name, is_given in given.items() if is_given)]:
        msg = f"{', '.join(idle)} says how to learn, and model {model.name!r} has learned to integrate: leave it out"
        raise ValueError(msg)
    check_genes(adata, integrator)
    integrator, new = with_batches(adata, integrator, cells.batches, new_batches, asked.layer)
    embedding, n_empty = _embedded(adata, integrator, cells.batches, asked.layer, compute_of(asked.train))
    before = made_before(adata, model.provenance["base"]["sha256"], asked.layer)
    return _Made(model, embedding, before, None, new, new_batches if new else "", n_empty)


def _embedded(
    adata: AnnData, integrator: Integrator, batches: Batches, layer: str | None, compute: Compute
) -> tuple[np.ndarray, int]:
    """(n_obs, D), and how many cells have no gene that is read."""
    ids, seen = genes_of(adata, integrator.model.vocab).ids, Seen()
    rows = open_layer(adata, layer).blocks(ROWS)
    found = integrator.embed(rows, ids, codes_of(batches, integrator), compute=compute, seen=seen)
    if seen.n_empty:
        logger.warning(
            "%d of %d cells express none of the %d genes that are read: nothing is known of them, and they lie at one "
            "place", seen.n_empty, adata.n_obs, len(integrator.genes),
        )  # fmt: skip
    return found, seen.n_empty


def _checked(made: _Made, cells: _Cells, seed: int) -> dict[str, float]:
    if made.before is None or len(made.before) < 4:
        return {}
    return what_was_lost(made.before, made.embedding, cells.batches.codes, cells.labels, seed=seed)


def _write(adata: AnnData, made: _Made, asked: _Asked, checks: dict[str, float], keys: tuple[str, str]) -> None:
    """All slots, at once."""
    (key, run), model = keys, made.model
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
        "n_empty": made.n_empty,
        "history": history_columns(model),
        "checks": checks,
    }
    if made.slots is not None and SLOTS.embedding not in adata.obsm and SLOTS.run not in adata.uns:
        adata.obsm[SLOTS.embedding] = made.before
        adata.uns[SLOTS.run] = made.slots
    adata.obsm[key] = made.embedding
    adata.uns[run] = result

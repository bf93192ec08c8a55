"""A reference with labels, as what is learned from: labels read and refused, genes shared, cells held out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scgpt_tl._slots import SLOTS
from scgpt_tl.engine.annotate import HELD_OUT, Lesson, held_out_cells
from scgpt_tl.engine.predict import ROWS
from scgpt_tl.pp._blocks import _parent, open_layer
from scgpt_tl.pp._check import LEAST_SHARE
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._columns import types_of
from scgpt_tl.tl._corpus import open_corpus
from scgpt_tl.tl._embed import _check_input

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.engine.study import Source
    from scgpt_tl.models.model import Model

logger = logging.getLogger(__name__)

_FEW = 0.5  # share of common genes below which it is said
_LEAST_SHARED = 20  # genes in common, to tell types by
_LEAST_GENES = 10  # that a cell must express to be told from another by its counts


@dataclass(frozen=True)
class Labels:
    """Cell types of a reference."""

    codes: np.ndarray
    """(n,) int64, -1: none."""
    names: tuple[str, ...]
    """In the order of the codes, each with a cell."""
    key: str
    """Column of `.obs`."""

    @property
    def n_cells(self) -> int:
        """Cells with a type."""
        return int((self.codes >= 0).sum())

    @property
    def counts(self) -> list[int]:
        """Cells of each type."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).tolist()


def read_labels(reference: AnnData, labels_key: str | None) -> Labels:
    """Cell types of a reference; what is no name of a type is refused, what is missing is left out and counted.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        No column is named, it holds measurements, or fewer than two types.
    """
    there = ", ".join(map(repr, reference.obs)) or "none"
    if labels_key is None:
        msg = f"labels_key= must name the column of reference.obs that holds cell types (there: {there})"
        raise ValueError(msg)
    if labels_key not in reference.obs:
        near = get_close_matches(labels_key, map(str, reference.obs), 1)
        msg = f"labels_key={labels_key!r} is not in reference.obs (there: {there})"
        raise KeyError(msg + (f"; did you mean {near[0]!r}?" if near else ""))
    text, missing = types_of(reference.obs[labels_key], labels_key)
    names, codes = np.unique(text[~missing], return_inverse=True)
    if len(names) < 2:
        found = f"one type, {str(names[0])!r}" if len(names) else "no type at all"
        msg = f"labels_key={labels_key!r}: the reference has {found}; two or more are needed to tell them apart"
        raise ValueError(msg)
    labels = Labels(np.full(len(text), -1, np.int64), tuple(names.tolist()), labels_key)
    labels.codes[~missing] = codes
    _tell_of_labels(labels, labels_key)
    return labels


def _tell_of_labels(labels: Labels, labels_key: str) -> None:
    if missing := int((labels.codes < 0).sum()):
        logger.warning(
            "%s of %s cells have no label in %r and are left out", f"{missing:,}", f"{len(labels.codes):,}", labels_key
        )
    alone = [name for name, n in zip(labels.names, labels.counts, strict=True) if n == 1]
    if alone:
        logger.warning(
            "types of a single cell, which is learned from and never held out to judge: %s", ", ".join(alone[:10])
        )


def shared_genes(query: np.ndarray, learned: np.ndarray, *, what: str) -> np.ndarray:
    """Sorted ids (n,) of the genes that a query and a reference, or a model that has learned, have in common.

    Parameters
    ----------
    query, learned
        Vocabulary ids of either side, -1: none.
    what
        What the other side is called.

    Raises
    ------
    ValueError
        They are fewer than 20, or less than a fifth of the smaller side's genes.
    """
    ours, theirs = (np.unique(ids[ids >= 0]) for ids in (query, learned))
    both = np.intersect1d(ours, theirs)
    share = len(both) / max(1, min(len(ours), len(theirs)))
    each = f"query: {len(ours):,}, {what}: {len(theirs):,}"
    said = f"the query and the {what} share {len(both):,} genes of the model ({each})"
    if share < LEAST_SHARE or len(both) < _LEAST_SHARED:
        least = f"at least {LEAST_SHARE:.0%} of the smaller number, and {_LEAST_SHARED}, are needed"
        msg = f"{said}; {least}. Are both filtered to other genes?"
        raise ValueError(msg)
    if share < _FEW or len(both) < _FEW * len(theirs):
        logger.warning("%s: types that differ in the others are hard to tell", said)
    return both


def check_side(side: str, adata: AnnData, model: Model, layer: str | None) -> None:
    """Refuse what cannot work, and say of which of two data sets it is."""
    with whose(side):
        _check_input(adata, model, layer, None)


@contextmanager
def whose(side: str) -> Iterator[None]:
    """Say of which of two data sets an error is."""
    try:
        yield
    except ValueError as error:
        msg = f"{side}: {error}"
        raise ValueError(msg) from error


def lesson_of(
    reference: AnnData,
    query: AnnData,
    labels: Labels,
    model: Model,
    *,
    layer: str | None,
    seed: int,
    share: float = HELD_OUT,
) -> Lesson:
    """What is learned from a reference for a query: cells with a label, genes that both have, a share held out.

    Raises
    ------
    ValueError
        As `shared_genes` and `pp.check_input` do.
    """
    if reference is not query:
        check_side("reference", reference, model, layer)
    ids = genes_of(reference, model.vocab).ids
    both = shared_genes(genes_of(query, model.vocab).ids, ids, what="reference")
    keys, telling = _cell_keys(reference, model, both, layer)
    _tell_of_twins(keys[telling], reference, query, model, both, layer)
    held_out = held_out_cells(labels.codes, keys, seed=seed, share=share)
    known = labels.codes >= 0
    parts = {"reference": known & ~held_out, "held-out": held_out}
    names = np.where(np.isin(ids, both), model.vocab.names[ids], "").tolist()
    sources = _sources(reference, layer, parts, model)
    made = {
        name: replace(
            source,
            genes=names,
            labels=np.array(labels.names, dtype=object)[labels.codes[parts[name]]],
            manifest=source.manifest | {"file": None},  # the same, backed or not
        )
        for name, source in sources.items()
    }
    told: dict[str, Any] = {"labels_key": labels.key, "cells": labels.n_cells, "held_out": int(held_out.sum())}
    told |= {"counts": labels.counts, "sha256": [source.manifest["sha256"] for source in made.values()]}
    return Lesson(made["reference"], made.get("held-out"), both, told)


def _sources(reference: AnnData, layer: str | None, parts: dict[str, np.ndarray], model: Model) -> dict[str, Source]:
    """Rows of a reference as studies; those without rows are left out."""
    shown = reference if layer is None else _with_layer(reference, layer)
    rows = {name: np.flatnonzero(part) for name, part in parts.items() if part.any()}
    found = open_corpus({name: _some(shown, part) for name, part in rows.items()}, model_vocab=model.vocab)
    return {source.name: source for source in found}


def _some(adata: AnnData, rows: np.ndarray) -> AnnData:
    """Some cells; of a view of a file by way of the whole, since anndata makes no view of that view."""
    if not (adata.is_view and adata.isbacked):
        return adata[rows]
    parent, cells, genes = _parent(adata)
    return parent[np.arange(parent.n_obs)[cells][rows], genes]


def _with_layer(reference: AnnData, layer: str) -> AnnData:
    """The same cells with a layer in `.X`."""
    kept = {key: reference.uns[key] for key in (SLOTS.genes,) if key in reference.uns}
    obs = pd.DataFrame(index=reference.obs_names)
    return ad.AnnData(reference.layers[layer], obs=obs, var=reference.var, uns=kept)


def _cell_keys(adata: AnnData, model: Model, genes: np.ndarray, layer: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) uint64 content hash of each cell over some genes, and (n,) bool whether it has enough to be known by."""
    ids = genes_of(adata, model.vocab).ids
    tokenizer = model.tokenizer(ids, genes=genes, max_length=2)
    blocks = [tokenizer(block) for _, block in open_layer(adata, layer).blocks(ROWS)]
    keys, n_genes = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("keys", "n_genes"))
    return keys, n_genes >= _LEAST_GENES


def _tell_of_twins(
    keys: np.ndarray, reference: AnnData, query: AnnData, model: Model, genes: np.ndarray, layer: str | None
) -> None:
    """Say how many cells of the query are learned from: they cannot show how well others are told."""
    if query is reference:
        logger.warning("the query is the reference itself: its cells are told by what was learned from them")
        return
    theirs, _ = _cell_keys(query, model, genes, layer)
    if twins := int(np.isin(theirs, keys).sum()):
        logger.warning(
            "%s cells of the query have the very counts of a cell of the reference: they are told by what was learned "
            "from them, and show nothing about other cells",
            f"{twins:,} of {len(theirs):,}",
        )

"""What a model that has learned to integrate asks of other cells: its genes, and statistics of their batches."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from scgpt_tl.engine.predict import ROWS
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._check import LEAST_SHARE
from scgpt_tl.pp._genes import genes_of

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.engine.integrate import Integrator
    from scgpt_tl.tl._batches import Batches

logger = logging.getLogger(__name__)
_FEW = 0.8  # share of the genes learned from below which it is said


def check_genes(adata: AnnData, integrator: Integrator) -> None:
    """Cells must have enough of the genes that a model has learned from.

    Raises
    ------
    ValueError
        Fewer than a fifth.
    """
    ids, learned = (genes_of(adata, integrator.model.vocab).ids, integrator.model.vocab.ids(list(integrator.genes)))
    share = float(np.isin(learned, ids).mean())
    said = (
        f"{share:.0%} of the {len(learned):,} genes that model {integrator.model.name!r} learned from are in the data"
    )
    if share < LEAST_SHARE:
        msg = f"{said}, at least {LEAST_SHARE:.0%} are needed: do both name genes alike?"
        raise ValueError(msg)
    if share < _FEW:
        logger.warning("%s: these cells lie apart for want of the others", said)


def with_batches(
    adata: AnnData, integrator: Integrator, batches: Batches, policy: str, layer: str | None
) -> tuple[Integrator, tuple[str, ...]]:
    """With the batches that it does not know, by a policy of `NEW_BATCHES`, and their names.

    Raises
    ------
    ValueError
        There are some, and the policy is "refuse".
    """
    model, known = integrator.model, set(integrator.model.batches or ())
    new = tuple(name for name in batches.names if name not in known)
    if new and policy == "refuse":
        msg = (
            f"batches {', '.join(map(repr, new[:5]))} are not among those that model {model.name!r} has learned "
            f"({', '.join(map(repr, sorted(known)[:5]))}{', ...' if len(known) > 5 else ''}): new_batches='mean' or "
            "'adapt' embeds them all the same"
        )
        raise ValueError(msg)
    if not new or not integrator.per_batch:
        return integrator, new
    integrator = integrator.extended(new)
    if policy == "adapt":  # statistics of the known ones stay: their cells have no code here
        codes = np.where(np.isin(batches.column, new), codes_of(batches, integrator), -1)
        ids = genes_of(adata, model.vocab).ids
        integrator = integrator.measured(open_layer(adata, layer).blocks(ROWS), ids, codes)
    logger.info("%d batches are new to model %r: %s of them", len(new), model.name, policy)
    return integrator, new


def codes_of(batches: Batches, integrator: Integrator) -> np.ndarray:
    """(n_obs,) int64 number of each cell's batch in the model; 0 for all where batches make no difference."""
    if not integrator.per_batch:
        return np.zeros(len(batches.codes), np.int64)
    place = {name: i for i, name in enumerate(integrator.model.batches or ())}
    return np.array([place.get(name, -1) for name in batches.names], np.int64)[batches.codes]

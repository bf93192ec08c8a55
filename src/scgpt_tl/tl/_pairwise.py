"""Scores of pairs of genes, whatever the method: how many genes, which network, which batches, and the call."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl.engine.attention import attention_scores
from scgpt_tl.engine.coexpression import spearman
from scgpt_tl.engine.knockout import knockout_scores
from scgpt_tl.engine.pairs import ROWS as MAP_ROWS
from scgpt_tl.engine.predict import ROWS
from scgpt_tl.engine.shuffle import shuffled
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._logs import is_counts
from scgpt_tl.tl._batches import read_batches
from scgpt_tl.tl._network import listed

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._network import Groups, Nodes, Options

logger = logging.getLogger(__name__)

MOST_GENES = 5000  # that are taken without having been chosen
_MANY_PASSES = 100_000
_TUNED = ("finetune", "lora")  # methods of tl.scgpt_annotate that change the network; a head does not


def check_size(method: str, n_genes: int, n_groups: int, n_regulators: int | None, *, chosen: bool) -> None:
    """Refuse a network of all genes that nobody chose, and any that the machine cannot hold.

    Raises
    ------
    ValueError
        All, and more than 5,000; or too many for its memory. The message says what memory they would need.
    """
    pairs = n_genes * (n_genes if n_regulators is None else n_regulators) * n_groups
    one_map = n_genes**2 if method != "knockout" else 0
    needed, there = 12 * (pairs + one_map), memory()  # a sum and a score a pair, scores and ranks of a map
    need, mend = f"would need about {needed / 1e9:.1f} GB", "scgpt_tl.pp.select_genes(adata, n_genes=1200)"
    if needed > there:
        msg = (
            f"method={method!r} on {n_genes:,} genes in {n_groups:,} groups {need}, and this machine has "
            f"{there / 1e9:.1f} GB: take fewer genes, as {mend} marks them, fewer groups, or name regulators="
        )
        raise ValueError(msg)
    if n_genes > MOST_GENES and not chosen:
        msg = (
            f"method={method!r} on all {n_genes:,} genes {need}, and time that grows as their square: above "
            f"{MOST_GENES:,} genes they must be chosen. Mark the most variable with {mend}, or name some with genes="
        )
        raise ValueError(msg)


def memory() -> float:
    """Bytes of this machine; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # Windows
        return np.inf


def check_layer(model: Model, layer: int) -> None:
    """Refuse a block that the network does not have.

    Raises
    ------
    ValueError
        It has fewer.
    """
    n = model.config.n_layers
    if not -n <= layer < n:
        msg = f"attention_layer={layer}: model {model.name!r} has {n} layers; give {-n} to {n - 1} (-1: the last)"
        raise ValueError(msg)


def with_shuffled_weights(model: Model, seed: int) -> Model:
    """The control: the same numbers in another order."""
    return replace(model, network=shuffled(model.network, seed), name=f"{model.name}-shuffled")


def read_by_batch(
    adata: AnnData, model: Model, batch_key: str | None, layer: str | None
) -> tuple[Model, np.ndarray | None]:
    """The model that knows the batches of these cells, and (n_obs,) which each is of; None: no difference is made.

    Raises
    ------
    ValueError
        Batches are needed and not named, or named and not needed.
    KeyError
        No such column.
    """
    if model.config.input_norm != "domain":
        if batch_key is not None:
            msg = f"model {model.name!r} does not normalise each batch apart: leave batch_key out"
            raise ValueError(msg)
        return model, None
    if batch_key is None:
        msg = f"model {model.name!r} normalises each batch apart: batch_key= must name the column of .obs with them"
        raise ValueError(msg)
    from scgpt_tl.engine.integrate import Integrator  # and with it Lightning, which costs seconds
    from scgpt_tl.tl._apply import codes_of, with_batches

    batches = read_batches(adata, batch_key)
    integrator, new = with_batches(adata, Integrator.of(model), batches, "mean", layer)
    if new:
        logger.warning("batches that model %r has not learned take the mean of those that it has: %s", model.name, new)
    return integrator.model, codes_of(batches, integrator)


def pair_scores(
    adata: AnnData, model: Model, nodes: Nodes, groups: Groups, options: Options, *, method: str, layer: str | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """(n_groups, M, M or R) float32, [group, target, regulator]; of a knock-out also (n_groups, M or R) int64 cells."""
    n_groups = len(groups.names)
    if method == "coexpression":
        rows, counts = open_layer(adata, layer).blocks(ROWS), is_counts(adata, layer)
        return spearman(rows, nodes.places, groups.codes, n_groups, counts=counts, regulators=nodes.regulators), None
    tell_unlearned(model, nodes.ids)
    model, batches = read_by_batch(adata, model, options.batch_key, layer)
    how: dict[str, Any] = {"groups": groups.codes, "n_groups": n_groups, "compute": options.compute}
    how |= {"total": adata.n_obs, "batches": batches, "regulators": nodes.regulators}
    rows = open_layer(adata, layer).blocks(MAP_ROWS)
    # every chosen gene is a token of every cell, expressed or not
    tokenizer = model.tokenizer(nodes.column_ids, max_length=len(nodes.ids) + 1, zeros=True, seed=seed)
    if options.shuffled:  # now that the model has been asked what it has learned
        model = with_shuffled_weights(model, seed)
    if method == "attention":
        return attention_scores(model.backbone, rows, tokenizer, layer=options.attention_layer, **how), None
    if nodes.regulators is None:
        how["regulators"] = np.arange(len(nodes.ids))
    passes = len(how["regulators"]) * int(groups.counts.sum())
    if passes > _MANY_PASSES:
        logger.warning("%s passes of the network (regulators x cells); regulators= names fewer", f"{passes:,}")
    scores, cells = knockout_scores(model.network, rows, tokenizer, effect=options.effect, **how)
    names = adata.var_names[nodes.columns[how["regulators"]]]
    return _of_enough_cells(scores, cells, names.tolist(), groups.names, options.min_cells), cells


def _of_enough_cells(
    scores: np.ndarray, cells: np.ndarray, regulators: list[str], groups: tuple[str, ...], least: int
) -> np.ndarray:
    """(G, M, R) scores, those of a regulator that fewer cells (G, R) of a group express NaN, and told.

    Raises
    ------
    ValueError
        None is left.
    """
    few = cells < least
    if not few.any():
        return scores
    by_size = sorted(np.argwhere(few).tolist(), key=lambda at: (-cells[at[0], at[1]], at))
    said = listed(f"{regulators[r]} in {groups[g]!r} ({cells[g, r]})" for g, r in by_size)
    if few.all():
        msg = (
            f"no regulator is expressed in min_cells={least} cells of a group: {said}; name others with regulators=, "
            "join groups, or give a smaller min_cells"
        )
        raise ValueError(msg)
    logger.warning("knock-outs of regulators that fewer than min_cells=%d cells express are left out: %s", least, said)
    return np.where(few[:, None, :], np.float32(np.nan), scores)


def tell_unlearned(model: Model, ids: np.ndarray) -> None:
    """Say how many of these genes (M,) a fine-tuned model did not see when it was tuned."""
    learned = _learned(model)
    if learned is not None and (n := int((~np.isin(ids, learned)).sum())):
        logger.warning(
            "%d of %d genes are not among the %d on which model %r was fine-tuned: what it has learned of them is from "
            "before, and did not change with the rest; genes= names others", n, len(ids), len(learned), model.name,
        )  # fmt: skip


def _learned(model: Model) -> np.ndarray | None:
    """Ids of the genes on which a model was fine-tuned; None: it was not, or does not say."""
    if "integration" in model.provenance:
        return model.vocab.ids(list(model.provenance["integration"]["genes"]))
    if model.provenance.get("annotation", {}).get("method") in _TUNED:
        return model.arrays.get("genes")
    return None

"""What the "embedding" method compares: gene embeddings, as the table holds them or averaged over cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl._nearest import nearest
from scgpt_tl.engine.predict import ROWS, Contexts, embed_rows
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._network import LEAST_GENES
from scgpt_tl.tl._pairwise import read_by_batch, tell_unlearned, with_shuffled_weights

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._network import Groups, Nodes, Options
    from scgpt_tl.tokens.tokenize import Tokenizer

logger = logging.getLogger(__name__)


def cells_of_context(context: bool | str, groups: Groups, n_obs: int) -> np.ndarray | None:
    """(n_obs,) bool cells over which embeddings are averaged; None: over none, embeddings are static.

    Raises
    ------
    ValueError
        No such group, or no groups.
    """
    if isinstance(context, bool):
        return np.ones(n_obs, bool) if context else None
    if context not in groups.names:
        msg = f"context={context!r} is no group of groupby= with min_cells cells; {nearest(context, groups.names)}"
        raise ValueError(msg)
    return groups.codes == groups.names.index(context)


def gene_features(
    adata: AnnData, model: Model, nodes: Nodes, cells: np.ndarray | None, options: Options, *, layer: str | None,
    seed: int,
) -> tuple[np.ndarray, Nodes]:  # fmt: skip
    """(M, D) float32 embeddings, and the genes that have one: in context, those that one of the cells expresses.

    Raises
    ------
    ValueError
        In context: fewer than three are expressed, or shown to the model; batches as `read_by_batch` says.
    """
    if cells is None:
        model = with_shuffled_weights(model, seed) if options.shuffled else model
        with torch.inference_mode():
            return model.backbone.genes(torch.from_numpy(nodes.ids)).numpy(), nodes
    model, batches = read_by_batch(adata, model, options.batch_key, layer)
    contexts = Contexts(np.zeros(int(cells.sum()), np.int64), nodes.ids, model.config.d_model)
    how: dict[str, Any] = {"compute": options.compute, "total": int(cells.sum()), "contexts": contexts}
    how["batches"] = None if batches is None else batches[cells]
    tokenizer = _as_it_reads(adata, model, seed)
    shown = np.isin(nodes.ids, tokenizer.genes)
    if shown.all():
        tell_unlearned(model, nodes.ids)
    unseen = (
        f"{int((~shown).sum())} of {len(shown)} genes are none of those on which model {model.name!r} was fine-tuned; "
        "it is shown no others: leave context= out, or let tl.scgpt_integrate(n_genes=) learn from more"
    )
    if shown.sum() < LEAST_GENES:
        raise ValueError(unseen)
    if options.shuffled:  # now that the model has been asked what it has learned
        model = with_shuffled_weights(model, seed)
    embed_rows(model.backbone, _some(adata, layer, cells), tokenizer, _Nowhere(), **how)
    found = contexts.mean()[0]
    met = ~np.isnan(found).any(axis=1)
    if met.sum() < LEAST_GENES:
        msg = f"{int(met.sum())} of {len(met)} genes are expressed in the cells of context=: {LEAST_GENES} are needed"
        raise ValueError(msg if shown.all() else f"{msg}, and {unseen}")
    if not shown.all():
        logger.warning("%s", unseen)
    if (absent := shown & ~met).any():
        logger.warning("%d of %d genes are expressed in no cell of context= and left out", absent.sum(), len(met))
    return found[met], nodes.only(met)


class _Nowhere:
    """Takes cell embeddings that nobody asked for."""

    def __setitem__(self, rows: Any, values: np.ndarray) -> None:
        pass


def _some(adata: AnnData, layer: str | None, cells: np.ndarray) -> Iterator[tuple[int, csr_matrix]]:
    """Blocks of some cells, numbered on."""
    done = 0
    for start, block in open_layer(adata, layer).blocks(ROWS):
        kept = block[cells[start : start + block.shape[0]]]
        if kept.shape[0]:
            yield done, kept
        done += kept.shape[0]


def _as_it_reads(adata: AnnData, model: Model, seed: int) -> Tokenizer:
    """As `tl.scgpt_embed` shows cells to a model, or as one that has learned to integrate was shown them."""
    match = genes_of(adata, model.vocab)
    if "integration" not in model.provenance:
        return model.tokenizer(match.ids, seed=seed)
    from scgpt_tl.engine.integrate import Integrator  # and with it Lightning, which costs seconds

    return Integrator.of(model).tokenizer(match.ids)

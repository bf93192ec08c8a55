"""The embedding that a model gives before it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import SLOTS
from scgpt_tl.tl._embed_slots import EmbedKeys
from scgpt_tl.tl._space import Space

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.engine.predict import Compute
    from scgpt_tl.models.model import Model


def zero_shot(
    adata: AnnData, model: Model, *, layer: str | None, seed: int, compute: Compute
) -> tuple[np.ndarray, dict[str, Any]]:
    """The embedding before anything is learned, as `tl.scgpt_embed` makes it.

    It is always made anew: one that lies in `.obsm` may be of other values, genes, lengths or seeds, and what is
    learned must not depend on it.

    Returns
    -------
    (n_obs, D) of length 1, and the entry of `.uns`.
    """
    out = np.empty((adata.n_obs, model.config.d_model), np.float32)
    made = Space.of(model, seed=seed).embed(adata, out, layer=layer, compute=compute)
    return out, made.entry


def made_before(adata: AnnData, weights_sha256: str, layer: str | None) -> np.ndarray | None:
    """What `tl.scgpt_embed` left, if it is of these weights and this layer; for comparison alone."""
    if SLOTS.embedding not in EmbedKeys.of().earlier(adata).get("obsm", ()) or SLOTS.embedding not in adata.obsm:
        return None
    said, found = adata.uns[SLOTS.run]["params"], np.asarray(adata.obsm[SLOTS.embedding], np.float32)
    same = said.get("weights_sha256") == weights_sha256
    right = said.get("unit_norm", False) and said.get("layer") == ("X" if layer is None else layer)
    lengths = np.linalg.norm(found, axis=1)
    return found if same and right and bool((np.abs(lengths - 1) < 1e-3).all()) else None

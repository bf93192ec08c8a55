"""The embedding that a model gives before it learns."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import OWNER, SLOTS, is_ours
from scgpt_tl.engine.predict import ROWS, Compute, embed_rows
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._embed import _params, _tokenizer

if TYPE_CHECKING:
    from anndata import AnnData

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
    match = genes_of(adata, model.vocab)
    tokenizer = _tokenizer(model, match, None, seed)
    out = np.empty((adata.n_obs, model.config.d_model), np.float32)
    rows = open_layer(adata, layer).blocks(ROWS)
    seen = embed_rows(model.backbone, rows, tokenizer, out, compute=compute, total=adata.n_obs)
    params = _params(model, match, tokenizer, layer=layer, unit_norm=True)
    return out, {OWNER: "tl.scgpt_embed", "params": params, **asdict(seen)}


def made_before(adata: AnnData, weights_sha256: str, layer: str | None) -> np.ndarray | None:
    """What `tl.scgpt_embed` left, if it is of these weights and this layer; for comparison alone."""
    if not is_ours(adata, key=SLOTS.run, maker="tl.scgpt_embed") or SLOTS.embedding not in adata.obsm:
        return None
    said, found = adata.uns[SLOTS.run]["params"], np.asarray(adata.obsm[SLOTS.embedding], np.float32)
    same = said.get("weights_sha256") == weights_sha256
    right = said.get("unit_norm", False) and said.get("layer") == ("X" if layer is None else layer)
    lengths = np.linalg.norm(found, axis=1)
    return found if same and right and bool((np.abs(lengths - 1) < 1e-3).all()) else None


def digest(adata: AnnData, layer: str | None) -> str:
    """Of the values, however they are stored."""
    found = sha256(repr(adata.shape).encode())
    for _, block in open_layer(adata, layer).blocks(ROWS):
        for part in (np.diff(block.indptr).astype(np.int64), block.indices, block.data.astype(np.float64)):
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()

"""A space in which cells of several data sets lie together: a model, and how it reads cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import OWNER
from scgpt_tl.engine.predict import ROWS, Seen, embed_rows
from scgpt_tl.models.model import load_model
from scgpt_tl.models.registry import ENTRIES
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._embed import _check_input, _gene_embeddings, _params, _tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scgpt_tl.engine.predict import Compute, Sink
    from scgpt_tl.engine.reference import Reference
    from scgpt_tl.genes.match import GeneMatch
    from scgpt_tl.models.model import Model


@dataclass(frozen=True)
class Embedded:
    """What came of embedding, the numbers apart."""

    match: GeneMatch
    empty: np.ndarray
    """(n_obs,) bool: cells without any gene of the model."""
    entry: dict[str, Any]
    """For `.uns`, as `tl.scgpt_embed` writes it."""

    @property
    def genes(self) -> list[str]:
        """Names in the vocabulary of the genes that the data hold."""
        return sorted({str(name) for name in self.match.names if name})


@dataclass(frozen=True)
class Space:
    """A model, and how it reads cells."""

    model: Model
    sha256: str
    seed: int
    max_length: int

    @classmethod
    def of(cls, model: str | Path | Model, *, seed: int) -> Space:
        """Of a model, with its own length of cells."""
        loaded = load_model(model)
        return cls(loaded, loaded.sha256, seed, loaded.config.max_length)

    @classmethod
    def of_reference(cls, reference: Reference, model: str | Path | Model | None) -> Space:
        """Of a reference's cells, so that others are embedded alike.

        Raises
        ------
        ValueError
            `model`, or the one that now has the name of the reference's, is another.
        FileNotFoundError
            The reference's model is not here.
        """
        said, options, folder = reference.about.model, reference.about.options, reference.folder
        where: Any = model
        if model is None:
            where = folder / "model" if said["copied"] and folder is not None else said["name"]
        loaded = load_model(where)
        sha256 = loaded.sha256
        if sha256 != said["weights_sha256"]:
            whose = "the model of that name here is another" if model is None else f"model={loaded.name!r} is another"
            mend = "build the reference again" if model is None else "leave model out, or build a reference with it"
            msg = (
                f"the reference was embedded with {said['name']!r} (weights {said['weights_sha256'][:12]}...) and "
                f"{whose} ({sha256[:12]}...): cells of two models cannot be compared; {mend}"
            )
            raise ValueError(msg)
        return cls(loaded, sha256, int(options["seed"]), int(options["max_length"]))

    @property
    def is_named(self) -> bool:
        """Whether everybody finds this model by its name."""
        if self.model.name not in ENTRIES:
            return False
        try:
            return load_model(self.model.name).sha256 == self.sha256
        except (OSError, ValueError):
            return False

    def check(self, adata: AnnData, layer: str | None) -> None:
        """Refuse cells that cannot be embedded.

        Raises
        ------
        ValueError
            As `tl.scgpt_embed`.
        """
        _check_input(adata, self.model, layer, self.max_length)

    def embed(self, adata: AnnData, out: Sink, *, layer: str | None, compute: Compute) -> Embedded:
        """Embed cells as `tl.scgpt_embed` does, into `out` (n_obs, D); nothing of `adata` is changed."""
        match = genes_of(adata, self.model.vocab)
        tokenizer = _tokenizer(self.model, match, self.max_length, self.seed)
        empty, seen = np.zeros(adata.n_obs, bool), Seen()
        rows = _watched(open_layer(adata, layer).blocks(ROWS), match.ids >= 0, empty)
        embed_rows(self.model.backbone, rows, tokenizer, out, compute=compute, total=adata.n_obs, seen=seen)
        device = compute.torch_device()
        params = _params(self.model, match, tokenizer, layer=layer, unit_norm=True)
        params |= {"dtype": str(compute.torch_dtype(device)).removeprefix("torch."), "device": str(device), "out": ""}
        return Embedded(match, empty, {OWNER: "tl.scgpt_embed", "params": params, **asdict(seen)})

    def gene_embeddings(self, match: GeneMatch) -> np.ndarray:
        """(n_vars, D) float32, as `tl.scgpt_embed` writes them."""
        return _gene_embeddings(self.model, match)


def _watched(
    blocks: Iterator[tuple[int, csr_matrix]], known: np.ndarray, empty: np.ndarray
) -> Iterator[tuple[int, csr_matrix]]:
    """The same blocks; cells that express none of the known genes are marked in `empty`."""
    for start, block in blocks:
        empty[start : start + block.shape[0]] = block @ known.astype(np.float32) == 0
        yield start, block

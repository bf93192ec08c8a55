"""A space in which cells of several data sets lie together: a model, and how it reads cells."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import OWNER
from scgpt_tl.engine.predict import ROWS, Seen, embed_rows
from scgpt_tl.engine.twins import content_keys
from scgpt_tl.models._folder import ReadError
from scgpt_tl.models.model import load_model
from scgpt_tl.models.registry import ENTRIES
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._embed import _check_input, _gene_embeddings, _params
from scgpt_tl.tl._embed_slots import EMBED_MAKER

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scgpt_tl.engine.predict import Compute, Sink
    from scgpt_tl.engine.reference import Reference
    from scgpt_tl.genes.match import GeneMatch
    from scgpt_tl.models.model import Model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What came of embedding, the numbers apart."""

    match: GeneMatch
    empty: np.ndarray
    """(n_obs,) bool: cells without any gene of the model."""
    keys: np.ndarray
    """(n_obs,) uint64, `twins.content_keys`."""
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
            `model`, or the one that now has the name of the reference's, is another: in weights, vocabulary or config.
        FileNotFoundError
            The reference's model is not here.
        """
        said, options, folder = reference.about.model, reference.about.options, reference.folder
        where: Any = model
        if model is None:
            where = folder / "model" if said["copied"] and folder is not None else said["name"]
        made = cls.of(where, seed=int(options["seed"]))
        whose = "the model of that name here" if model is None else f"model={made.model.name!r}"
        mend = "build the reference again" if model is None else "leave model out, or build a reference with it"
        for name, found in made.digests.items():
            if found != said[name]:
                msg = (
                    f"the reference was embedded with {said['name']!r} ({name.removesuffix('_sha256')} "
                    f"{said[name][:12]}...) and {whose} is another ({found[:12]}...): cells of two models cannot be "
                    f"compared; {mend}"
                )
                raise ValueError(msg)
        return replace(made, max_length=int(options["max_length"]))

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of all that an embedding depends on, as a reference keeps them."""
        config = self.model.config
        told = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
        made = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()  # new fields have defaults
        return {"weights_sha256": self.sha256, "vocab_sha256": self.model.vocab.sha256, "config_sha256": made}

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
        with _reading():
            _check_input(adata, self.model, layer, self.max_length)

    def embed(self, adata: AnnData, out: Sink, *, layer: str | None, compute: Compute) -> Embedded:
        """Embed cells as `tl.scgpt_embed` does, into `out` (n_obs, D); nothing of `adata` is changed."""
        match = genes_of(adata, self.model.vocab)
        tokenizer = self.model.tokenizer(match.ids, max_length=self.max_length, seed=self.seed)
        empty, keys, seen = np.zeros(adata.n_obs, bool), np.zeros(adata.n_obs, np.uint64), Seen()
        rows = self._rows(adata, layer, match, empty, keys)
        embed_rows(self.model.backbone, rows, tokenizer, out, compute=compute, total=adata.n_obs, seen=seen)
        device = compute.torch_device()
        params = _params(self.model, match, tokenizer, layer=layer, unit_norm=True)
        params |= {"dtype": str(compute.torch_dtype(device)).removeprefix("torch."), "device": str(device), "out": ""}
        return Embedded(match, empty, keys, {OWNER: EMBED_MAKER, "params": params, **asdict(seen)})

    def keys(self, adata: AnnData, layer: str | None) -> np.ndarray:
        """(n_obs,) uint64 keys of the cells, without embedding them."""
        keys = np.zeros(adata.n_obs, np.uint64)
        match = genes_of(adata, self.model.vocab)
        for _ in self._rows(adata, layer, match, np.zeros(adata.n_obs, bool), keys):
            pass
        return keys

    def gene_embeddings(self, match: GeneMatch) -> np.ndarray:
        """(n_vars, D) float32, as `tl.scgpt_embed` writes them."""
        return _gene_embeddings(self.model, match)

    def _rows(
        self, adata: AnnData, layer: str | None, match: GeneMatch, empty: np.ndarray, keys: np.ndarray
    ) -> Iterator[tuple[int, csr_matrix]]:
        """Blocks of rows; cells without any known gene are marked in `empty`, all get their keys."""
        known = match.ids >= 0
        gene_keys = self.model.vocab.keys[np.where(known, match.ids, 0)]
        with _reading():
            for start, block in open_layer(adata, layer).blocks(ROWS):
                empty[start : start + block.shape[0]] = block @ known.astype(np.float32) == 0
                keys[start : start + block.shape[0]] = content_keys(block, gene_keys, known)
                yield start, block


def as_embedded(how: Compute, reference: Reference) -> Compute:
    """The number type in which the reference's cells were embedded, where none is asked for."""
    held = reference.about.options["dtype"]
    if how.dtype == "auto":
        return replace(how, dtype=held)
    if how.dtype != held:
        logger.warning("dtype=%r: the reference's cells were embedded in %s, and lie a little apart", how.dtype, held)
    return how


@contextmanager
def _reading() -> Iterator[None]:
    """Tell errors of the user's file from those of ours."""
    try:
        yield
    except OSError as error:
        msg = f"the data cannot be read: {error}"
        raise ReadError(msg) from error

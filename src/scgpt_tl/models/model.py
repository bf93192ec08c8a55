"""`Model`: a network with all that is needed to use it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scgpt_tl._random import as_seed
from scgpt_tl.core.scgpt import Network
from scgpt_tl.genes.bundle import kind_of, resolve
from scgpt_tl.models import native, official, registry
from scgpt_tl.models._weights import HEADS, fingerprint

if TYPE_CHECKING:
    from scgpt_tl.core.config import ModelConfig
    from scgpt_tl.core.heads import Heads
    from scgpt_tl.core.scgpt import ScGPT
    from scgpt_tl.genes.vocab import GeneVocab
    from scgpt_tl.models._coverage import Coverage
    from scgpt_tl.tokens.tokenize import Tokenizer


@dataclass(eq=False)
class Model:
    """A network, its vocabulary, and what its numbers stand for.

    Raises
    ------
    ValueError
        The parts do not belong together: vocabulary and gene table, labels and classes, batches and batch table.
    """

    config: ModelConfig
    vocab: GeneVocab
    network: Network
    name: str = "unnamed"
    labels: tuple[str, ...] | None = None
    """Name of each class that the CLS head tells, in the order of its scores."""
    batches: tuple[str, ...] | None = None
    """Name of each batch that the batch table knows, in the order of its rows."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from; plain values that JSON can hold."""
    coverage: Coverage | None = None
    """How the file's weights covered the network; None for a model made here."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """What a task keeps beside the weights, by name: the classifier of a probe, the reference of a kNN."""

    def __post_init__(self) -> None:
        found = (len(self.vocab), self.vocab.pad_id, self.vocab.cls_id)
        expected = (self.config.n_tokens, self.config.pad_id, self.config.cls_id)
        if found != expected:
            msg = f"the vocabulary has (names, pad id, cls id) = {found} and the config says {expected}"
            raise ValueError(msg)
        for what, names, size in (
            ("labels", self.labels, self.config.n_classes),
            ("batches", self.batches, self.config.n_batches),
        ):
            if names is not None and len(names) != size:
                msg = f"{what} has {len(names)} names and the network has {size} of them"
                raise ValueError(msg)

    def __repr__(self) -> str:
        c = self.config
        size = f"{c.n_layers} layers x {c.d_model}, {c.n_heads} heads, {self.n_parameters:,} parameters"
        return f"Model({self.name!r}: {size}, {len(self.vocab):,} tokens; heads {', '.join(c.heads) or 'none'})"

    @property
    def backbone(self) -> ScGPT:
        """Cells in, embeddings out."""
        return self.network.backbone

    @property
    def heads(self) -> Heads:
        """What is told from the embeddings."""
        return self.network.heads

    @property
    def n_parameters(self) -> int:
        """How many numbers training can change."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def sha256(self) -> str:
        """Fingerprint of all weights (names, types, shapes, bytes).

        Computed at every call, in about 0.3 s for 51 million parameters: torch keeps no reliable record of changes
        (its fused optimisers leave a tensor's version as it was), and a saved folder with a stale one would not load.
        """
        return fingerprint(self.network.state_dict())

    def tokenizer(
        self,
        column_ids: np.ndarray,
        *,
        genes: np.ndarray | None = None,
        max_length: int | None = None,
        zeros: bool = False,
        seed: int = 0,
    ) -> Tokenizer:
        """How rows of a matrix become this model's tokens.

        Parameters
        ----------
        column_ids
            (n_vars,) int64, vocabulary id of each column, -1: none.
        genes
            Ids to read, others being left out; None: all.
        max_length
            Tokens of a cell, `<cls>` included; None: the model's own.
        zeros
            Genes that a cell does not express are tokens too.
        seed
            Of the draws: ties of a bin, and which genes of a long cell are read.
        """
        from scgpt_tl.tokens.tokenize import Tokenizer  # loads numba, which a model without cells needs not

        c = self.config
        return Tokenizer(
            column_ids if genes is None else np.where(np.isin(column_ids, genes), column_ids, -1),
            self.vocab.keys,
            c.cls_id,
            cls_value=c.cls_value,
            n_bins=c.n_bins,
            spread=c.ties == "spread",
            max_length=c.max_length if max_length is None else max_length,
            seed=seed,
            zeros=zeros,
        )

    def save(self, folder: str | Path, *, card: str | None = None, overwrite: bool = False) -> Path:
        """Write a native folder: model.safetensors, config.json, vocab.json, provenance.json.

        And arrays.safetensors, where the model has `arrays`.

        It is written beside and renamed, so `folder` is whole or not there.

        Parameters
        ----------
        folder
            New or empty.
        card
            Text of MODEL_CARD.md.
        overwrite
            Replace the model that `folder` holds.

        Raises
        ------
        FileExistsError
            `folder` holds a model and `overwrite` is off, or it holds something else.
        OSError
            It cannot be written; nothing was changed.
        """
        return native.write(self, folder, card=card, overwrite=overwrite)

    def export_official(
        self,
        folder: str | Path,
        *,
        attention_names: Literal["Wqkv", "in_proj"] = "Wqkv",
        overwrite: bool = False,
    ) -> Path:
        """Write a folder for the published package: args.json, best_model.pt (float32), vocab.json.

        Parameters
        ----------
        folder
            New or empty.
        attention_names
            "Wqkv" as in the releases, "in_proj" as torch's own attention layer spells it.
        overwrite
            Replace the model that `folder` holds.

        Raises
        ------
        FileExistsError, OSError
            As for `save`.
        ValueError
            The published package has no place for some of the weights.
        """
        return official.write(self, folder, attention_names=attention_names, overwrite=overwrite)


def load_model(
    model: str | Path | Model,
    *,
    heads: Collection[Literal["gep", "gepc", "cls", "dar", "perturb"]] = (),
    ignore: Collection[str] = (),
) -> Model:
    """Load a model, strictly: every weight of the file has its place and every place its weight.

    Parameters
    ----------
    model
        A folder (native, or official: args.json, best_model.pt, vocab.json), a name of `models.available()`, or a
        `Model`, which is handed back.
    heads
        Head, or heads, that must be there. Others may be absent; `Model.coverage` says which.
    ignore
        Official folders: beginnings of parameter names to leave out.

    Returns
    -------
    The model, in eval mode on the CPU.

    Raises
    ------
    FileNotFoundError
        No such folder or name, half a folder, or a model that is downloaded by hand; the message says from where and
        where to put it.
    ValueError
        A file is truncated, changed, holds pickled code, or does not fit the others.
    """
    wanted, left_out = ((given,) if isinstance(given, str) else tuple(given) for given in (heads, ignore))
    loaded = model if isinstance(model, Model) else Model(**_read(_find(model), left_out))
    if lacking := [head for head in wanted if head not in loaded.config.heads]:
        known = [head for head in HEADS if head in loaded.config.heads]
        msg = f"model {loaded.name!r} has no head {', '.join(lacking)}; it has {', '.join(known) or 'none'}"
        raise ValueError(msg)
    return loaded


def with_random_weights(model: Model, *, rng: int | np.random.Generator = 0) -> Model:
    """The same network before any training, the baseline beside a pretrained model's results.

    Parameters
    ----------
    model
        Gives sizes and vocabulary; it is left as it is.
    rng
        Seed: the same one gives the same weights.
    """
    seed = as_seed(rng)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and no device's
        network = Network(model.config).eval()
    provenance = {"random_weights_of": model.name, "seed": seed}
    return replace(model, network=network, name=f"{model.name}-random", provenance=provenance, arrays={}, coverage=None)


def _find(model: str | Path) -> Path:
    try:
        return resolve(model)
    except FileNotFoundError:
        if str(model) in registry.ENTRIES:
            return registry.fetch(str(model))
        raise


def _read(folder: Path, ignore: Collection[str]) -> dict[str, Any]:
    if kind_of(folder) == "official":
        return official.read(folder, ignore=ignore)
    if ignore:
        msg = f"ignore={tuple(ignore)!r} is for official folders, and {folder} is none"
        raise ValueError(msg)
    return native.read(folder)

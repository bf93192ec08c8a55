"""What tells cell types: a model, what turns its scores into calls, and how both are kept. Knows no AnnData.

    finetune, head, lora    scores of the CLS head, which learned with the network, alone, or with adapters
    probe                   logistic regression on embeddings of unit length
    knn                     logarithms of the votes of the nearest embeddings of the reference

`engine.annotate` learns one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl.engine.calling import Calling
from scgpt_tl.engine.neighbors import label_votes, nearest, vote
from scgpt_tl.engine.predict import Compute, embed_rows
from scgpt_tl.models._weights import fingerprint

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from scgpt_tl.models.model import Model
    from scgpt_tl.tokens.tokenize import Tokenizer

METHODS = ("finetune", "head", "lora", "probe", "knn")
TRAINED = ("finetune", "head", "lora")

_FORMAT = 1
_AT_ONCE = 16_384  # cells whose scores are made together
_NEIGHBORS = 10
_WARMTH = 0.01  # of the votes, in cosine distance


@dataclass(frozen=True)
class Annotator:
    """A model that tells cell types, with what turns its scores into calls."""

    model: Model
    """With `labels`; a probe or kNN with its arrays."""
    method: str
    genes: np.ndarray
    """(n_genes,) int64 vocabulary ids of the genes that it learned from; it is shown no others."""
    seed: int
    """Of tied bins and of the samples of long cells."""
    calling: Calling = field(default_factory=Calling)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the scores."""
        return self.model.labels or ()

    @classmethod
    def of(cls, model: Model) -> Annotator:
        """The annotator that a model's folder holds.

        Raises
        ------
        ValueError
            The model tells no cell types, is of another version, or was changed after it learned.
        """
        kept = model.provenance.get("annotation")
        if not isinstance(kept, Mapping) or model.labels is None:
            what = "tells cell types, uncalibrated," if model.labels else "tells no cell types"
            msg = f"model {model.name!r} {what}: give reference= and labels_key= to learn from, or as model= a folder "
            raise ValueError(msg + "that tl.scgpt_annotate(..., save=) has made")
        if kept.get("format") != _FORMAT:
            msg = (
                f"the annotation of model {model.name!r} has format {kept.get('format')!r}, this scgpt_tl reads "
                f"{_FORMAT}: use the release that made it, or learn again with reference="
            )
            raise ValueError(msg)
        try:
            calling = Calling(float(kept["temperature"]), float(kept["threshold"]))
            found = cls(model, kept["method"], model.arrays["genes"], kept["seed"], calling)
            whole = kept["sha256"] == found.sha256 and _tells_of_itself(model.provenance)
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            msg = (
                f"the annotation of model {model.name!r} is not whole, or does not belong to its weights, config and "
                "classes: one of them was changed after it learned, by hand or by training on; take the folder as it "
                "was saved, or learn again with reference="
            )
            raise ValueError(msg)
        return found

    @property
    def sha256(self) -> str:
        """Of all that decides what is told."""
        arrays = {name: torch.from_numpy(np.array(x)) for name, x in self.model.arrays.items()}
        model, calling = self.model, asdict(self.calling)
        parts = [_FORMAT, self.method, calling, self.seed, list(self.classes), model.config.to_dict()]
        return sha256(json.dumps([*parts, model.vocab.sha256, model.sha256, fingerprint(arrays)]).encode()).hexdigest()

    def bundle(self, **told: Any) -> Model:
        """The model, with what `of` reads and whatever else is `told` (plain values)."""
        model = replace(self.model, arrays={**self.model.arrays, "genes": self.genes})
        kept = {"format": _FORMAT, "method": self.method, **asdict(self.calling), "seed": self.seed}
        kept |= {"sha256": replace(self, model=model).sha256, **told}
        return replace(model, provenance={**model.provenance, "annotation": kept})

    def tokenizer(self, column_ids: np.ndarray) -> Tokenizer:
        """For rows whose columns (n_vars,) are these ids of the vocabulary, -1: none."""
        return self.model.tokenizer(column_ids, genes=self.genes, seed=self.seed)

    def embeddings(
        self, rows: Iterator[tuple[int, csr_matrix]], column_ids: np.ndarray, *, total: int, compute: Compute
    ) -> np.ndarray:
        """(n, D) float32 as the method reads them: of length 1, but for the CLS head. See `scores`."""
        out = np.empty((total, self.model.config.d_model), np.float32)
        unit, tokenizer = self.method not in TRAINED, self.tokenizer(column_ids)
        embed_rows(self.model.backbone, rows, tokenizer, out, compute=compute, total=total, unit_norm=unit)
        return out

    def scores(
        self, rows: Iterator[tuple[int, csr_matrix]], column_ids: np.ndarray, *, total: int, compute: Compute
    ) -> np.ndarray:
        """(n, C) float32 class scores of `total` rows, as `Matrix.blocks` gives them."""
        return self.told(self.embeddings(rows, column_ids, total=total, compute=compute))

    def told(self, cells: np.ndarray, *, own: np.ndarray | None = None) -> np.ndarray:
        """(n, D) `embeddings` -> (n, C) float32 class scores.

        `own` (n,): the row of a kNN's reference that a cell itself is, and that does not vote.
        """
        parts = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(cells), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            parts.append(self._told(cells[some], None if own is None else own[some]))
        return np.concatenate(parts)

    def _told(self, cells: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        arrays = self.model.arrays
        if self.method == "probe":
            return (cells @ arrays["probe.coef"].T + arrays["probe.intercept"]).astype(np.float32)
        if self.method == "knn":
            reference, labels = arrays["knn.embedding"], arrays["knn.label"]
            k = min(_NEIGHBORS, len(reference) - (own is not None))
            distances, rows = nearest(cells, reference, k, own=own)
            votes = label_votes(labels, rows)
            return np.log(vote(distances, votes, len(self.classes), temperature=_WARMTH, prior=1.0))
        with torch.inference_mode():
            return self.model.heads.cls(torch.from_numpy(cells)).numpy()


def _tells_of_itself(provenance: Mapping[str, Any]) -> bool:
    """Whether all is there that results say of the model: where it starts, how it was trained, what it learned from."""
    kept, base = provenance["annotation"], provenance["base"]
    there = {"cells", "held_out", "labels_key", "counts", "sha256"} <= set(kept["reference"])
    trained = kept["method"] not in TRAINED or isinstance(provenance["train"], Mapping)
    return there and trained and {"name", "sha256"} <= set(base) and isinstance(kept["metrics"], Mapping)

"""`tl.scgpt_annotate`: cell types, learned on a reference or by a folder that has learned them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import scgpt_tl
from scgpt_tl._random import as_seed
from scgpt_tl._slots import (
    OWNER,
    SLOTS,
    UNKNOWN,
    check_anndata,
    copied,
    refuse_backed_view,
    refuse_embed_s,
    refuse_foreign,
)
from scgpt_tl.engine.annotate import check_method, learn, options_for
from scgpt_tl.engine.annotator import METHODS, Annotator
from scgpt_tl.engine.predict import ROWS
from scgpt_tl.metrics import class_scores
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._learned import check_save, compute_of, folder_for, history_columns, in_memory, returned, unheard
from scgpt_tl.tl._reference import check_side, lesson_of, read_labels, shared_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scgpt_tl.engine.calling import Calling
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.predict import Compute
    from scgpt_tl.models.model import Model

logger = logging.getLogger(__name__)
_MAKER = "tl.scgpt_annotate"


@dataclass(frozen=True)
class _Keys:
    """Where this call writes."""

    label: str
    probability: str
    probabilities: str

    @classmethod
    def of(cls, key_added: str | None) -> _Keys:
        """The default keys, or those made of one name."""
        if key_added in (None, SLOTS.label):
            return cls(SLOTS.label, SLOTS.probability, SLOTS.probabilities)
        return cls(key_added, f"{key_added}_probability", f"{key_added}_probabilities")

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """By slot."""
        return {"obs": (self.label, self.probability), "obsm": (self.probabilities,), "uns": (self.label,)}


def scgpt_annotate(  # noqa: PLR0913 (each is a choice of its own; how to train is grouped)
    query: AnnData,
    *,
    reference: AnnData | None = None,
    labels_key: str | None = None,
    model: str | Path | Model = "pbmc-mini",
    method: str = "finetune",
    train: TrainConfig | Mapping[str, Any] | None = None,
    layer: str | None = None,
    save: str | Path | None = None,
    key_added: str | None = None,
    return_model: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    rng: int | np.random.Generator = 0,
) -> AnnData | Model | tuple[AnnData, Model] | None:
    """Tell cell types (preprint, section 4.5), with probabilities that can be believed and the call "unknown".

    With `reference`: a model learns its cell types on the genes that both share, is calibrated on a tenth of each type
    that it does not learn from, and tells those of the query. Without: `model` is a folder that such a call has saved.

    Parameters
    ----------
    query
        Cells to annotate: counts or normalised values, in memory or backed.
    reference
        Cells of known type, with the same kind of values. Cells without a label are left out, and those whose label is
        "unknown", "nan", "<NA>" or "None".
    labels_key
        Column of `reference.obs` with the types.
    model
        Name, folder or `Model` to learn from; without `reference`, one that has learned.
    method
        - "finetune": all weights learn, with a new classifier on the cell embedding that starts as the probe.
        - "head": the classifier alone learns.
        - "lora": the same with low-rank adapters in place of the blocks' weights (extra `lora`).
        - "probe": logistic regression on zero-shot embeddings. Takes seconds; often as good.
        - "knn": votes of the 10 nearest cells of the reference in the zero-shot embedding.
    train
        How to train, for the first three methods: a dict of options to change, such as `{"epochs": 3, "progress":
        False}`, or a whole `TrainConfig`. By default 8,000 cells are shown in 3 to 10 epochs to a small model, a large
        one is trained as published; in either case the best epoch on the held-out cells is kept. `held_out` is the
        share of each type that is held out, for every method (a tenth). Without `reference` only `device`,
        `max_memory`, `max_tokens` and `progress` may be given.
    layer
        Layer to read, in query and reference; None is `.X`.
    save
        Folder for what was learned: `scgpt_annotate(other, model=folder)` annotates with it. Training that was cut off
        goes on when it is called again with the same arguments.
    key_added
        Write under this key instead of the defaults below.
    return_model
        Return the model that annotates (beside the copy, with `copy`).
    overwrite
        Write over slots, or a `save` folder, that hold something else; what is learned is then learned anew.
    copy
        Return a changed copy and leave `query` alone.
    rng
        Seed of everything that is learned. A saved folder keeps its own.

    Returns
    -------
    None; the copy, the model, or both where they are asked for. Sets, when all is done:

    `.obs["scgpt_pred"]` : category (n_obs,)
        The likeliest type, or "unknown": below the threshold that one of a hundred held-out cells is below (none is set
        with fewer than 50 of these), or without any gene of the model.
    `.obs["scgpt_probability"]` : float32 (n_obs,)
        Of the likeliest type, called or not; calibrated (temperature scaling).
    `.obsm["scgpt_probabilities"]` : float32 (n_obs, C)
        Of every type.
    `.uns["scgpt_pred"]` : dict
        `classes` (names of the C columns), `temperature`, `threshold`, `metrics` (of the held-out cells), `history`,
        `n_unknown`, `params`.

    With `key_added=k`: `k`, `k_probability`, `k_probabilities` and `.uns[k]`.

    Raises
    ------
    ValueError
        Labels that cannot be learned (one type, measurements), an unknown method, too few genes shared, values that
        cannot be read, no such layer, a model that annotates nothing or was changed, a slot that holds something else,
        a `save` folder with another unfinished training.
    KeyError
        No such column.
    TypeError
        `query` or `reference` is no AnnData.
    FileNotFoundError
        No such model.
    FileExistsError
        `save` holds something else.
    ImportError
        The method needs a package that is not installed.

    Examples
    --------
    >>> scgpt_tl.tl.scgpt_annotate(query, reference=reference, labels_key="cell_type", save="blood-types")
    >>> scgpt_tl.tl.scgpt_annotate(tomorrow, model="blood-types")
    """
    keys, seed = _Keys.of(key_added), as_seed(rng)
    _check_places(query, keys, overwrite=overwrite, copy=copy)
    refuse_embed_s(key_added)
    check_save(save, overwrite=overwrite)
    idle = [name for name, value in {"labels_key": labels_key, "save": save}.items() if value is not None]
    loaded, compute = _starting_model(model, method, reference, [*idle, *unheard(train)]), compute_of(train)
    with folder_for(save, "annotator") as out:
        if reference is None:
            annotator = Annotator.of(loaded)
            check_side("query", query, loaded, layer)
            shared_genes(genes_of(query, loaded.vocab).ids, annotator.genes, what="model")
        else:
            labels = read_labels(reference, labels_key)
            options = options_for(method, loaded.config, train, labels.n_cells)
            check_side("query", query, loaded, layer)
            lesson = lesson_of(reference, query, labels, loaded, layer=layer, seed=seed, share=options.held_out)
            how: dict[str, Any] = {"method": method, "options": options, "out": out, "seed": seed}
            made = learn(lesson, model=loaded, judge=_judge, overwrite=overwrite, **how)
            annotator = Annotator.of(in_memory(made) if save is None else made)
    probabilities, codes = _tell(query, annotator, layer, compute)
    if copy:
        query = copied(query)
    _write(query, keys, annotator, probabilities, codes, layer)
    return returned(query, annotator.model, copy=copy, return_model=return_model)


def _check_places(query: Any, keys: _Keys, *, overwrite: bool, copy: bool) -> None:
    """Refuse what could not be written at the end, or would write over something else."""
    check_anndata(query, "query")
    refuse_foreign(query, keys.places, key=keys.label, maker=_MAKER, overwrite=overwrite, argument="key_added")
    refuse_backed_view(query, "query", copy=copy)


def _starting_model(model: Any, method: str, reference: Any, idle: list[str]) -> Model:
    """The model to learn from or to annotate with, and no argument that would not be heard."""
    check_method(method)
    if reference is not None:
        check_anndata(reference, "reference")
        return load_model(model)
    if idle:
        msg = f"{', '.join(idle)} says how to learn, and there is no reference= to learn from"
        raise ValueError(msg)
    loaded = load_model(model)
    learned = Annotator.of(loaded).method
    if method not in (METHODS[0], learned):
        msg = f"method={method!r}: model {loaded.name!r} has learned by {learned!r}; leave method out"
        raise ValueError(msg)
    return loaded


def _judge(codes: np.ndarray, calling: Calling, probabilities: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """Scores of held-out cells, plain numbers."""
    names = np.array([*classes, UNKNOWN], dtype=object)
    called = names[calling.codes(probabilities)]
    found = class_scores(names[codes], called, probabilities=probabilities, classes=list(classes))
    kept = ("accuracy", "balanced_accuracy", "f1_macro", "ece", "n_cells", "n_unknown")
    return {name: getattr(found, name) for name in kept}


def _tell(query: AnnData, annotator: Annotator, layer: str | None, compute: Compute) -> tuple[np.ndarray, np.ndarray]:
    """(n, C) probabilities and (n,) codes, -1 unknown; a cell without any gene of the model is."""
    ids, shown = genes_of(query, annotator.model.vocab).ids, np.zeros(query.n_obs, bool)
    known = (annotator.tokenizer(ids).column_ids >= 0).astype(np.float32)

    def rows() -> Iterator[tuple[int, csr_matrix]]:
        """Blocks, read once: cells with a gene that is read are marked on the way."""
        for start, block in open_layer(query, layer).blocks(ROWS):
            shown[start : start + block.shape[0]] = block @ known > 0
            yield start, block

    scores = annotator.scores(rows(), ids, total=query.n_obs, compute=compute)
    probabilities = annotator.calling.probabilities(scores)
    codes = np.where(shown, annotator.calling.codes(probabilities), -1)
    return probabilities, codes


def _write(
    query: AnnData,
    keys: _Keys,
    annotator: Annotator,
    probabilities: np.ndarray,
    codes: np.ndarray,
    layer: str | None,
) -> None:
    """All slots, at once."""
    kept, classes = annotator.model.provenance["annotation"], list(annotator.classes)
    called = pd.Categorical.from_codes(np.where(codes < 0, len(classes), codes), categories=[*classes, UNKNOWN])
    result = {
        OWNER: _MAKER,
        "classes": np.array(classes, dtype=str),
        "temperature": annotator.calling.temperature,
        "threshold": annotator.calling.threshold,
        "n_unknown": int((codes < 0).sum()),
        "metrics": dict(kept["metrics"]),
        "history": history_columns(annotator.model),
        "params": _params(annotator, layer),
    }
    query.obs[keys.label] = pd.Series(called, index=query.obs_names)
    query.obs[keys.probability] = probabilities.max(axis=1)
    query.obsm[keys.probabilities] = probabilities
    query.uns[keys.label] = result


def _params(annotator: Annotator, layer: str | None) -> dict[str, Any]:
    """What is needed to repeat the run, in types that h5ad holds."""
    model = annotator.model
    kept, base = model.provenance["annotation"], model.provenance["base"]
    reference = {name: kept["reference"][name] for name in ("cells", "held_out", "labels_key")}
    train = {name: str(value) for name, value in model.provenance.get("train", {}).items()}
    return {
        "model": model.name,
        "weights_sha256": model.sha256,
        "base": base["name"],
        "base_sha256": base["sha256"],
        "method": annotator.method,
        "seed": annotator.seed,
        "layer": "X" if layer is None else layer,
        "n_genes": len(annotator.genes),
        "reference": reference | {"sha256": np.array(kept["reference"]["sha256"], dtype=str)},
        **({"train": train} if train else {}),
        "scgpt_tl": scgpt_tl.__version__,
        "torch": str(torch.__version__),
    }

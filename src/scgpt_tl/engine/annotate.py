"""Learning cell types: from labelled studies to an annotator, calibrated on cells that it did not learn from.

reference -> 10 % of each class held out -> the rest learns; the held-out cells choose the epoch
          -> their scores give temperature and threshold -> a model's folder that annotates anywhere
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl._compat import need
from scgpt_tl._nearest import check_choice
from scgpt_tl._random import Purpose, mix_words, stream_key
from scgpt_tl.engine.annotator import METHODS, TRAINED, Annotator
from scgpt_tl.engine.calling import ENOUGH, Calling
from scgpt_tl.engine.config import FINETUNE, TrainConfig
from scgpt_tl.engine.finetune import finetune, in_words_of_a_task
from scgpt_tl.engine.predict import ROWS, Compute
from scgpt_tl.engine.recipes import ANNOTATION
from scgpt_tl.engine.run import made_before
from scgpt_tl.models._weights import adopt, skeleton
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.objectives import class_weights

if TYPE_CHECKING:
    from scgpt_tl.core.config import ModelConfig
    from scgpt_tl.engine.study import Source

logger = logging.getLogger(__name__)

#: An annotator, and (n, C) scores and (n,) classes of the cells held out.
_Judged = tuple[Annotator, np.ndarray, np.ndarray]

HELD_OUT = 0.1
_SPLIT = 0xFFFF  # an epoch number of its own for the choice of held-out cells
_SMALL = 256  # width below which a network is trained for a laptop
_SHOWN = 8_000  # cells that a small network is shown in all; with more it is less often right on other donors


def check_method(method: str) -> str:
    """The method, if there is one of this name.

    Raises
    ------
    ValueError
        There is none; the message has the nearest.
    ImportError
        It needs a package that is not installed.
    """
    check_choice("method", method, METHODS)
    if method == "lora":
        need("peft", extra="lora")
    return method


def default_train(config: ModelConfig, n_cells: int) -> TrainConfig:
    """How to train where the user does not say.

    A network as wide as the published one is trained as published: rate 1e-4, times 0.9 after each of 10 epochs. A
    small one at the same rate on a cosine schedule, about 8,000 cells shown in 3 to 10 epochs. A tenth of each class is
    held out.
    """
    if config.d_model >= _SMALL:
        return replace(FINETUNE, cells=32, held_out=HELD_OUT)
    epochs = min(10, max(3, math.ceil(_SHOWN / max(1, n_cells))))
    how: dict[str, Any] = {"schedule": "cosine", "warmup": 0.05, "weight_decay": 0.01, "max_length": 160}
    return replace(FINETUNE, cells=32, held_out=HELD_OUT, epochs=epochs, **how)


def options_for(
    method: str, config: ModelConfig, given: TrainConfig | Mapping[str, Any] | None, n_cells: int
) -> TrainConfig:
    """Training options of a method: the default with what the user gave; which numbers learn is the method's."""
    train = default_train(config, n_cells)
    if method in ("head", "lora"):
        train = replace(train, learning_rate=train.learning_rate * 10)  # few numbers learn, from nothing
    train = train.changed(given)
    if method == "head":
        train = replace(train, freeze=tuple(dict.fromkeys((*train.freeze, "embeddings", "layers"))), lora=0)
    if method == "lora":
        train = replace(train, lora=train.lora or 8)
    if train.devices * train.nodes > 1:
        msg = (
            f"devices={train.devices}, nodes={train.nodes}: annotation learns in one process; give devices=1, or "
            "tl.scgpt_finetune(recipe='annotation') and its model as model= here"
        )
        raise ValueError(msg)
    return train


def held_out_cells(codes: np.ndarray, keys: np.ndarray, *, seed: int, share: float = HELD_OUT) -> np.ndarray:
    """Cells to hold out, a share of each class: (n,) bool.

    Parameters
    ----------
    codes
        (n,) int64 classes, -1: none.
    keys
        (n,) uint64 content hashes; the choice depends on them and the seed, not on the order of cells.
    seed
        Of the choice.
    share
        0: none.

    Notes
    -----
    A class of n cells gives share * n, rounded, and keeps one; so of a tenth, one of fewer than 5 cells gives none.
    Where that makes none at all, each class of two or more gives one.
    """
    words = mix_words(keys, stream_key(seed, Purpose.SPLIT, _SPLIT))
    chosen = np.zeros(len(codes), bool)
    cells = {code: np.flatnonzero(codes == code) for code in np.unique(codes[codes >= 0]).tolist()}
    sizes = {code: min(int(len(rows) * share + 0.5), len(rows) - 1) for code, rows in cells.items()}
    if share and not any(sizes.values()):
        sizes = {code: int(len(rows) > 1) for code, rows in cells.items()}
    for code, rows in cells.items():
        chosen[rows[np.argsort(words[rows], kind="stable")[: sizes[code]]]] = True
    return chosen


@dataclass(frozen=True)
class Lesson:
    """What is learned from."""

    train: Source
    """With labels, one for each cell."""
    held_out: Source | None
    genes: np.ndarray
    """(n_genes,) int64 vocabulary ids, sorted; columns of the sources that are other genes are named ""."""
    told: dict[str, Any]
    """What a model's folder says of the reference, plain values."""

    @property
    def classes(self) -> list[str]:
        """Names in their order, each with a cell to learn from."""
        return sorted(set(map(str, self.train.labels)))  # type: ignore[arg-type]

    def codes(self, source: Source) -> np.ndarray:
        """(n,) int64 places of a source's labels among the classes."""
        return np.searchsorted(np.array(self.classes, dtype=str), np.asarray(source.labels, dtype=str))


def learn(
    lesson: Lesson,
    *,
    model: Model,
    method: str,
    options: TrainConfig,
    out: Path,
    judge: Callable[..., dict[str, float]],
    seed: int = 0,
    overwrite: bool = False,
) -> Model:
    """An annotator in the folder `out`: the model that `Annotator.of` reads.

    A call that was cut off goes on where it was; one that has ended gives what it made.

    Parameters
    ----------
    lesson
        Cells and their classes.
    model
        To start from; it is left as it is.
    method
        See `METHODS`.
    options
        From `options_for`.
    out
        New or empty, or left by the same call.
    judge
        (codes, calling, probabilities, classes) -> scores of the held-out cells, plain numbers.
    seed
        Of everything.
    overwrite
        Replace what `out` holds, and do not go on with an earlier run.

    Raises
    ------
    FileExistsError, RuntimeError, ValueError
        `out` holds something else, another process learns in it, it holds another unfinished run.
    """
    compute = Compute.like(options)
    if method in TRAINED:
        found = _trained(lesson, model, method, options, out, seed=seed, overwrite=overwrite)
    else:
        run = _run(lesson, model, method, seed)
        with in_words_of_a_task():
            found = (None if overwrite else made_before(out, run)) or _bare(lesson, model, out.name, run)
    if "annotation" in found.provenance:  # the same call has ended before
        return Annotator.of(found).model
    annotator = Annotator(found, method, lesson.genes, seed)
    annotator, scores, codes = (_headed if method in TRAINED else _fitted)(lesson, annotator, compute)
    if len(codes) < ENOUGH:
        logger.warning(
            "only %d cells could be held out: too few to tell from which doubt on a cell is unknown", len(codes)
        )
    annotator = replace(annotator, calling=Calling.fit(scores, codes))
    probabilities = annotator.calling.probabilities(scores)
    metrics = judge(codes, annotator.calling, probabilities, annotator.classes) if len(codes) else {}
    made = annotator.bundle(metrics=metrics, reference=lesson.told)
    made.save(out, card=_card(made), overwrite=True)
    return load_model(out)


def _trained(lesson: Lesson, model: Model, method: str, options: TrainConfig, out: Path, **how: Any) -> Model:
    """A CLS head, learned with or without the rest of the network, which is shown `<cls>` as in pretraining.

    Where the network learns too, the head is one layer and starts as a probe (Kumar et al. 2022): a head that starts at
    random spends its first steps on pulling embeddings apart that were good, and does worse on other donors. Alone it
    is the published one, three layers from random weights.
    """
    _, counts = np.unique(lesson.codes(lesson.train), return_counts=True)
    begin, network = None, {"n_layers_cls": 3}
    if method != "head":
        compute = Compute.like(options)
        begin, network = partial(_begin, lesson, compute, how["seed"]), {"n_layers_cls": 1}
    name = "annotation" if begin is None else "annotation from a probe"
    recipe = replace(ANNOTATION, name=name, class_weights=class_weights(counts.tolist()), network=network)
    held_out = [] if lesson.held_out is None else [lesson.held_out]
    again: dict[str, Any] = {"validate": held_out, "begin": begin, "resume": not how["overwrite"], **how}
    options = replace(options, held_out=0.0)  # the held-out cells are a study of their own
    with in_words_of_a_task():
        return finetune([lesson.train], model=model, out=out, recipe=recipe, train=options, **again)


def _begin(lesson: Lesson, compute: Compute, seed: int, model: Model) -> None:
    """Set a head of one layer to the logistic regression on what the network tells as it is."""
    cells = _embedded(Annotator(model, "finetune", lesson.genes, seed), lesson.train, compute)
    found = _regression(cells, lesson.codes(lesson.train), len(lesson.classes))
    with torch.no_grad():
        model.heads.cls.out.weight.copy_(torch.from_numpy(found["probe.coef"]))
        model.heads.cls.out.bias.copy_(torch.from_numpy(found["probe.intercept"]))


def _run(lesson: Lesson, model: Model, method: str, seed: int) -> dict[str, Any]:
    """What makes two runs of a probe or kNN the same, as plain values."""
    sources = [lesson.train] if lesson.held_out is None else [lesson.train, lesson.held_out]
    base = {"name": model.name, "sha256": model.sha256, "fresh": []}
    codes = np.concatenate([lesson.codes(source) for source in sources])
    digest = sha256(codes.tobytes() + lesson.genes.tobytes()).hexdigest()
    annotator = {"method": method, "seed": seed, "classes": lesson.classes, "columns": digest}
    return {"data": [source.manifest for source in sources], "base": base, "annotator": annotator, "history": []}


def _bare(lesson: Lesson, model: Model, name: str, run: dict[str, Any]) -> Model:
    """The model as it is, without a CLS head that it may have of other classes."""
    classes = tuple(lesson.classes)
    heads = tuple(head for head in model.config.heads if head != "cls")
    config = replace(model.config, n_classes=len(classes), heads=heads)
    state = {name: x for name, x in model.network.state_dict().items() if not name.startswith("heads.cls.")}
    network = adopt(skeleton(config), state)
    return Model(config, model.vocab, network, name, labels=classes, batches=model.batches, provenance=run)


def _headed(lesson: Lesson, annotator: Annotator, compute: Compute) -> _Judged:
    """Scores of the held-out cells by the head that has learned."""
    if lesson.held_out is None:
        return annotator, np.empty((0, len(annotator.classes)), np.float32), np.empty(0, np.int64)
    cells = _embedded(annotator, lesson.held_out, compute)
    return annotator, annotator.told(cells), lesson.codes(lesson.held_out)


def _fitted(lesson: Lesson, annotator: Annotator, compute: Compute) -> _Judged:
    """A probe or kNN, and its scores of the held-out cells; those are neighbours too, but not of themselves."""
    cells, codes = _embedded(annotator, lesson.train, compute), lesson.codes(lesson.train)
    others, theirs = np.empty((0, cells.shape[1]), np.float32), np.empty(0, np.int64)
    if lesson.held_out is not None:
        others, theirs = _embedded(annotator, lesson.held_out, compute), lesson.codes(lesson.held_out)
    own = None
    if annotator.method == "probe":
        arrays = _regression(cells, codes, len(annotator.classes))
    else:
        own = len(cells) + np.arange(len(others))
        arrays = {"knn.embedding": np.concatenate([cells, others]), "knn.label": np.concatenate([codes, theirs])}
    annotator = replace(annotator, model=replace(annotator.model, arrays=arrays))
    return annotator, annotator.told(others, own=own), theirs


def _slack(n_cells: int) -> float:
    """scikit-learn's C, 20 / n between 0.01 and 1.

    With C = 1 on thousands of cells as many calls are right, but weights get so large that the first steps of
    fine-tuning undo them: the training loss then rises from 0.2 to 0.6 (Kang's donors); so it falls, from 0.30.
    """
    return min(1.0, max(0.01, 20 / n_cells))


def _regression(cells: np.ndarray, codes: np.ndarray, n_classes: int) -> dict[str, np.ndarray]:
    """Logistic regression on standardised embeddings (n, D), as coefficients of the embeddings as they are."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = cells.mean(0, dtype=np.float64), cells.std(0, dtype=np.float64) + 1e-12
    weights = class_weights(np.bincount(codes, minlength=n_classes).tolist())
    fit = LogisticRegression(C=_slack(len(cells)), max_iter=2000, class_weight=dict(enumerate(weights)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # near enough: it is calibrated
        fit.fit((cells - mean) / spread, codes)
    coef, intercept = fit.coef_, fit.intercept_
    if n_classes == 2:  # scikit-learn gives the second class's scores, those of the first being 0
        coef, intercept = np.concatenate([0 * coef, coef]), np.concatenate([0 * intercept, intercept])
    coef = coef / spread
    arrays = {"probe.coef": coef, "probe.intercept": intercept - coef @ mean}
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def _embedded(annotator: Annotator, source: Source, compute: Compute) -> np.ndarray:
    ids, rows = annotator.model.vocab.ids(source.genes), source.matrix.blocks(ROWS)
    return annotator.embeddings(rows, ids, total=source.n_cells, compute=compute)


def _card(model: Model) -> str:
    """MODEL_CARD.md, from what the folder knows."""
    kept, base = model.provenance["annotation"], model.provenance["base"]
    reference, n_genes = kept["reference"], len(model.arrays["genes"])
    names = model.labels or ()
    classes = ", ".join(f"{name} ({n:,})" for name, n in zip(names, reference["counts"], strict=True))
    return f"""# {model.name}

Tells {len(names)} cell types, learned by `scgpt_tl.tl.scgpt_annotate` (method "{kept["method"]}").

- From `{base["name"]}`, weights {base["sha256"][:12]}.
- On {reference["cells"]:,} cells, labelled in `{reference["labels_key"]}`, and {n_genes:,} genes.
- Data (sha256): {", ".join(map(str, reference["sha256"]))}.
- Types: {classes}.

{_scores_in_words(kept)}
Use: `scgpt_tl.tl.scgpt_annotate(query, model="this folder")`.

## Limits

The held-out cells come from the same donors and laboratories as the rest: on others it is less often right, and surer
than it should be. Of cells whose type the reference lacks, only a part is called unknown. Compare with PCA and
logistic regression.
"""


def _scores_in_words(kept: Mapping[str, Any]) -> str:
    scores = kept["metrics"]
    if not scores:
        return "No cell was held out: probabilities are not calibrated, and no cell is called unknown.\n"
    shown = "\n".join(f"| {name} | {value:.4g} |" for name, value in scores.items())
    return f"""On {kept["reference"]["held_out"]:,} cells held out, which chose the epoch and calibrated it too:

| score | value |
|---|---|
{shown}

Temperature {kept["temperature"]:.3f}; a cell is called unknown below the probability {kept["threshold"]:.3f}.
"""

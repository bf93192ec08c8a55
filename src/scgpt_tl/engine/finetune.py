"""An existing model, trained on with another recipe. Knows no AnnData."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.run import Job, carry_out, data_card, tokenizer_for

if TYPE_CHECKING:
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.recipes import Recipe
    from scgpt_tl.engine.study import Source, Study
    from scgpt_tl.models.model import Model

logger = logging.getLogger(__name__)


def finetune(
    sources: Sequence[Source],
    *,
    model: Model,
    out: Path,
    recipe: Recipe,
    train: TrainConfig,
    validate: Sequence[Source] = (),
    begin: Callable[[Model], object] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    seed: int = 0,
) -> Model:
    """Train `model` on; see `tl.scgpt_finetune`, which opens the data. The model itself is left as it is.

    `validate`: studies for the held-out loss, in place of a share of the cells. `begin` may change the weights of the
    adapted model in place before the first step; the recipe's name should tell.
    """
    norm, joined = model.config.input_norm, model.config.batch_in_heads
    with_batches = recipe.needs_batches or norm == "domain" or joined
    every = (*sources, *validate)
    labels = _names(source.labels for source in every) if recipe.needs_labels else None
    batches = _names(source.batches for source in every) if with_batches else None
    _check(recipe, labels, batches)
    adapted, fresh = adapt(model, recipe, labels=labels, batches=batches, seed=seed)
    if fresh:
        logger.info("weights that %r does not have start at random: %s", model.name, ", ".join(fresh))
    studies, others = ([_study(source, adapted, train, seed) for source in some] for some in (sources, validate))
    base = {"name": model.name, "sha256": model.sha256, "fresh": fresh}
    told = {"data": [source.manifest for source in sources], "base": base, "labels": labels, "batches": batches}
    told["columns"] = [_digest(study) for study in (*studies, *others)]
    if validate:
        told["validate"] = [source.manifest for source in validate]
    how: dict[str, Any] = {"seed": seed, "resume": resume, "overwrite": overwrite}
    job = Job(adapted, studies, others, recipe=recipe, train=train, out=out, told=told, card=_card, begin=begin, **how)
    return carry_out(job)


@contextmanager
def in_words_of_a_task() -> Iterator[None]:
    """Errors of `finetune`, with the names that its arguments have in functions of one task."""
    try:
        yield
    except (FileExistsError, FloatingPointError, RuntimeError, ValueError) as error:
        said = re.sub(r"\bout=", "save=", str(error)).replace("resume=False", "overwrite=True")
        if said == str(error):
            raise
        raise type(error)(said) from error


def adapt(
    model: Model,
    recipe: Recipe,
    *,
    labels: Sequence[str] | None = None,
    batches: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Model, list[str]]:
    """A copy of a model with the parts that a recipe needs, and the names of weights that start at random.

    A head for other classes, and tables for other batches, start at random; so does a layer whose width changes because
    batches join its input, equations (8) and (9).
    """
    old = model.config
    changes: dict[str, Any] = dict(recipe.network)
    changes["heads"] = tuple(dict.fromkeys((*old.heads, *recipe.heads)))
    changes["flag_unknown"] = old.flag_unknown or recipe.corruption == "generative"
    if labels is not None:
        changes["n_classes"] = len(labels)
    if batches is not None:
        changes["n_batches"] = len(batches)
    config = replace(old, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and no device's
        network = Network(config)
    ours = network.state_dict()
    other = _of_others(model, labels, batches)
    kept = {
        name: tensor
        for name, tensor in model.network.state_dict().items()
        if name in ours and tensor.shape == ours[name].shape and not name.startswith(other)
    }
    network.load_state_dict(ours | kept)
    made = replace(
        model,
        config=config,
        network=network,
        labels=model.labels if labels is None else tuple(labels),
        batches=model.batches if batches is None else tuple(batches),
        coverage=None,
        arrays={},
    )
    return made, sorted(set(ours) - set(kept))


def _of_others(model: Model, labels: Sequence[str] | None, batches: Sequence[str] | None) -> tuple[str, ...]:
    """Beginnings of the names of weights that stand for other classes or batches, whatever their shape."""
    found: tuple[str, ...] = ()
    if labels is not None and model.labels != tuple(labels):
        found += ("heads.cls.out.",)
    if batches is not None and model.batches != tuple(batches):
        found += ("heads.dar.out.", "heads.batches.table.", "backbone.input_norm.")
    return found or ("\0",)


def _names(columns: Any) -> list[str]:
    """Every value of the studies' columns, sorted; missing ones left out."""
    found: set[str] = set()
    for column in columns:
        if column is not None:
            found |= {str(value) for value in column if value is not None and value == value}  # NaN
    return sorted(found)


def _codes(column: np.ndarray | None, names: Sequence[str] | None) -> np.ndarray | None:
    """(n_obs,) int64 place of each value among the names, -1 where it is missing."""
    if column is None or names is None:
        return None
    place = {name: i for i, name in enumerate(names)}
    return np.array([-1 if value is None else place.get(str(value), -1) for value in column], np.int64)


def _study(source: Source, model: Model, train: TrainConfig, seed: int) -> Study:
    study = source.study(tokenizer_for(model, source.genes, train, seed))
    return replace(study, labels=_codes(source.labels, model.labels), batches=_codes(source.batches, model.batches))


def _digest(study: Study) -> str:
    """What the run knows of a study beside its counts: labels, batches, which column is which gene."""
    parts = (study.labels, study.batches, study.tokenizer.column_ids)
    return sha256(b"|".join(b"" if x is None else np.ascontiguousarray(x).tobytes() for x in parts)).hexdigest()


def _check(recipe: Recipe, labels: list[str] | None, batches: list[str] | None) -> None:
    if labels is not None and len(labels) < 2:
        found = labels or "none"
        msg = f"recipe {recipe.name!r} tells cell types apart and found {found}: give labels_key= with two or more"
        raise ValueError(msg)
    if labels is not None and len(recipe.class_weights) not in (0, len(labels)):
        msg = (
            f"recipe {recipe.name!r} has {len(recipe.class_weights)} class_weights for {len(labels)} classes: {labels}"
        )
        raise ValueError(msg)
    if batches is not None and len(batches) < 2:
        msg = f"recipe {recipe.name!r} works on batches and found {batches or 'none'}: give batch_key= with two or more"
        raise ValueError(msg)


def _card(name: str, provenance: dict[str, Any]) -> str:
    """MODEL_CARD.md, from what the run knows."""
    base = provenance["base"]
    return f"""# {name}

`{base["name"]}` (weights {base["sha256"][:12]}) fine-tuned by `scgpt_tl.tl.scgpt_finetune` on:

{data_card(provenance)}
## Limits

It knows the cells above; on others it may be worse than the model that it started from. Compare both, and HVG + PCA.
"""

"""`tl.scgpt_finetune`: an existing model, trained on with your cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl._random import as_seed
from scgpt_tl.engine.config import FINETUNE
from scgpt_tl.engine.finetune import finetune
from scgpt_tl.engine.recipes import GENERATIVE, Recipe, recipe_named
from scgpt_tl.engine.run import check_out
from scgpt_tl.models.model import load_model
from scgpt_tl.tl._corpus import open_corpus

if TYPE_CHECKING:
    import numpy as np

    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.models.model import Model


def scgpt_finetune(
    data: Any,
    *,
    model: str | Path | Model,
    out: str | Path,
    recipe: Recipe | str = GENERATIVE,
    labels_key: str | None = None,
    batch_key: str | None = None,
    train: TrainConfig | Mapping[str, Any] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    rng: int | np.random.Generator = 0,
) -> Model:
    """Train a model on (preprint, section 4.5), with any recipe.

    `tl` functions for one task each stand above it; this is the door for all else: more cells of a tissue, objectives
    of your own, parts that stay frozen, low-rank adapters.

    Parameters
    ----------
    data
        As for `tl.scgpt_pretrain`. Genes that the model does not know are left out.
    model
        Name, folder or `Model`; it is left as it is.
    out
        Folder of the new model. Checkpoints go to a folder beside it, named with `.training`, until then.
    recipe
        "generative", "generative+contrast", "masked", "integration" (needs `batch_key`), "integration+kin" (needs
        `labels_key`: groups of cells that are to find each other), "annotation" (needs `labels_key`), or a `Recipe`.
    labels_key, batch_key
        Columns of `.obs`. Cells with a missing label are used and not asked for one.
    train
        How to train: a dict of options to change, or a whole `TrainConfig`. By default 10 epochs at rate 1e-4 that
        falls by a tenth after each, the best of them kept.
    resume
        Go on with a run of the same arguments that was cut off; one that is finished is loaded.
    overwrite
        Replace the model that `out` holds.
    rng
        Seed of new weights, order, samples and splits.

    Returns
    -------
    The new model, as `load_model(out)` gives it. `labels` and `batches` name its classes and batches; `provenance`
    says which weights it started from, and which of them at random.

    Raises
    ------
    ValueError
        Too few genes of a study are known, fewer than two labels or batches where the recipe needs them, and as for
        `tl.scgpt_pretrain`.
    FileExistsError, NotADirectoryError, PermissionError, FloatingPointError, KeyboardInterrupt, RuntimeError
        As for `tl.scgpt_pretrain`.
    """
    options, asked, place = FINETUNE.changed(train), recipe_named(recipe), check_out(out)  # before files are read
    loaded = load_model(model)
    sources = open_corpus(data, model_vocab=loaded.vocab, labels_key=labels_key, batch_key=batch_key)
    return finetune(
        sources,
        model=loaded,
        out=place,
        recipe=asked,
        train=options,
        resume=resume,
        overwrite=overwrite,
        seed=as_seed(rng),
    )

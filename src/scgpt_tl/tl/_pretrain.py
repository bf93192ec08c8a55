"""`tl.scgpt_pretrain`: a model from cells alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl._random import as_seed
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.pretrain import check_request, pretrain
from scgpt_tl.engine.recipes import GENERATIVE_CONTRAST, Recipe, recipe_named
from scgpt_tl.engine.run import check_out
from scgpt_tl.tl._corpus import open_corpus

if TYPE_CHECKING:
    import numpy as np

    from scgpt_tl.models.model import Model


def scgpt_pretrain(
    data: Any,
    *,
    out: str | Path,
    size: str = "mini",
    train: TrainConfig | Mapping[str, Any] | None = None,
    recipe: Recipe | str = GENERATIVE_CONTRAST,
    min_cells: int = 5,
    validate: Any = None,
    resume: bool = True,
    overwrite: bool = False,
    rng: int | np.random.Generator = 0,
) -> Model:
    """Pretrain a scGPT on unlabelled cells by generation (preprint, section 4.3).

    In each step a share of every cell's genes is hidden. A first pass predicts their values from the known genes (gene
    prompts, equation 10) and from the cell embedding (GEPC, equation 12); a second pass predicts them again with that
    cell embedding in the place of `<cls>` (cell prompts). The default recipe shows each cell twice, with known and
    hidden genes exchanged, and asks the two embeddings to find each other among the minibatch. The gene table starts
    from the singular vectors of the corpus.

    Parameters
    ----------
    data
        A corpus: AnnData, h5ad file or zarr store, folder of these, a list of any of them (one study each), or a
        mapping that names them. Counts in `.X`. Files are read in blocks and never held whole. `tl.open_corpus` opens a
        corpus with more options: weights, files to skip.
    out
        Folder of the finished model. Checkpoints go to a folder beside it, named with `.training`, until then.
    size
        "nano" (2 layers of 64, for tests), "mini" (3 of 128, the shipped model) or "human" (12 of 512, as published).
    train
        How to train: a `TrainConfig`, or a dict of its options.
    recipe
        What to ask: a name of `engine.recipes.RECIPES`, e.g. "generative" without the contrast, or a `Recipe`.
    min_cells
        A gene joins the vocabulary when this many cells of the corpus express it.
    validate
        Studies, as in `data`, for the held-out loss; None holds a share of the cells out.
    resume
        Go on with a run of the same arguments that was cut off, at the step where it was saved; one that is finished is
        loaded.
    overwrite
        Replace the model that `out` holds.
    rng
        Seed of weights, order, samples and splits.

    Returns
    -------
    The model, as `load_model(out)` gives it. `provenance` holds the corpus's manifest, the options and the history of
    losses.

    Raises
    ------
    ValueError
        No cells, no gene in `min_cells` cells, negative or missing values, a damaged file, an unknown size, or `resume`
        over a run with other arguments; the message names what differs.
    FileExistsError
        `out` holds another model or other files, or is a file; or the folder of checkpoints holds something else.
    NotADirectoryError, PermissionError
        `out` cannot be made.
    FloatingPointError
        The loss became no number, in the last step, too: nothing is saved, and a checkpoint, if any, is from before.
    KeyboardInterrupt
        Ctrl-C: the step was finished and saved, the same call goes on.
    RuntimeError
        Another process trains into `out`.
    """
    options, asked, place = TrainConfig().changed(train), recipe_named(recipe), check_out(out)
    check_request(size=size, train=options, min_cells=min_cells)  # before files are read
    return pretrain(
        open_corpus(data),
        out=place,
        size=size,
        train=options,
        recipe=asked,
        min_cells=min_cells,
        validate=[] if validate is None else open_corpus(validate),
        resume=resume,
        overwrite=overwrite,
        seed=as_seed(rng),
    )

"""`tl.scgpt_pretrain`: a model from cells alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
from scipy import sparse

from scgpt_tl._random import as_seed
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.pretrain import pretrain
from scgpt_tl.engine.recipes import GENERATIVE_CONTRAST, Recipe
from scgpt_tl.pp._blocks import open_layer

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.models.model import Model

_ROWS = 4096


def scgpt_pretrain(
    data: AnnData | str | Path | Sequence[AnnData | str | Path] | Mapping[str, AnnData],
    *,
    out: str | Path,
    size: str = "mini",
    train: TrainConfig | None = None,
    recipe: Recipe = GENERATIVE_CONTRAST,
    min_cells: int = 5,
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
        AnnData, h5ad file, folder of h5ad files, or a list of these: one study each; a mapping names them.
        Counts in `.X`, gene symbols in `.var_names`. Held in memory.
    out
        Folder of the finished model. Checkpoints go to a folder beside it, named with `.training`, until then.
    size
        "nano" (2 layers of 64, for tests), "mini" (3 of 128, the shipped model) or "human" (12 of 512, as published).
    train
        How to train; None is `TrainConfig()`.
    recipe
        What to ask; `engine.recipes.GENERATIVE` leaves the contrast out.
    min_cells
        A gene joins the vocabulary when this many cells of the corpus express it.
    resume
        Go on with a run of the same arguments that was cut off; one that is finished is loaded.
    overwrite
        Replace the model that `out` holds.
    rng
        Seed of weights, order, samples and splits.

    Returns
    -------
    The model, as `load_model(out)` gives it. `provenance` holds the data's names and sizes, the options and the history
    of losses.

    Raises
    ------
    ValueError
        No cells, no gene in `min_cells` cells, negative or missing values, an unknown size, or `resume` over a run with
        other arguments.
    FileExistsError
        `out` holds another model.
    """
    return pretrain(
        _read(data),
        out=Path(out),
        size=size,
        train=train or TrainConfig(),
        recipe=recipe,
        min_cells=min_cells,
        resume=resume,
        overwrite=overwrite,
        seed=as_seed(rng),
    )


def _read(data: Any) -> dict[str, tuple[sparse.csr_matrix, list[str]]]:
    """Study -> (counts, gene names)."""
    found: dict[str, tuple[sparse.csr_matrix, list[str]]] = {}
    named = data.items() if isinstance(data, Mapping) else enumerate(_items(data), 1)
    for key, item in named:
        name = item.stem if isinstance(item, Path) else f"study{key}" if isinstance(key, int) else key
        if name in found:
            msg = f"two files are named {name!r}: their names tell studies apart, rename one"
            raise ValueError(msg)
        adata = ad.read_h5ad(item) if isinstance(item, Path) else item
        blocks = [block for _, block in open_layer(adata).blocks(_ROWS)]
        rows = sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(adata.shape)
        if not np.isfinite(rows.data).all() or (rows.data < 0).any():
            msg = f"{name} holds negative or non-finite values: give counts (scaled data keep theirs in .raw)"
            raise ValueError(msg)
        found[name] = rows, adata.var_names.tolist()
    if not any(rows.shape[0] for rows, _ in found.values()):
        msg = "there are no cells to train on; give AnnData, h5ad files or a folder of them"
        raise ValueError(msg)
    return found


def _items(data: Any) -> list[Any]:
    """AnnData and existing files, folders opened."""
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.exists():
            msg = f"{path} does not exist; give h5ad files, a folder of them, or AnnData"
            raise FileNotFoundError(msg)
        return sorted(path.rglob("*.h5ad")) if path.is_dir() else [path]
    if isinstance(data, ad.AnnData):
        return [data]
    return [item for part in data for item in _items(part)]

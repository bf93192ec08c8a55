"""`tl.scgpt_pretrain`: a model from cells alone."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

import scgpt_tl
from scgpt_tl._random import as_seed
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.data import Study
from scgpt_tl.engine.recipes import GENERATIVE_CONTRAST, Recipe
from scgpt_tl.engine.start import start_from, svd_table
from scgpt_tl.engine.train import fit
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.pp._blocks import open_layer
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

#: size -> layers, width, heads, perceptron width
SIZES: dict[str, dict[str, int]] = {
    "nano": {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 64},
    "mini": {"n_layers": 3, "d_model": 128, "n_heads": 4, "d_ff": 256},
    "human": {"n_layers": 12, "d_model": 512, "n_heads": 8, "d_ff": 512},
}
_ROWS = 4096


def scgpt_pretrain(
    data: AnnData | str | Path | Sequence[AnnData | str | Path],
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
        AnnData, h5ad file, folder of h5ad files, or a list of these: one study each. Counts in `.X`, gene symbols in
        `.var_names`. Held in memory.
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
    if size not in SIZES:
        msg = f"size={size!r} is unknown; give one of {', '.join(map(repr, SIZES))}"
        raise ValueError(msg)
    train, seed, out = train or TrainConfig(), as_seed(rng), Path(out)
    cells = _read(data)
    vocab = _vocabulary(cells.values(), min_cells)
    shape: dict[str, Any] = {"n_tokens": len(vocab), "pad_id": vocab.pad_id, "cls_id": vocab.cls_id, **SIZES[size]}
    config = ModelConfig(**shape, flag_unknown=True, dropout=0.1)
    studies = [
        Study(name, rows, _tokenizer(genes, vocab, config, train.max_length, seed))
        for name, (rows, genes) in cells.items()
    ]
    run = _run(studies, vocab, size=size, train=train, recipe=recipe, seed=seed)
    if done := _finished(out, run, resume=resume, overwrite=overwrite):
        return done
    folder = out.with_name(f"{out.name}.training")
    _claim(folder, run, resume=resume)
    network = _network(config, studies, seed)
    history = fit(network, studies, recipe, train, folder=folder, seed=seed, resume=resume)
    provenance = {**run, "history": history, "scgpt_tl": scgpt_tl.__version__, "torch": torch.__version__}
    Model(config, vocab, network, name=out.name, provenance=provenance).save(
        out, card=_card(out.name, provenance), overwrite=overwrite
    )
    shutil.rmtree(folder, ignore_errors=True)
    return load_model(out)


def _read(data: Any) -> dict[str, tuple[sparse.csr_matrix, list[str]]]:
    """Study -> (counts, gene names)."""
    found: dict[str, tuple[sparse.csr_matrix, list[str]]] = {}
    for i, item in enumerate(_items(data)):
        name = item.stem if isinstance(item, Path) else f"study{i + 1}"
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


def _vocabulary(cells: Iterable[tuple[sparse.csr_matrix, list[str]]], min_cells: int) -> GeneVocab:
    counts: Counter[str] = Counter()
    for rows, genes in cells:
        expressed = np.bincount(rows.indices, minlength=len(genes))
        for gene, n in zip(genes, expressed.tolist(), strict=True):
            counts[gene] += n
    kept = sorted(gene for gene, n in counts.items() if n >= min_cells)
    if not kept:
        msg = f"no gene is expressed in min_cells={min_cells} cells"
        raise ValueError(msg)
    return GeneVocab(kept)


def _tokenizer(genes: list[str], vocab: GeneVocab, config: ModelConfig, max_length: int, seed: int) -> Tokenizer:
    return Tokenizer(
        vocab.ids(genes),
        vocab.keys,
        config.cls_id,
        cls_value=config.cls_value,
        n_bins=config.n_bins,
        spread=config.ties == "spread",
        max_length=max_length,
        seed=seed,
    )


def _network(config: ModelConfig, studies: list[Study], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(config)
    start_from(network.backbone.genes.table.weight, svd_table(studies, config.d_model, seed=seed))
    return network


def _run(
    studies: list[Study], vocab: GeneVocab, *, size: str, train: TrainConfig, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """What makes two runs the same."""
    data = [
        {
            "name": study.name,
            "cells": study.rows.shape[0],
            "genes": study.rows.shape[1],
            "sha256": sha256(study.rows.indices.tobytes() + study.rows.data.tobytes()).hexdigest(),
        }
        for study in studies
    ]
    options = {k: v for k, v in asdict(train).items() if k not in ("progress", "device", "precision")}
    asked: dict[str, Any] = {"name": recipe.name, "weights": dict(recipe.weights), "ratios": list(recipe.ratios)}
    asked |= {"detach_prompt": recipe.detach_prompt, "temperature": recipe.temperature}
    run = {"data": data, "size": size, "train": options, "recipe": asked, "seed": seed, "vocab_sha256": vocab.sha256}
    return json.loads(json.dumps(run))


def _finished(out: Path, run: dict[str, Any], *, resume: bool, overwrite: bool) -> Model | None:
    """The model of this very run, if `out` holds it."""
    if overwrite or not out.exists() or not any(out.iterdir()):
        return None
    model = load_model(out)
    if resume and all(model.provenance.get(key) == value for key, value in run.items()):
        return model
    msg = f"out={str(out)!r} holds another model, {model.name!r}: give another folder, or overwrite=True if it may go"
    raise FileExistsError(msg)


def _claim(folder: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Make the checkpoints' folder ours, or refuse to go on with another run's."""
    mark = folder / "run.json"
    if resume and mark.exists():
        held = json.loads(mark.read_text())
        differ = sorted(key for key in run if held.get(key) != run[key])
        if differ:
            msg = (
                f"{folder} holds an unfinished run with other {', '.join(differ)}: repeat its arguments, give another "
                "out=, or resume=False to start anew"
            )
            raise ValueError(msg)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(run, indent=1))


def _card(name: str, provenance: dict[str, Any]) -> str:
    """MODEL_CARD.md, from what the run knows."""
    data, train, history = provenance["data"], provenance["train"], provenance["history"]
    total = sum(study["cells"] for study in data)
    losses = "\n".join(
        f"| {h['epoch'] + 1} | {h.get('train/loss', float('nan')):.4f} | {h.get('held_out/loss', float('nan')):.4f} |"
        for h in history
    )
    studies = "\n".join(f"- {study['name']}: {study['cells']:,} cells, {study['genes']:,} genes" for study in data)
    return f"""# {name}

A scGPT of size "{provenance["size"]}" pretrained by `scgpt_tl.tl.scgpt_pretrain` on {total:,} unlabelled cells:

{studies}

{train["epochs"]} epochs of {train["cells"]} cells a step, up to {train["max_length"]} tokens a cell, recipe
"{provenance["recipe"]["name"]}" {provenance["recipe"]["weights"]}, seed {provenance["seed"]}.
{train["held_out"]:.0%} of the cells were held out for the second column.

| epoch | training loss | held-out loss |
|---|---|---|
{losses}

## Limits

A corpus of this size shows few tissues and few laboratories. Genes that it lacks are not read at all, cell types that
it lacks are placed by the genes they share with others. Compare with HVG + PCA before you rely on it.
"""

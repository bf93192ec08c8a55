"""A model from cells alone: vocabulary, start, training, provenance. Knows no AnnData, so that it runs without."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import scgpt_tl
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.data import Study
from scgpt_tl.engine.predict import Compute
from scgpt_tl.engine.start import start_from, svd_table
from scgpt_tl.engine.train import fit
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scipy import sparse

    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.recipes import Recipe

    #: Study -> (counts (n_obs, n_vars), gene names (n_vars,)).
    Cells = Mapping[str, tuple[sparse.csr_matrix, list[str]]]

#: size -> layers, width, heads, perceptron width; the splits alone keep the small ones from learning cells by heart
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 64, "dropout": 0.0},
    "mini": {"n_layers": 3, "d_model": 128, "n_heads": 4, "d_ff": 256, "dropout": 0.0},
    "human": {"n_layers": 12, "d_model": 512, "n_heads": 8, "d_ff": 512, "dropout": 0.2},
}


def pretrain(
    cells: Cells,
    *,
    out: Path,
    size: str,
    train: TrainConfig,
    recipe: Recipe,
    min_cells: int = 5,
    resume: bool = True,
    overwrite: bool = False,
    seed: int = 0,
) -> Model:
    """Train a model of `size` on studies held in memory; see `tl.scgpt_pretrain`, which reads them."""
    if size not in SIZES:
        msg = f"size={size!r} is unknown; give one of {', '.join(map(repr, SIZES))}"
        raise ValueError(msg)
    Compute(device=train.device).torch_device()  # a device that is not there is said now, not after the preparation
    vocab = _vocabulary(cells.values(), min_cells)
    shape: dict[str, Any] = {"n_tokens": len(vocab), "pad_id": vocab.pad_id, "cls_id": vocab.cls_id, **SIZES[size]}
    config = ModelConfig(**shape, flag_unknown=True)
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
    provenance = {**run, "history": history, "scgpt_tl": scgpt_tl.__version__, "torch": str(torch.__version__)}
    Model(config, vocab, network, name=out.name, provenance=provenance).save(
        out, card=_card(out.name, provenance), overwrite=overwrite
    )
    shutil.rmtree(folder, ignore_errors=True)
    return load_model(out)


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
        if any(folder.iterdir()) and not mark.exists():
            msg = f"{folder} is where checkpoints go, and it holds something else: move that, or give another out="
            raise FileExistsError(msg)
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

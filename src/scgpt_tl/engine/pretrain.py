"""A model from cells alone: vocabulary, start, training, provenance. Knows no AnnData, so that it runs without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tl._nearest import check_choice
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine import devices
from scgpt_tl.engine.run import Job, carry_out, data_card, fabric_for, tokenizer_for
from scgpt_tl.engine.study import Source, expressed
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model
from scgpt_tl.pp._check import LEAST_SHARE

if TYPE_CHECKING:
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.recipes import Recipe

#: size -> layers, width, heads, perceptron width; the splits alone keep the small ones from learning cells by heart
SIZES: dict[str, dict[str, Any]] = {
    "nano": {"n_layers": 2, "d_model": 64, "n_heads": 4, "d_ff": 64, "dropout": 0.0},
    "mini": {"n_layers": 3, "d_model": 128, "n_heads": 4, "d_ff": 256, "dropout": 0.0},
    "human": {"n_layers": 12, "d_model": 512, "n_heads": 8, "d_ff": 512, "dropout": 0.2},
}


def pretrain(
    sources: Sequence[Source],
    *,
    out: Path,
    size: str,
    train: TrainConfig,
    recipe: Recipe,
    min_cells: int = 5,
    validate: Sequence[Source] = (),
    resume: bool = True,
    overwrite: bool = False,
    seed: int = 0,
) -> Model:
    """Train a model of `size` on a corpus; see `tl.scgpt_pretrain`, which opens it."""
    check_request(size=size, train=train, min_cells=min_cells)
    fabric = devices.begin(fabric_for(out, train))
    vocab = devices.from_first(fabric, lambda: _vocabulary(sources, min_cells))  # one process reads the corpus through
    model = _untrained(vocab, size, recipe, seed)
    studies, others = (
        [source.study(tokenizer_for(model, source.genes, train, seed)) for source in group]
        for group in (sources, validate)
    )
    for study in others:
        if (share := (study.tokenizer.column_ids >= 0).mean()) < LEAST_SHARE:
            need = f"at least {LEAST_SHARE:.0%} are needed"
            msg = f"validate: {share:.0%} of the genes of {study.name!r} are in the corpus, {need}"
            raise ValueError(msg)
    told: dict[str, Any] = {"data": [source.manifest for source in sources], "size": size}
    told["validate"] = [source.manifest for source in validate]
    how: dict[str, Any] = {"seed": seed, "resume": resume, "overwrite": overwrite, "informed": True}
    job = Job(model, studies, others, recipe=recipe, train=train, out=out, told=told, card=_card, **how)
    return carry_out(job, fabric)


def check_request(*, size: object, train: TrainConfig, min_cells: object) -> None:
    """Refuse what cannot be asked for, whatever the corpus.

    Raises
    ------
    ValueError
        An unknown size, adapters, `min_cells` that is no number.
    """
    check_choice("size", size, SIZES)
    if train.lora:
        msg = f"lora={train.lora} would leave a new network's random weights as they are: it is for fine-tuning, give 0"
        raise ValueError(msg)
    if not isinstance(min_cells, Real):
        msg = f"min_cells={min_cells!r}: a number of cells is needed"
        raise ValueError(msg)


def _vocabulary(sources: Sequence[Source], min_cells: int) -> GeneVocab:
    """Genes that enough cells of the corpus express."""
    counts: Counter[str] = Counter()
    for source in sources:
        # a gene's repeated columns have one number, that of its cells
        counts.update(dict(zip(source.genes, expressed(source).tolist(), strict=True)))
    kept = sorted(gene for gene, n in counts.items() if gene and n >= min_cells)
    if not kept:
        most = max((n for gene, n in counts.items() if gene), default=0)
        cure = f"give min_cells={most} or less, or more cells" if most else "give counts in .X"
        msg = f"no gene is expressed in min_cells={min_cells} cells, the commonest in {most}: {cure}"
        raise ValueError(msg)
    return GeneVocab(kept)


def _untrained(vocab: GeneVocab, size: str, recipe: Recipe, seed: int) -> Model:
    shape: dict[str, Any] = {"n_tokens": len(vocab), "pad_id": vocab.pad_id, "cls_id": vocab.cls_id, **SIZES[size]}
    config = ModelConfig(**shape, flag_unknown=recipe.corruption == "generative", **recipe.network)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and no device's
        return Model(config, vocab, Network(config))


def _held_out(provenance: dict[str, Any]) -> str:
    if others := provenance.get("validate"):
        return f"{', '.join(study['name'] for study in others)}, which did not train, served"
    return f"{provenance['train']['held_out']:.0%} of the cells were held out"


def _card(name: str, provenance: dict[str, Any]) -> str:
    """MODEL_CARD.md, from what the run knows."""
    total = sum(study["cells"] for study in provenance["data"])
    return f"""# {name}

A scGPT of size "{provenance["size"]}" pretrained by `scgpt_tl.tl.scgpt_pretrain` on {total:,} unlabelled cells:

{data_card(provenance)}
{_held_out(provenance)} for the second of each pair.

## Limits

A corpus of this size shows few tissues and few laboratories. Genes that it lacks are not read at all, cell types that
it lacks are placed by the genes they share with others. Compare with HVG + PCA before you rely on it.
"""

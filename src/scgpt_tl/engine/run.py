"""From a start to a finished folder: claim the place, train in every process, save, clear up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import scgpt_tl
from scgpt_tl.engine import checkpoint, devices
from scgpt_tl.engine.start import start_from, svd_table
from scgpt_tl.engine.train import Task, fit
from scgpt_tl.models._folder import check_place
from scgpt_tl.models._weights import adopt, skeleton
from scgpt_tl.models.model import Model, load_model

if TYPE_CHECKING:
    import numpy as np
    from lightning.fabric import Fabric

    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.recipes import Recipe
    from scgpt_tl.engine.study import Study
    from scgpt_tl.tokens.tokenize import Tokenizer


@dataclass(frozen=True)
class Job:
    """All that a run is made of; it travels to other processes whole."""

    model: Model
    """Weights to start from, and all that the finished model keeps."""
    studies: list[Study]
    validate: list[Study]
    """For the held-out loss; empty: a share of the cells."""
    recipe: Recipe
    train: TrainConfig
    out: Path
    told: dict[str, Any]
    """What makes two runs the same, beside recipe, options and seed: data and start."""
    card: Callable[[str, dict[str, Any]], str]
    """(name, provenance) -> text of MODEL_CARD.md."""
    seed: int = 0
    resume: bool = True
    overwrite: bool = False
    informed: bool = False
    """The gene table starts from the singular vectors of the studies; else as it is."""
    begin: Callable[[Model], object] | None = None
    """May change the weights to start from; not asked where nothing is left to train, or a checkpoint has them."""

    @property
    def run(self) -> dict[str, Any]:
        """What makes two runs the same, as plain values."""
        recipe = {**vars(self.recipe), "weights": dict(self.recipe.weights), "network": dict(self.recipe.network)}
        said = {
            "train": self.train.learned,
            "recipe": recipe,
            "seed": self.seed,
            "vocab_sha256": self.model.vocab.sha256,
        }
        return json.loads(json.dumps(self.told | said))

    @property
    def folder(self) -> Path:
        """Where checkpoints lie until the model is whole."""
        return _training(self.out)


def _training(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def check_out(out: str | Path) -> Path:
    """The path of a folder that a run can make or replace; asked first, since a corpus takes long to read.

    Raises
    ------
    ValueError, FileExistsError, NotADirectoryError, PermissionError
        See `check_place`; or something else lies where checkpoints go.
    """
    place = check_place(out)
    checkpoint.refuse_others(_training(place))
    return place


def fabric_for(out: Path, train: TrainConfig) -> Fabric:
    """Where a model that goes to `out` is trained, if it can be; see `check_out` and `devices.fabric_for`."""
    check_out(out)
    return devices.fabric_for(train, out.with_name(f"{out.name}.logs"))


def carry_out(job: Job, fabric: Fabric | None = None) -> Model:
    """Train and save, or load what the same call has made before.

    Parameters
    ----------
    job
        The same in every process.
    fabric
        Where processes have met already; None: they meet here.

    Raises
    ------
    FileExistsError
        `out` holds another model.
    """
    fabric = devices.begin(fabric or fabric_for(job.out, job.train))
    if not devices.from_first(fabric, lambda: _finished(job) is not None):  # one look for all processes
        devices.launch(fabric, _work, job=job)
    return load_model(job.out)


def _work(fabric: Fabric, job: Job) -> None:
    """What every process does."""
    if fabric.world_size > 1:
        devices.unshare(job.model.network)
    with ExitStack() as held:
        claim = checkpoint.claimed(job.folder, job.run, resume=job.resume, done=lambda: _finished(job))
        if not devices.from_first(fabric, lambda: held.enter_context(claim)):
            return  # another caller ended this very run while we prepared
        table = devices.from_first(fabric, lambda: _table(job))
        if table is not None:
            start_from(job.model.network.backbone.genes.table.weight, table)
        if job.begin is not None and not _goes_on(job):
            job.begin(job.model)
        how: dict[str, Any] = {"validate": job.validate, "resume": job.resume}
        task = Task(job.model.network, job.studies, job.recipe, job.train, job.folder, job.seed, **how)
        history = fit(fabric, task)
        devices.from_first(fabric, lambda: _save(job, history))


def _table(job: Job) -> np.ndarray | None:
    """(n_tokens, D) to start the gene table from; None where it stays, or a checkpoint brings another."""
    if not job.informed or _goes_on(job):
        return None
    return svd_table(job.studies, job.model.config.d_model, seed=job.seed)


def _goes_on(job: Job) -> bool:
    """Whether a checkpoint brings the weights."""
    return job.resume and (job.folder / checkpoint.LAST).exists()


def _save(job: Job, history: list[dict[str, float]]) -> None:
    """The finished folder; checkpoints are no longer needed."""
    versions = {"scgpt_tl": scgpt_tl.__version__, "torch": str(torch.__version__)}
    provenance = {**job.run, "history": history, **versions}
    model = replace(job.model, network=_whole(job), name=job.out.name, provenance=provenance)
    model.save(job.out, card=job.card(job.out.name, provenance), overwrite=job.overwrite)
    shutil.rmtree(job.folder, ignore_errors=True)


def _whole(job: Job) -> Network:
    """The trained network on the CPU; where its weights lie in shards, as the last checkpoint has them."""
    if job.train.strategy != "fsdp":
        return job.model.network.cpu()
    best = job.folder / checkpoint.BEST
    file = best if best.exists() else job.folder / checkpoint.LAST
    kept = torch.load(file, weights_only=True, map_location="cpu")["module"]
    return adopt(skeleton(job.model.config), {name.removeprefix("network."): x for name, x in kept.items()})


def _finished(job: Job) -> Model | None:
    """The model of this very run, if `out` holds it."""
    return None if job.overwrite else made_before(job.out, job.run if job.resume else None)


def made_before(out: Path, run: Mapping[str, Any] | None) -> Model | None:
    """The model in `out`, where it is of this very run.

    Raises
    ------
    FileExistsError
        It is of another run, or of any where `run` is None.
    """
    model = earlier(out)
    if model is None or (run is not None and all(model.provenance.get(key) == value for key, value in run.items())):
        return model
    raise another(out, model)


def earlier(out: Path) -> Model | None:
    """The model in `out`, where there is anything."""
    return load_model(out) if out.exists() and any(out.iterdir()) else None


def another(out: Path, model: Model) -> FileExistsError:
    """The error where `out` holds what this call has not made."""
    return FileExistsError(
        f"out={str(out)!r} holds another model, {model.name!r}, or one of a call with other arguments: give another "
        "folder, or overwrite=True if it may go"
    )


def tokenizer_for(model: Model, genes: list[str], train: TrainConfig, seed: int) -> Tokenizer:
    """How one study's rows become the model's tokens in training."""
    return model.tokenizer(model.vocab.ids(genes), max_length=train.max_length, zeros=train.zeros, seed=seed)


def data_card(provenance: dict[str, Any]) -> str:
    """The lines that every card of ours has: data, options, losses."""
    train, recipe, history = provenance["train"], provenance["recipe"], provenance["history"]
    studies = "\n".join(f"- {x['name']}: {x['cells']:,} cells, {x['genes']:,} genes" for x in provenance["data"])
    names = [name for name in ("loss", *recipe["weights"]) if any(f"train/{name}" in epoch for epoch in history)]
    rows = [["epoch", *names], ["---"] * (1 + len(names))]
    rows += [[str(epoch["epoch"] + 1), *(_training_and_held_out(epoch, name) for name in names)] for epoch in history]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""{studies}

{train["epochs"]} epochs of {train["cells"]} cells a step, up to {train["max_length"]} tokens a cell, recipe
"{recipe["name"]}" {recipe["weights"]}, seed {provenance["seed"]}. Losses of training / held-out cells:

{table}
"""


def _training_and_held_out(epoch: dict[str, float], name: str) -> str:
    found = (epoch.get(f"{cells}/{name}") for cells in ("train", "held_out"))
    return " / ".join("-" if x is None else f"{x:.4f}" for x in found)

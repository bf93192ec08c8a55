"""One training loop for every recipe, on Lightning Fabric.

    plan of an epoch -> feed -> passes of a step -> losses -> gradients summed over passes and devices -> AdamW

A step is the same whatever its passes and devices: sums over hidden positions are divided by one count for all of them.
Cells are compared with those of the same pass, from all devices; a norm per batch (DSBN) sees one pass of one device.
What a step draws (dropout) follows (seed, step, device, pass) alone, so that a run which was cut off anywhere goes on
bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from scgpt_tl.engine import checkpoint, devices, tune
from scgpt_tl.engine._stop import Stop
from scgpt_tl.engine.data import Draw, Epoch, Plan, feed
from scgpt_tl.engine.passes import Learner, Work, budget, cut, seed_dropout
from scgpt_tl.engine.progress import Progress, learning_rate
from scgpt_tl.engine.recipes import Recipe, hide

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.engine.study import Study
    from scgpt_tl.tokens.corrupt import Minibatch
    from scgpt_tl.tokens.tokenize import TokenBlock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is trained on what, and where it is kept meanwhile."""

    network: Network
    """Trained in place; has the heads of `recipe`."""
    studies: list[Study]
    recipe: Recipe
    train: TrainConfig
    folder: Path
    """Where checkpoints go, already `claimed`."""
    seed: int
    """Of order, samples, splits and dropout."""
    validate: Sequence[Study] = ()
    """For the held-out loss; empty: a share of the cells."""
    resume: bool = True
    """Go on from the checkpoint in `folder`."""


def fit(fabric: Fabric, task: Task) -> list[dict[str, float]]:
    """Train a network and return its history, a dictionary per epoch.

    Parameters
    ----------
    fabric
        From `devices.fabric_for`, launched.
    task
        The same in every process.

    Raises
    ------
    FloatingPointError
        The loss or a weight is no number; a checkpoint, where there is one, is from before.
    KeyboardInterrupt, SystemExit
        Ctrl-C or SIGTERM, after the step was finished and saved.
    OSError
        A checkpoint could not be written.
    """
    network = task.network
    with torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []):
        tune.leave_out(network, task.recipe)
        tune.freeze(network, task.train.freeze)
        with tune.adapters(network, task.train.lora, seed=task.seed):
            history = _Fit(fabric, task).run()
    for each in fabric.loggers:
        each.finalize("success")
    network.requires_grad_(True)
    network.eval()
    return history


class _Fit:
    """The state of one call of `fit`."""

    def __init__(self, fabric: Fabric, task: Task):
        self.fabric, self.task, self.recipe, self.train, self.seed = fabric, task, task.recipe, task.train, task.seed
        self.network, self.folder, self.studies = task.network, task.folder, task.studies
        recipe, train, validate = task.recipe, task.train, list(task.validate)
        self.others = validate or self.studies
        options: dict[str, Any] = {"cells": train.cells, "ratios": recipe.ratios, "seed": task.seed}
        self.plan = Plan(self.studies, **options, held_out=0.0 if validate else train.held_out, training=True)
        held_out = Plan(self.others, **options, held_out=1.0 if validate else train.held_out, training=False)
        self.held_out = held_out.epoch(0)
        self._refuse_nothing(train)
        self.steps = sum(len(self.plan.epoch(number)) for number in range(train.epochs))
        self.progress = Progress(world=fabric.world_size)
        self.budget = budget(self.network, train, recipe)
        self._seen: tuple[Draw, Minibatch] | None = None  # of the last step
        self.network.backbone.recompute = train.checkpointing
        if train.compile:
            self.network.backbone.compile_blocks()
        learner = Learner(self.network, recipe, devices.gather if fabric.world_size > 1 else lambda x: x)
        self.module: Any = fabric.setup_module(learner)
        learned = [p for p in self.module.parameters() if p.requires_grad]
        self._precision: Any = fabric.strategy.precision
        self._scaled = self._precision.precision == "16-mixed"
        self.optimizer: Any = fabric.setup_optimizers(
            # a fused step does the scaler's work too late for clipping
            torch.optim.AdamW(learned, lr=train.learning_rate, weight_decay=train.weight_decay, fused=not self._scaled)
        )

    def _refuse_nothing(self, train: TrainConfig) -> None:
        """Refuse a run without a step, and one that waits for a held-out loss that never comes."""
        if not len(self.plan.epoch(0)):
            msg = f"no cell is left to train on with held_out={train.held_out}: give more cells, or held_out=0"
            raise ValueError(msg)
        if train.patience and not len(self.held_out):
            msg = (
                f"patience={train.patience} needs a held-out loss, and no cell is held out: raise held_out, or validate"
            )
            raise ValueError(msg)
        if train.keep == "best" and not len(self.held_out):
            logger.warning("keep='best' without held-out cells: the last epoch is kept")

    def run(self) -> list[dict[str, float]]:
        """All epochs that are left."""
        last = self.folder / checkpoint.LAST
        if self.fabric.broadcast(self.task.resume and last.exists()):  # one disk, many views of it
            self._load()
        with Stop() as stop:
            while self.progress.epoch < self.train.epochs and not self._patience_is_over():
                self._train_epoch(stop)
                self._end_epoch()
        best = self.folder / checkpoint.BEST
        if self.train.keep == "best" and self.fabric.broadcast(best.exists()):
            checkpoint.read(self.fabric, best, {"module": self.module})
        return self.progress.history

    def _train_epoch(self, stop: Stop) -> None:
        """What is left of an epoch."""
        done, epoch = self.progress, self.plan.epoch(self.progress.epoch)
        self.module.train()
        silent = not self.train.progress or self.fabric.global_rank > 0
        shown = int(done.sums.get("cells", 0))
        bar = tqdm(total=epoch.n_cells, initial=shown, unit="cell", disable=silent, smoothing=0.1)
        with bar, closing(self._feed(epoch, self.studies, start=done.position)) as feed:
            bar.set_description(f"epoch {done.epoch + 1}/{self.train.epochs}")
            for draw, minibatch in feed:
                parts, self._seen = self._step(draw, minibatch), (draw, minibatch)
                (cells,) = devices.summed(self.fabric, draw.weight * len(draw.rows))
                done.add({f"train/{name}": value for name, value in parts.items()}, int(cells))
                done.step, done.position = done.step + 1, done.position + 1
                bar.set_postfix(loss=f"{done.means()['train/loss']:.4f}", refresh=False)
                bar.update(int(cells))
                self._stop_if_asked(stop)
                if done.step % self.train.save_every == 0 and done.position < len(epoch):
                    self._check()
                    self._save()

    # ---- one step

    def _step(self, draw: Draw, minibatch: Minibatch) -> dict[str, float]:
        """Forward, backward and update; with less memory than that takes, in more passes."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.train, self.progress.step, self.progress.epoch, steps=self.steps)
        minibatch = minibatch.to(self.fabric.device)
        while True:
            try:
                parts = self._gradients(minibatch)
                break
            except torch.OutOfMemoryError:
                self._halve(minibatch)
        most = self.train.clip or math.inf
        norm: Any = self.fabric.clip_gradients(self.module, self.optimizer, max_norm=most, error_if_nonfinite=False)
        norm = 0.0 if self._scaled else float(norm)  # the scaler skips a step that overflows
        for what, number in (("the loss", parts["loss"]), ("a gradient", norm)):
            if not math.isfinite(number):
                self._refuse(what, parts, self._cells(draw))
        self.optimizer.step()
        return parts

    def _gradients(self, minibatch: Minibatch) -> dict[str, float]:
        """Gradients of a step, summed over its passes and devices; the losses."""
        self.optimizer.zero_grad()
        found = dict.fromkeys(("loss", *self.recipe.asked), 0.0)
        parts = self._cut(minibatch)
        for i, work in enumerate(parts):
            seed_dropout(self.fabric, self.seed, self.progress.step, i)
            with self.fabric.no_backward_sync(self.module, enabled=i + 1 < len(parts)):
                total, each = self.module(work)
                self.fabric.backward(total * self.fabric.world_size)  # gradients are averaged over devices
            for name, value in {"loss": total, **each}.items():
                found[name] += float(value.detach())
        return dict(zip(found, devices.summed(self.fabric, *found.values()), strict=True))

    def _cut(self, minibatch: Minibatch) -> list[Work]:
        done = self.progress
        tokens = min((n for n in (self.budget, done.limit) if n), default=None)
        return cut(self.fabric, minibatch, step=done.step, tokens=tokens, at_least=self.train.accumulate)

    def _halve(self, minibatch: Minibatch) -> None:
        """Fewer tokens in a pass, or the error again where that cannot help."""
        tokens = min(n for n in (self.progress.limit, self.budget, minibatch.cells.n_tokens) if n)
        if self.fabric.world_size > 1 or minibatch.n_cells == 1 or tokens <= int(minibatch.cells.lengths.max()):
            raise  # the error that is being handled
        torch.cuda.empty_cache()
        self.progress.limit = tokens // 2
        logger.warning(
            "out of memory: going on with max_tokens=%d; the run is no longer bit-equal to one with more memory",
            self.progress.limit,
        )

    # ---- numbers that are none

    def _check(self, held_out: dict[str, float] | None = None) -> None:
        """Refuse weights that the last update spoilt, before any of them is written.

        They may be numbers still, and too large for a loss: that of the held-out cells, else of the last step's, tells.
        """
        parts = {name.removeprefix("held_out/"): value for name, value in (held_out or {}).items()}
        where = "on the cells held out"
        if not parts and self._seen is not None:
            parts, where = self._again(self._seen[1]), self._cells(self._seen[0])
        if not math.isfinite(parts.get("loss", 0.0)):
            self._refuse("the loss", parts, where)
        spoilt = not all(bool(torch.isfinite(weight).all()) for weight in self.module.parameters())
        if devices.largest(self.fabric, spoilt)[0]:  # a process may hold a part of them
            self._refuse("a weight", parts, where)

    @torch.no_grad()
    def _again(self, minibatch: Minibatch) -> dict[str, float]:
        """Losses of a step's cells with the weights as they are after it."""
        self.module.eval()
        found = self._losses(minibatch)
        self.module.train()
        return dict(zip(found, devices.summed(self.fabric, *found.values()), strict=True))

    def _cells(self, draw: Draw) -> str:
        rows = ", ".join(map(str, draw.rows[:8].tolist())) + (" ..." if len(draw.rows) > 8 else "")
        return f"on cells {rows} of {self.studies[draw.study].name!r}"

    def _refuse(self, what: str, parts: dict[str, float], where: str) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
        kept = (self.folder / checkpoint.LAST).exists()
        said = f"a checkpoint in {self.folder} is from before" if kept else "no checkpoint was written before"
        mends = f"A lower learning_rate or {'clip' if self.train.clip else 'clip=1.0'} may help"
        mends += ", which makes another run (resume=False)" if kept else ""
        if self._precision.precision != "32-true":
            mends += ", or precision='32-true'" + (", with which this one goes on" if kept else "")
        msg = f"{what} is no number at step {self.progress.step} ({shown}), {where}; {said}. {mends}"
        raise FloatingPointError(msg)

    # ---- data

    def _feed(self, epoch: Epoch, studies: list[Study], *, start: int = 0) -> Generator[tuple[Draw, Minibatch]]:
        shards = {"rank": self.fabric.global_rank, "world": self.fabric.world_size}
        return feed(epoch, studies, self._prepare, start=start, **shards)

    def _prepare(self, study: Study, block: TokenBlock, draw: Draw) -> Minibatch:
        cells = block.batch(np.arange(len(block.keys)))
        per_cell = {"label": study.labels, "batch": study.batches}
        given = {name: torch.from_numpy(x[draw.rows]) for name, x in per_cell.items() if x is not None}
        made = hide(
            self.recipe,
            replace(cells, **given),
            block.keys,
            study.tokenizer.gene_keys,
            ratio=draw.ratio,
            mask_value=self.network.config.mask_value,
            seed=self.seed,
            epoch=draw.epoch,
        )
        return made if draw.weight else made.mute()

    # ---- epochs

    def _end_epoch(self) -> None:
        done, held_out = self.progress, self._held_out()
        self._check(held_out)
        found = done.means() | held_out
        self.fabric.log_dict(found, step=done.step)
        for each in self.fabric.loggers:
            each.save()  # a run may end at any moment
        if done.end_epoch(found) and self.train.keep == "best":
            checkpoint.write(self.fabric, self.folder / checkpoint.BEST, {"module": self.module})
        self._save()

    @torch.no_grad()
    def _held_out(self) -> dict[str, float]:
        """Losses on the cells that do not train, means over cells."""
        if not len(self.held_out):
            return {}
        seen = Progress()
        self.module.eval()
        with closing(self._feed(self.held_out, self.others)) as feed:
            for draw, minibatch in feed:
                self._add_held_out(seen, draw, minibatch)
        return seen.means()

    def _add_held_out(self, seen: Progress, draw: Draw, minibatch: Minibatch) -> None:
        found = self._losses(minibatch)
        cells, *sums = devices.summed(self.fabric, draw.weight * len(draw.rows), *found.values())
        seen.add({f"held_out/{name}": x for name, x in zip(found, sums, strict=True)}, int(cells))

    def _losses(self, minibatch: Minibatch) -> dict[str, float]:
        """Of cells that do not train, on this device."""
        found = dict.fromkeys(("loss", *self.recipe.asked), 0.0)
        for work in self._cut(minibatch.to(self.fabric.device)):
            work.step = max(work.step, self.recipe.prompt_after)  # all that is asked
            total, each = self.module(work)
            for name, value in {"loss": total, **each}.items():
                found[name] += float(value)
        return found

    def _patience_is_over(self) -> bool:
        return 0 < self.train.patience <= self.progress.waited

    # ---- going on

    def _save(self) -> None:
        scaler = self._precision.scaler.state_dict() if self._scaled else {}
        kept = {"progress": vars(self.progress), "scaler": scaler}
        checkpoint.write(self.fabric, self.folder / checkpoint.LAST, self._state() | kept)

    def _load(self) -> None:
        path = self.folder / checkpoint.LAST
        kept = checkpoint.read(self.fabric, path, self._state())
        world = self.fabric.world_size
        with checkpoint.refusing_damage(path):
            self.progress = Progress.of(kept["progress"])
            if self._scaled and kept["scaler"]:
                self._precision.scaler.load_state_dict(kept["scaler"])
        if self.progress.world != world:
            logger.warning(
                "%s was written by %d processes and goes on with %d: losses stay the same, dropout does not, so the "
                "run is no longer bit-equal to an unbroken one", path, self.progress.world, world,
            )  # fmt: skip
        self.progress.world = world
        logger.info("going on from step %d of %s", self.progress.step, path)

    def _state(self) -> dict[str, Any]:
        return {"module": self.module, "optimizer": self.optimizer}

    def _stop_if_asked(self, stop: Stop) -> None:
        """Save and end when a signal has come to any process."""
        (number,) = devices.largest(self.fabric, stop.signal or 0)
        if number:
            stop.signal = int(number)
            self._check()
            self._save()
            msg = f"stopped and saved after step {self.progress.step}; the same call goes on from there"
            raise stop.error(msg)

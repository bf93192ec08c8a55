"""One training loop for every recipe, on Lightning."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch.utils.data import DataLoader

from scgpt_tl._random import Purpose, stream_key
from scgpt_tl.engine.data import Minibatches, Plan, Study
from scgpt_tl.engine.predict import Compute
from scgpt_tl.engine.recipes import Recipe, losses

if TYPE_CHECKING:
    from pathlib import Path

    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.tokens.batch import CellBatch

logger = logging.getLogger(__name__)

_LAST = "last"  # checkpoint file, without suffix


class Trainee(lightning.LightningModule):
    """A network, a recipe, a schedule."""

    def __init__(self, network: Network, recipe: Recipe, train: TrainConfig, *, steps: int, seed: int):
        super().__init__()
        self.network, self.recipe, self.train_config = network, recipe, train
        self.steps, self.seed = steps, seed
        self.history: list[dict[str, float]] = []

    def on_train_batch_start(self, batch: CellBatch, batch_idx: int) -> None:
        """Dropout follows (seed, step) alone, so that a resumed run repeats it."""
        torch.manual_seed(int(stream_key(self.seed, Purpose.DROPOUT, self.global_step)) >> 1)

    def training_step(self, batch: CellBatch, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: CellBatch, batch_idx: int) -> torch.Tensor:
        return self._step(batch, "held_out")

    def _step(self, batch: CellBatch, stage: str) -> torch.Tensor:
        found = losses(self.network, batch, self.recipe)
        values = {f"{stage}/{name}": part for name, part in (found.parts | {"loss": found.total}).items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=batch.n_cells, prog_bar=stage == "train")
        return found.total

    def on_train_epoch_end(self) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        self.history.append({"epoch": self.current_epoch, "step": self.global_step} | metrics)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]

    def configure_optimizers(self) -> Any:
        config = self.train_config
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        """Learning rate at a step, as a share of its peak."""
        warm = max(1, int(self.steps * self.train_config.warmup))
        if step < warm:
            return (step + 1) / warm
        done = min(1.0, (step - warm) / max(1, self.steps - warm))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def fit(
    network: Network,
    studies: list[Study],
    recipe: Recipe,
    train: TrainConfig,
    *,
    folder: Path,
    seed: int,
    resume: bool = True,
) -> list[dict[str, float]]:
    """Train `network` in place and return its history, a dictionary per epoch.

    A checkpoint is written to `folder` after each epoch; with `resume` a run that was cut off goes on from there.
    """
    plan, held_out = (
        Plan(studies, cells=train.cells, recipe=recipe, seed=seed, held_out=train.held_out, training=training)
        for training in (True, False)
    )
    data = Minibatches(studies, recipe, seed)
    trainee = Trainee(network, recipe, train, steps=train.epochs * len(plan), seed=seed)
    # one file, written over: a version counter would give a resumed run's file another name
    options: dict[str, Any] = {"every_n_epochs": 1, "save_on_train_epoch_end": True, "enable_version_counter": False}
    saver = ModelCheckpoint(dirpath=folder, filename=_LAST, save_top_k=1, **options)
    last = folder / f"{_LAST}.ckpt"
    found = last if resume and last.exists() else None
    if found:
        logger.info("resuming from %s", found)
    loaders = [DataLoader(data, sampler=sampler, batch_size=None) for sampler in (plan, held_out)]
    trainer = _trainer(train, folder, saver, validate=len(held_out) > 0)
    with _quiet(), _interruptible(), torch.random.fork_rng():
        trainer.fit(trainee, loaders[0], loaders[1] if len(held_out) else None, ckpt_path=found, weights_only=True)
    network.eval()
    return trainee.history


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's warnings of what is meant here."""
    with warnings.catch_warnings():
        for message in ("Checkpoint directory", "The '.*_dataloader' does not have many workers", ".*LeafSpec"):
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays what it is: Lightning ends the process, and leaves it deaf to the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _trainer(train: TrainConfig, folder: Path, saver: ModelCheckpoint, *, validate: bool) -> lightning.Trainer:
    cuda = Compute(device=train.device).torch_device().type == "cuda"
    precision: Any = train.precision if train.precision != "auto" else "bf16-mixed" if cuda else "32-true"
    return lightning.Trainer(
        max_epochs=train.epochs,
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        precision=precision,
        gradient_clip_val=train.clip or None,
        callbacks=[saver, *([TQDMProgressBar(refresh_rate=10)] if train.progress else [])],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=train.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        use_distributed_sampler=False,
    )

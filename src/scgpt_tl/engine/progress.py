"""Where a run stands, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgpt_tl.engine.config import TrainConfig


@dataclass
class Progress:
    """Where a run stands: all of it is in a checkpoint."""

    epoch: int = 0
    position: int = 0
    """Steps done of this epoch."""
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of this epoch: cells, and each loss times the cells of its step."""
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = math.inf
    waited: int = 0
    """Epochs since the best."""
    limit: int | None = None
    """Tokens of a pass, found when memory ran out."""
    world: int = 1
    """Processes."""

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Progress:
        """As `vars` has kept it.

        Raises
        ------
        ValueError
            Fields are missing, or are none of ours.
        """
        if differ := set(kept) ^ {each.name for each in fields(cls)}:
            msg = f"progress has other fields: {', '.join(sorted(differ))}"
            raise ValueError(msg)
        return cls(**kept)

    def add(self, parts: dict[str, float], cells: float) -> None:
        """Count a step."""
        self.sums["cells"] = self.sums.get("cells", 0.0) + cells
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * cells

    def means(self) -> dict[str, float]:
        """Losses so far in this epoch."""
        return {name: value / self.sums["cells"] for name, value in self.sums.items() if name != "cells"}

    def end_epoch(self, found: dict[str, float]) -> bool:
        """Note the epoch's losses, and tell whether its held-out loss is the best so far."""
        self.history.append({"epoch": self.epoch, "step": self.step} | found)
        value = found.get("held_out/loss", math.nan)
        better = value < self.best
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        self.epoch, self.position, self.sums = self.epoch + 1, 0, {}
        return better


def learning_rate(train: TrainConfig, step: int, epoch: int, *, steps: int) -> float:
    """Of a step, the first one being 0, in a run of `steps`."""
    warm = int(steps * train.warmup)
    if step < warm:
        return train.learning_rate * (step + 1) / warm
    if train.schedule == "epoch":
        return train.learning_rate * train.decay**epoch
    if train.schedule == "constant":
        return train.learning_rate
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return train.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))

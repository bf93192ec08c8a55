"""How to train, as a value; imports nothing, so that notebooks can make one without loading torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the one source of these options."""

    epochs: int = 10
    cells: int = 64
    """Cells per minibatch."""
    max_length: int = 256
    """Tokens of a cell in training, `<cls>` included; another sample of a longer cell's genes in each epoch."""
    learning_rate: float = 1e-3
    """Peak of the schedule: linear warm-up, then cosine to a tenth."""
    warmup: float = 0.05
    """Share of all steps."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest gradient norm."""
    held_out: float = 0.02
    """Share of cells that only validate."""
    device: str = "auto"
    precision: str = "auto"
    """`auto`: bf16-mixed on CUDA, 32-true elsewhere."""
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "cells", "max_length", "learning_rate"):
            if not getattr(self, name) > 0:
                msg = f"TrainConfig({name}={getattr(self, name)}): a positive number is needed"
                raise ValueError(msg)
        for name in ("warmup", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                msg = f"TrainConfig({name}={getattr(self, name)}): a share from 0 to below 1 is needed"
                raise ValueError(msg)

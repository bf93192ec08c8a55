"""How to train, as a value; imports nothing heavy, so that notebooks can make one without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

Schedule = Literal["cosine", "epoch", "constant"]

#: Options that may change while a run goes on: they say where and how it is computed, not what is learned.
FREE = frozenset(
    ("max_tokens", "max_memory", "checkpointing", "compile", "save_every", "loggers", "progress", "precision", "device")
) | {"devices", "nodes", "strategy"}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the one source of these options: the command line and its help are made from it.

    Options of the first block decide what is learned; a run goes on only with the same ones. Those of the second say
    where and how it is computed, and may change between one sitting and the next.
    """

    epochs: int = 10
    """Passes over the cells."""
    cells: int = 64
    """Cells per optimiser step, over all devices together."""
    max_length: int = 256
    """Tokens of a cell in training, `<cls>` included; another sample of a longer cell's genes in each epoch."""
    zeros: bool = False
    """Show genes that a cell does not express too (published fine-tuning); without them it is twice as fast (S.3)."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    schedule: Schedule = "cosine"
    """After a linear warm-up: cosine to a tenth; `epoch`: times `decay` after each epoch, as published; constant."""
    decay: float = 0.9
    """Factor per epoch of `schedule="epoch"`."""
    warmup: float = 0.05
    """Share of all steps over which the rate rises."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest gradient norm; 0: none."""
    held_out: float = 0.02
    """Share of cells that only validate."""
    patience: int = 0
    """Stop after so many epochs without a better held-out loss; 0: never."""
    keep: Literal["last", "best"] = "last"
    """Weights to end with: the last epoch's, or those of the best held-out loss."""
    freeze: tuple[str, ...] = ()
    """Parts that do not learn: `genes`, `values`, `embeddings` (both), `layers`, `layers:6` (the first 6), `heads`."""
    lora: int = 0
    """Rank of low-rank adapters in all blocks, trained in place of their weights and merged at the end; 0: none."""
    accumulate: int = 1
    """Passes that a step is cut into, at least; objectives that compare cells compare those of one pass."""

    max_tokens: int | None = None
    """Tokens in one pass; halved when an accelerator runs out of memory."""
    max_memory: int | str | None = None
    """Memory for activations, in bytes or as "8GB"; sets `max_tokens`."""
    checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Compile the blocks with `torch.compile`."""
    save_every: int = 1000
    """Steps between checkpoints; one is written after each epoch too."""
    devices: int = 1
    """Processes that share each step's cells; on CUDA one GPU each."""
    nodes: int = 1
    """Machines with `devices` each."""
    strategy: str = "auto"
    """Lightning's: "ddp", "ddp_spawn", "ddp_notebook", "fsdp"; `auto`: ddp where there are several devices."""
    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`; `auto`: CUDA where there is one."""
    precision: str = "auto"
    """`32-true`, `bf16-mixed`, `16-mixed`; `auto`: bf16-mixed on CUDA, 32-true elsewhere."""
    loggers: tuple[str, ...] = ()
    """Lightning's loggers beside our own history: `tensorboard`, `csv`, `wandb`, `mlflow`, where installed."""
    progress: bool = True
    """Show a bar with cells per second, loss and the time left."""

    def __post_init__(self) -> None:
        for name in ("freeze", "loggers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # YAML gives a list
        for name in ("epochs", "cells", "max_length", "learning_rate", "accumulate", "save_every", "devices", "nodes"):
            if not getattr(self, name) > 0:
                msg = f"TrainConfig({name}={getattr(self, name)}): a positive number is needed"
                raise ValueError(msg)
        for name in ("warmup", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                msg = f"TrainConfig({name}={getattr(self, name)}): a share from 0 to below 1 is needed"
                raise ValueError(msg)
        for name in ("patience", "lora", "clip", "weight_decay"):
            if getattr(self, name) < 0:
                msg = f"TrainConfig({name}={getattr(self, name)}): 0 or more is needed"
                raise ValueError(msg)
        for name, known in (("schedule", get_args(Schedule)), ("keep", ("last", "best"))):
            if getattr(self, name) not in known:
                msg = f"TrainConfig({name}={getattr(self, name)!r}): give one of {', '.join(known)}"
                raise ValueError(msg)

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> TrainConfig:
        """From plain values, as a YAML or JSON file holds them.

        Raises
        ------
        ValueError
            An option that is unknown; the message gives the nearest name.
        """
        names = [f.name for f in fields(cls)]
        for key in options:
            if key not in names:
                near = get_close_matches(str(key), names, 1)
                hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}"
                msg = f"unknown training option {key!r}" + hint
                raise ValueError(msg)
        return cls(**options)

    @classmethod
    def read(cls, file: str | Path) -> TrainConfig:
        """From a YAML file of options.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            It is no mapping of options, or one of them is unknown.
        """
        import yaml

        try:
            options = yaml.safe_load(Path(file).read_text()) or {}
        except yaml.YAMLError as error:
            msg = f"{file} is not YAML: {' '.join(str(error).split())}"
            raise ValueError(msg) from error
        if not isinstance(options, Mapping):
            msg = f"{file} holds {type(options).__name__}, expected lines of `option: value`"
            raise ValueError(msg)
        return cls.from_mapping(options)

    @property
    def learned(self) -> dict[str, Any]:
        """Options that decide what is learned, as plain values: two runs with the same ones are one run."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}

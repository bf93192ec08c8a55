"""How to train, as a value; imports nothing heavy, so that notebooks can make one without loading torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from scgpt_tl._nearest import nearest
from scgpt_tl.engine._fields import convert, docs, expected, hints, parse_bytes

Schedule = Literal["cosine", "epoch", "constant"]

#: What `freeze=` knows.
PARTS = ("genes", "values", "embeddings", "layers", "heads")

#: Options that may change while a run goes on: they say where and how it is computed, not what is learned.
FREE = frozenset(
    ("max_tokens", "max_memory", "checkpointing", "compile", "save_every", "loggers", "progress", "precision", "device")
) | {"devices", "nodes", "strategy"}

#: Graphics memory -> options for the 12-layer, 512-wide network (51 M parameters) and cells of up to 1,200 tokens.
#: `max_memory` leaves 2 to 4 GB for weights, CUDA and fragments. Computed from sizes, not measured on such cards.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "8GB": {"lora": 8, "checkpointing": True, "max_memory": "6GB"},
    "16GB": {"lora": 8, "max_memory": "13GB"},
    "24GB": {"lora": 16, "max_memory": "20GB"},
}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "schedule": get_args(Schedule),
    "keep": ("last", "best"),
    "precision": ("auto", "32-true", "bf16-mixed", "16-mixed"),
    "strategy": ("auto", "ddp", "ddp_spawn", "ddp_notebook", "fsdp"),
    "loggers": ("tensorboard", "csv", "wandb", "mlflow"),
}
_AT_LEAST: Mapping[str, int] = {
    **dict.fromkeys(("epochs", "cells", "accumulate", "max_tokens", "save_every", "devices", "nodes"), 1),
    **dict.fromkeys(("weight_decay", "clip", "patience", "lora"), 0),
    "max_length": 2,  # `<cls>` and a gene
}


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
        for name, hint in hints(TrainConfig).items():
            value = getattr(self, name)
            try:
                value = convert(value, hint)
            except (TypeError, ValueError):
                among = f"; {nearest(value, _CHOICES[name])}" if name in _CHOICES else ""
                msg = f"TrainConfig({name}={value!r}): {expected(hint)} is needed{among}"
                raise ValueError(msg) from None
            object.__setattr__(self, name, value)
            if reason := _refusal(name, value):
                msg = f"TrainConfig({name}={value!r}): {reason}"
                raise ValueError(msg)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if self.lora and self.strategy == "fsdp":
            msg = "TrainConfig(lora=..., strategy='fsdp'): adapters cannot be merged into sharded weights; give 'ddp'"
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
                msg = f"unknown training option {key!r}; {nearest(key, names)}"
                raise ValueError(msg)
        return cls(**options)

    @classmethod
    def for_memory(cls, memory: str, **options: Any) -> TrainConfig:
        """For fine-tuning the 51 M model on a card of 8, 16 or 24 GB: `FINETUNE` with LoRA and a bound on activations.

        See `PRESETS`. They hold for cells of up to 1,200 tokens: a step is cut into the passes that the bound asks for.

        Parameters
        ----------
        memory
            "8GB", "16GB" or "24GB".
        options
            The other fields, and those of the preset that are to be something else.

        Raises
        ------
        ValueError
            Another size.
        """
        if memory not in PRESETS:
            msg = f"there is no preset for {memory!r}; {nearest(memory, PRESETS)}"
            raise ValueError(msg)
        return cls.from_mapping({**asdict(FINETUNE), **PRESETS[memory], **options})

    def changed(self, given: object) -> TrainConfig:
        """A default with what the user gave.

        Parameters
        ----------
        given
            Options by name take the place of these; a `TrainConfig` is taken as it is; None changes nothing.

        Raises
        ------
        ValueError
            An option that is unknown; the message gives the nearest name.
        TypeError
            Something else.
        """
        if given is None:
            return self
        if isinstance(given, TrainConfig):
            return given
        if not isinstance(given, Mapping):
            msg = f"train={given!r}: a scgpt_tl.TrainConfig, or a dict of some of its options, is needed"
            raise TypeError(msg)
        return self.from_mapping({**asdict(self), **given})

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
        return cls.from_mapping(read_options(file))

    def to_yaml(self) -> str:
        """All options with what they mean; `read` gives the same config back."""
        import yaml

        lines = []
        for name, doc in docs(type(self)).items():
            value = getattr(self, name)
            plain = {name: list(value) if isinstance(value, tuple) else value}
            lines += [f"# {doc}", yaml.safe_dump(plain)]
        return "\n".join(lines)

    @property
    def learned(self) -> dict[str, Any]:
        """Options that decide what is learned, as plain values: two runs with the same ones are one run."""
        return {name: value for name, value in asdict(self).items() if name not in FREE}


def read_options(file: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, not yet checked against the options; see `TrainConfig.read`."""
    import yaml

    if Path(file).is_dir():
        msg = f"{file} is a folder, expected a YAML file of training options"
        raise ValueError(msg)
    if not Path(file).is_file():
        msg = f"no file {file}"
        raise FileNotFoundError(msg)
    try:
        options = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{file} is not YAML: {' '.join(str(error).split())}"
        raise ValueError(msg) from error
    if not isinstance(options, Mapping):
        msg = f"{file} holds {type(options).__name__}, expected lines of `option: value`"
        raise ValueError(msg)
    return dict(options)


def _refusal(name: str, value: Any) -> str | None:
    """Why a value of the right type is none of this option's."""
    for item in value if isinstance(value, tuple) else (value,):
        if name in _CHOICES and item not in _CHOICES[name]:
            return f"unknown; {nearest(item, _CHOICES[name])}"
        if name == "freeze" and item.partition(":")[0] not in PARTS:
            return f"there is no part {item!r}; {nearest(item, (*PARTS, 'layers:6'))}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number is needed"
    if name in _AT_LEAST and value is not None and value < _AT_LEAST[name]:
        return f"{_AT_LEAST[name]} or more is needed"
    if name == "learning_rate" and value <= 0:
        return "a positive number is needed"
    if name == "decay" and not 0 < value <= 1:
        return "a factor above 0 and up to 1 is needed"
    if name in ("warmup", "held_out") and not 0 <= value < 1:
        return "a share from 0 to below 1 is needed"
    return None


#: As published for fine-tuning: a small constant rate that falls by a tenth after each epoch, the best epoch kept.
FINETUNE = TrainConfig(
    max_length=1200, learning_rate=1e-4, schedule="epoch", warmup=0.0, weight_decay=0.0, held_out=0.1, keep="best"
)

"""Where training runs: one process or several, through Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.fsdp import FSDPStrategy
from lightning.fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from scgpt_tl._compat import need
from scgpt_tl.core.layers import Block
from scgpt_tl.engine.predict import Compute

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scgpt_tl.engine.config import TrainConfig

#: Our word for how processes start -> Lightning's.
_STARTS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_notebook": "fork"}


def fabric_for(train: TrainConfig, logs: Path) -> Fabric:
    """Processes, devices, precision and loggers (which write to `logs`) that a config asks for.

    Raises
    ------
    ValueError
        A device that is not there.
    ImportError
        A logger whose package is not installed.
    """
    device = Compute(device=train.device).torch_device()
    cuda = device.type == "cuda"
    precision: Any = train.precision if train.precision != "auto" else "bf16-mixed" if cuda else "32-true"
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=[device.index] if ":" in str(device) else train.devices,
        num_nodes=train.nodes,
        strategy=_strategy(train),
        precision=precision,
        loggers=[_logger(name, logs) for name in train.loggers],
    )


def _strategy(train: TrainConfig) -> Any:
    name = train.strategy
    if name == "auto":
        if train.devices * train.nodes == 1:
            return "auto"
        name = "ddp"
    if name == "fsdp":
        return FSDPStrategy(auto_wrap_policy={Block}, state_dict_type="full")
    start: Any = _STARTS[name]
    return DDPStrategy(start_method=start)


def _logger(name: str, folder: Path) -> Any:
    if name in ("tensorboard", "csv"):
        if name == "csv":
            return CSVLogger(folder)
        need("tensorboard")
        return TensorBoardLogger(folder)
    need(name)
    from lightning.pytorch import loggers as others

    if name == "wandb":
        return others.WandbLogger(save_dir=folder)
    return others.MLFlowLogger(save_dir=str(folder))


def launch(fabric: Fabric, work: Callable[..., None], **options: Any) -> None:
    """Run `work(fabric, **options)` in every process; return when all are done.

    Started processes ("spawn", "fork") run it and end. Under `torchrun`, or where a script is started once per device,
    every process comes here by itself.
    """
    if not isinstance(fabric.strategy.launcher, _MultiProcessingLauncher):
        fabric.launch()
        work(fabric, **options)
        return
    threads = os.environ.get("OMP_NUM_THREADS")
    try:
        fabric.launch(partial(work, **options))  # as one object: Lightning would look into arguments for modules
    finally:  # Lightning sets it for its children
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)


def unshare(network: nn.Module) -> None:
    """Give a process its own copy of weights that came to it in memory shared with the others."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


def summed(fabric: Fabric, *values: float) -> list[float]:
    """Sums of numbers over all processes."""
    return _reduced(fabric, values, "sum")


def largest(fabric: Fabric, *values: float) -> list[float]:
    """The largest of each number over all processes."""
    return _reduced(fabric, values, "max")


def _reduced(fabric: Fabric, values: tuple[float, ...], how: str) -> list[float]:
    if fabric.world_size == 1:
        return list(values)
    numbers: Any = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    reduced: Any = fabric.all_reduce(numbers, reduce_op=how)
    return reduced.tolist()


def gather(rows: Tensor) -> Tensor:
    """(B, D) of this process -> those of all processes, end to end; gradients of all processes come back summed."""
    return _Gather.apply(rows) if dist.is_initialized() and dist.get_world_size() > 1 else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        size = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        ctx.sizes = [int(s) for s in sizes]
        padded = rows.new_zeros(max(ctx.sizes), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in ctx.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.sizes)[dist.get_rank()]

"""Where training runs: one process or several, through Lightning Fabric."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.fsdp import FSDPStrategy
from lightning.fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from scgpt_tl._compat import need
from scgpt_tl.core.layers import Block
from scgpt_tl.engine.predict import Compute

if TYPE_CHECKING:
    from torch import Tensor, nn

    from scgpt_tl.engine.config import TrainConfig

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)  # one process may prepare a large corpus while the others wait

#: Our word for how processes start -> Lightning's.
_STARTS = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_notebook": "fork"}


def fabric_for(train: TrainConfig, logs: Path) -> Fabric:
    """Processes, devices, precision and loggers (which write to `logs`) that a config asks for.

    Raises
    ------
    ValueError
        A device that is not there, or one by its number where several are asked for.
    ImportError
        A logger whose package is not installed.
    """
    device = Compute(device=train.device).torch_device()
    cuda = device.type == "cuda"
    if ":" in str(device) and train.devices > 1:
        msg = f"device={train.device!r} is one device and devices={train.devices}: give device='cuda', or devices=1"
        raise ValueError(msg)
    precision: Any = train.precision if train.precision != "auto" else "bf16-mixed" if cuda else "32-true"
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=[device.index] if ":" in str(device) else train.devices,
        num_nodes=train.nodes,
        strategy=_strategy(train),
        precision=precision,
        loggers=[_logger(name, logs) for name in train.loggers],
        plugins=[PlainFiles()],
    )


class PlainFiles(TorchCheckpointIO):
    """Writes a checkpoint where it is told to; Lightning's own goes through memory and the system's temporary folder.

    An error is kept for all processes to hear of (`together`): the others wait for this one.
    """

    error: Exception | None = None

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Keeps the error of a full disk."""
        try:
            torch.save(checkpoint, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            self.error = error


def _strategy(train: TrainConfig) -> Any:
    name = train.strategy
    if name == "auto":
        if train.devices * train.nodes == 1:
            return "auto"
        name = "ddp"
    if name == "fsdp":
        return FSDPStrategy(auto_wrap_policy={Block}, state_dict_type="full", timeout=_PATIENCE)
    start: Any = _STARTS[name]
    return DDPStrategy(start_method=start, timeout=_PATIENCE)


def _logger(name: str, folder: Path) -> Any:
    if name == "csv":
        return CSVLogger(folder)
    need(name)
    if name == "tensorboard":
        return TensorBoardLogger(folder)
    from lightning.pytorch import loggers as others

    return others.WandbLogger(save_dir=folder) if name == "wandb" else others.MLFlowLogger(save_dir=str(folder))


def begin(fabric: Fabric) -> Fabric:
    """Let the processes that run the whole program (`torchrun`, or a script once per device) meet, if they have not.

    Those that are started for `launch` alone are not there yet: what is made before they are is made once.
    """
    if not isinstance(fabric.strategy.launcher, _MultiProcessingLauncher):
        fabric.launch()  # once more does nothing
    return fabric


def from_first(fabric: Fabric, make: Callable[[], T]) -> T:
    """What the first process makes, in all that have met; if it fails, all of them stop.

    Raises
    ------
    BaseException
        See `together`.
    """
    if not dist.is_initialized():
        return make()
    made: Any = None
    error: BaseException | None = None
    if fabric.global_rank == 0:
        try:
            made = make()
        except (Exception, KeyboardInterrupt, SystemExit) as found:  # noqa: BLE001 (raised again, in every process)
            error = found
    together(fabric, error)
    return fabric.broadcast(made)


def launch(fabric: Fabric, work: Callable[..., None], **options: Any) -> None:
    """Run `work(fabric, **options)` in every process; return when all are done.

    Started processes ("spawn", "fork") run it and end. Under `torchrun`, or where a script is started once per device,
    every process comes here by itself.
    """
    if not isinstance(fabric.strategy.launcher, _MultiProcessingLauncher):
        work(begin(fabric), **options)
        return
    try:
        fabric.launch(partial(work, **options))  # as one object: Lightning would look into arguments for modules
    except (KeyboardInterrupt, SystemExit):  # a signal that came to this process alone
        for child in multiprocessing.active_children():
            child.terminate()
        for child in multiprocessing.active_children():
            child.join()
        raise


def together(fabric: Fabric, error: BaseException | None) -> None:
    """Raise the first process's error in every process: none is left waiting for it.

    Raises
    ------
    BaseException
        The error itself in the first process.
    RuntimeError
        What it said, in the others.
    """
    said = fabric.broadcast(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if said is not None:
        msg = f"the first process stopped: {said}"
        raise RuntimeError(msg)


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

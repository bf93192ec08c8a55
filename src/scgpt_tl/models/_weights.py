"""Weights as such: their fingerprint, and a network that takes them over without a second copy."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from scgpt_tl.core.scgpt import Network

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tl.core.config import ModelConfig

#: Heads that a network can have; see `ModelConfig.heads`.
HEADS = ("gep", "gepc", "cls", "dar", "perturb")


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where they would be filled with random numbers.

    On shapes alone drawing does nothing but import torch's compiler, which costs a second and 80 MB.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func in (torch.Tensor.normal_, torch.Tensor.uniform_)
            or getattr(func, "__module__", None) == "torch.nn.init"
        ):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(config: ModelConfig) -> Network:
    """A network of shapes alone: it takes neither memory nor time to initialise."""
    with torch.device("meta"), _Undrawn():
        return Network(config)


def adopt(network: Network, state: Mapping[str, Tensor]) -> Network:
    """Hand a skeleton its weights (the tensors themselves, no copy) and set it to eval mode."""
    wanted = network.state_dict()
    cast = {name: tensor.to(wanted[name].dtype) for name, tensor in state.items()}
    network.load_state_dict(cast, strict=True, assign=True)
    return network.eval()


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names: the same on any device."""
    digest = sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of weights that hold NaN or infinity."""
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    suspects = {name: tensor for name, tensor in floats.items() if not tensor.sum().isfinite()}  # needs no memory
    return [name for name, tensor in suspects.items() if not tensor.isfinite().all()]

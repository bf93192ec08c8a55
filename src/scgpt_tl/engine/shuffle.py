"""A network whose weights are shuffled: what its shape alone would tell, the control beside a trained one."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from scgpt_tl._compat import jit
from scgpt_tl._random import Purpose, draw, name_keys, stream_key

if TYPE_CHECKING:
    from scgpt_tl.core.scgpt import Network


@torch.no_grad()
def shuffled(network: Network, seed: int) -> Network:
    """A copy in which the entries of every weight and bias have changed places, each tensor within itself.

    Sizes and the distribution of each tensor's entries stay; what was learned is gone. Where an entry goes follows from
    the seed and the parameter's name.

    Parameters
    ----------
    network
        It is left as it is.
    seed
        Non-negative.
    """
    found = deepcopy(network)
    parameters = dict(found.named_parameters())
    for key, parameter in zip(name_keys(parameters), parameters.values(), strict=True):
        entries = parameter.detach().float().cpu().flatten().clone()
        _permute(entries.numpy(), stream_key(seed, Purpose.SHUFFLE, key))
        parameter.copy_(entries.view_as(parameter))
    return found


@jit(nogil=True)
def _permute(entries: Any, stream: Any) -> None:
    """In place (Fisher and Yates), every order equally likely."""
    for i in range(len(entries) - 1, 0, -1):
        j = int(draw(stream, i, 0) * (i + 1))
        entries[i], entries[j] = entries[j], entries[i]

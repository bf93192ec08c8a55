"""A step cut into passes: as many as memory asks for, over as many devices as there are, with one sum in the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from scgpt_tl._random import Purpose, mix_words, stream_key
from scgpt_tl.engine import devices
from scgpt_tl.engine._fields import parse_bytes
from scgpt_tl.engine.predict import token_bytes
from scgpt_tl.engine.recipes import Counts, Recipe, losses

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from torch import Tensor

    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.tokens.corrupt import Minibatch

#: Memory of a token, in those of a block's widest point: once for the ends of the network, and for each block.
_KEPT, _RECOMPUTED = (4.0, 3.5), (10.0, 0.3)  # measured at 12 x 512 and 1,200 tokens


class Work:
    """Arguments of a pass. No dataclass: Lightning would look into one for numbers to cast, bins and ids among them."""

    def __init__(self, minibatch: Minibatch, counts: Counts, *, step: int, share: float):
        self.minibatch, self.counts, self.step, self.share = minibatch, counts, step, share


class Learner(nn.Module):
    """A network with what is asked of it, so that one `forward` holds a whole pass."""

    def __init__(self, network: Network, recipe: Recipe, gather: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        self.network, self.recipe, self.gather = network, recipe, gather

    def forward(self, work: Work) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the objectives, and each of them."""
        found = losses(
            self.network,
            work.minibatch,
            self.recipe,
            step=work.step,
            counts=work.counts,
            share=work.share,
            gather=self.gather,
        )
        return found.total, found.parts


def cut(fabric: Fabric, minibatch: Minibatch, *, step: int, tokens: int | None, at_least: int) -> list[Work]:
    """The passes of a step on this device; every device makes as many.

    Parameters
    ----------
    fabric
        Launched.
    minibatch
        This device's share of the step.
    step
        Optimiser steps done.
    tokens
        Most tokens of a pass (a longer cell goes alone); None: all.
    at_least
        Passes, as far as there are cells for them.
    """
    own = Counts.of(minibatch)
    needed = _passes(minibatch, tokens) if tokens else 1
    counts = Counts(*devices.summed(fabric, own.tokens, own.labelled, own.batched))
    most, fewest_cells = devices.largest(fabric, needed, -minibatch.n_cells)
    n = int(min(max(most, at_least), -fewest_cells))  # no pass is empty
    options: dict[str, Any] = {"step": step, "share": 1 / (n * fabric.world_size)}
    if n == 1:
        return [Work(minibatch, counts, **options)]
    cells = np.array_split(np.arange(minibatch.n_cells), n)
    parts = (minibatch.take(torch.from_numpy(some).to(minibatch.target.device)) for some in cells)
    return [Work(part, counts, **options) for part in parts]


def _passes(minibatch: Minibatch, tokens: int) -> int:
    """How many, so that none holds more tokens."""
    lengths = minibatch.cells.lengths.view(-1, minibatch.n_cells).sum(0).cpu().numpy()  # all views of each cell
    n = min(math.ceil(lengths.sum() / tokens), len(lengths))
    while n < len(lengths) and max(part.sum() for part in np.array_split(lengths, n)) > tokens:
        n += 1
    return n


def seed_dropout(fabric: Fabric, seed: int, step: int, number: int) -> None:
    """Torch's generators for pass `number` of a step: the CPU's and this device's, no other's."""
    place = np.array([number * fabric.world_size + fabric.global_rank], np.uint64)
    word = int(mix_words(place, stream_key(seed, Purpose.DROPOUT, step))[0] >> np.uint64(1))
    torch.default_generator.manual_seed(word)
    if fabric.device.type == "cuda":
        with torch.cuda.device(fabric.device):
            torch.cuda.manual_seed(word)


def budget(network: Network, train: TrainConfig, recipe: Recipe) -> int | None:
    """Tokens of a pass that a config allows."""
    if train.max_memory is None:
        return train.max_tokens
    once, each = _RECOMPUTED if train.checkpointing else _KEPT
    graphs = 2 if {"prompt", "cce"} & set(recipe.asked) else 1
    token = token_bytes(network.backbone) * graphs * (once + each * network.config.n_layers)
    allowed = max(1, int(parse_bytes(train.max_memory) / token))
    return min(allowed, train.max_tokens or allowed)

"""Which numbers of a network learn: parts that are frozen, and low-rank adapters in place of the blocks' weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scgpt_tl._compat import need
from scgpt_tl._nearest import nearest
from scgpt_tl.engine.config import PARTS
from scgpt_tl.models._weights import HEADS

if TYPE_CHECKING:
    from scgpt_tl.core.scgpt import Network
    from scgpt_tl.engine.recipes import Recipe

_SCALE = 2  # of an adapter's product, whatever its rank


def freeze(network: Network, parts: Sequence[str]) -> None:
    """Keep parts of a network as they are while the rest learns (preprint, section S.3).

    Parameters
    ----------
    network
        Changed in place: `requires_grad` of the named parts' parameters.
    parts
        Of `genes`, `values` (with the flag of unknown genes, which stands in a value's place), `embeddings` (both, and
        the batch, modality and condition tables), `layers` (all blocks), `layers:6` (the first six), `heads`. The norm
        of the summed embeddings, where there is one, learns always: it belongs to the data.

    Raises
    ------
    ValueError
        A part that is unknown, more layers than there are, or nothing that learns.
    """
    for part in parts:
        for module in _modules(network, part):
            module.requires_grad_(False)
    if not any(p.requires_grad for p in network.parameters()):
        msg = f"freeze={tuple(parts)}: nothing is left to learn; name fewer parts"
        raise ValueError(msg)


def leave_out(network: Network, recipe: Recipe) -> None:
    """Freeze what a recipe never asks: heads of other tasks, and the flag where no gene is unknown."""
    heads = {name: module for name, module in network.heads.named_children() if name in HEADS}
    for name, module in heads.items():
        module.requires_grad_(name in recipe.heads)
    with_zeros = any(name.endswith("_zeros") for name in recipe.asked)
    expression = bool({"gep", "gepc"} & set(recipe.heads))
    tables: list[tuple[nn.Module | None, bool]] = [
        *((getattr(heads.get(name), "nonzero", None), with_zeros and name in recipe.heads) for name in ("gep", "gepc")),
        *((table, expression) for table in (network.heads.batches, network.heads.modalities)),  # join these heads alone
    ]
    for table, learns in tables:
        if table is not None:
            table.requires_grad_(learns)
    if network.backbone.conditions is not None:  # no recipe here shows conditions
        network.backbone.conditions.requires_grad_(False)
    if network.backbone.flags is not None:
        network.backbone.flags.requires_grad_(recipe.corruption == "generative")


def _modules(network: Network, part: str) -> Iterable[nn.Module]:
    backbone, heads = network.backbone, network.heads
    tables = (backbone.conditions, heads.batches, heads.modalities)
    values = (backbone.values, backbone.flags)
    known: dict[str, Iterable[nn.Module | None]] = {
        "genes": (backbone.genes,),
        "values": values,
        "embeddings": (backbone.genes, *values, *tables),
        "layers": backbone.blocks,
        "heads": (module for module in heads.children() if module not in tables),
    }
    if part in known:
        return [module for module in known[part] if module is not None]
    name, _, count = part.partition(":")
    if name != "layers":
        msg = f"freeze: there is no part {part!r}; {nearest(part, (*PARTS, 'layers:6'))}"
        raise ValueError(msg)
    n = len(backbone.blocks)
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= n):
        msg = f"freeze: {part!r}; give layers:1 (the first) to layers:{n}, or layers for all"
        raise ValueError(msg)
    return backbone.blocks[: int(count)]


@contextmanager
def adapters(network: Network, rank: int, *, seed: int = 0) -> Iterator[None]:
    """Train low-rank adapters in place of the blocks' weights (LoRA, Hu et al. 2021), through `peft`.

    Each product of a block, W x, becomes W x + 2 B A x with A (rank, in) and B (out, rank), B zero at first. W, norms
    and biases of the blocks and the gene and value encoders stay as they are; heads, the flag of unknown genes, and
    the norm and tables that belong to the data learn. Inside, the network's `state_dict` has names of its own, the
    same ones each time, so that a checkpoint loads into a network prepared anew. In the end W + 2 B A takes the place
    of W and the network has its own modules again; after an error it is left as it was then.

    Parameters
    ----------
    network
        Changed in place. Blocks that `freeze` has frozen get no adapter.
    rank
        0: nothing is done.
    seed
        Of A.

    Raises
    ------
    ImportError
        `peft` is not installed; the message is the line that installs it.
    ValueError
        Every block is frozen; or, in the end, an adapter holds values that are no numbers.
    """
    if rank == 0:
        yield
        return
    learned = [p for p in network.parameters() if p.requires_grad]
    _inject(network, rank, seed)
    yield
    merged(network)
    for parameter in learned:
        parameter.requires_grad_(True)


def _inject(network: Network, rank: int, seed: int) -> None:
    peft = need("peft", extra="lora")
    blocks = network.backbone.blocks
    targets = [name for name, m in blocks.named_modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    if not targets:
        msg = f"lora={rank} with every layer frozen: no adapter could learn; leave layers out of freeze, or set lora=0"
        raise ValueError(msg)
    config = peft.LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        peft.inject_adapter_in_model(config, blocks)  # and all else in the blocks is frozen
    for encoder in (network.backbone.genes, network.backbone.values):
        encoder.requires_grad_(False)


def merged(network: Network) -> Network:
    """The network with its adapters added to the weights and taken out, in place; without adapters nothing changes."""
    found = [(name, m) for name, m in network.named_modules() if hasattr(m, "get_base_layer")]
    for name, module in found:
        layer: Any = module
        layer.merge(safe_merge=True)
        network.set_submodule(name, layer.get_base_layer())
    if hasattr(network.backbone.blocks, "peft_config"):
        del network.backbone.blocks.peft_config
    return network

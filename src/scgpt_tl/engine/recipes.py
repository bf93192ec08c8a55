"""Tasks as values: what is hidden, what is asked, how much each answer weighs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from scgpt_tl import objectives
from scgpt_tl._nearest import nearest
from scgpt_tl.tokens.corrupt import Minibatch, generative_split, mask_values

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from scgpt_tl.core.heads import Prediction
    from scgpt_tl.core.scgpt import Encoded, Network
    from scgpt_tl.tokens.batch import CellBatch


@dataclass(frozen=True)
class Recipe:
    """A training task. Adding one is adding a literal."""

    name: str
    weights: Mapping[str, float]
    """Objective -> weight; the objectives are the keys of `OBJECTIVES`."""
    corruption: Literal["generative", "mask", "none"] = "generative"
    """Genes split into known and unknown ones (section 4.3.2), values masked (4.5), or all shown."""
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of unknown or masked genes, one drawn per minibatch."""
    in_bins: bool = False
    """Errors of expression in bins, as published; else in units of the largest bin."""
    detach_prompt: bool = True
    """No gradient flows through the cell embedding that prompts the second pass, as published."""
    prompt_after: int = 0
    """Steps before the cell-prompt pass joins; 1,000 as published, 0 in the paper."""
    temperature: float = 0.1
    """Of `contrast` and `kin`."""
    ecs_threshold: float = 0.6
    """beta of equation (13)."""
    class_weights: tuple[float, ...] = ()
    """Of `cls`, in the order of the classes; empty: all equal. See `objectives.class_weights`."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Options of `ModelConfig` that a network must have for this task, e.g. `input_norm="domain"`."""

    def __post_init__(self) -> None:
        for name in self.weights:
            if name not in OBJECTIVES:
                msg = f"recipe {self.name!r} asks for {name!r}; there are {', '.join(OBJECTIVES)}"
                raise ValueError(msg)
        if not all(0 <= ratio <= 1 for ratio in self.ratios):
            msg = f"recipe {self.name!r} has ratios={self.ratios}; they are shares from 0 to 1"
            raise ValueError(msg)
        if any(not weight > 0 for weight in self.class_weights):
            msg = f"recipe {self.name!r} has class_weights={self.class_weights}; they are positive numbers"
            raise ValueError(msg)
        hidden = {"gep", "gep_zeros", "gepc", "gepc_zeros", "prompt"} & set(self.asked)
        if self.corruption == "none" and hidden:
            msg = (
                f"recipe {self.name!r} hides nothing and asks for {', '.join(sorted(hidden))}: give another corruption"
            )
            raise ValueError(msg)
        if self.corruption != "generative" and self.two_views:
            msg = f"recipe {self.name!r}: 'contrast' needs corruption='generative', which makes its two views"
            raise ValueError(msg)

    @property
    def asked(self) -> tuple[str, ...]:
        """Objectives that weigh something."""
        return tuple(name for name, weight in self.weights.items() if weight > 0)

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads that the objectives need."""
        heads = (OBJECTIVES[name].head for name in self.asked)
        return tuple(dict.fromkeys(head for head in heads if head))

    @property
    def two_views(self) -> bool:
        """Each cell comes twice, with known and unknown genes exchanged."""
        return "contrast" in self.asked

    @property
    def needs_batches(self) -> bool:
        """Each cell's sequencing batch must be known."""
        norm, joined = self.network.get("input_norm"), self.network.get("batch_in_heads", False)
        return bool({"dar", "kin"} & set(self.asked)) or joined or norm == "domain"

    @property
    def needs_labels(self) -> bool:
        """Cell types must be known; for `kin`, groups that cells of several batches are in."""
        return bool({"cls", "kin"} & set(self.asked))


@dataclass(frozen=True)
class Counts:
    """What the sums of a step are divided by, over all of its passes and devices."""

    tokens: float
    """Hidden positions."""
    labelled: float
    """Cells with a label."""
    batched: float
    """Cells with a batch."""

    @classmethod
    def of(cls, minibatch: Minibatch) -> Counts:
        """Those of one minibatch; `Counts(*sum)` of several."""
        cells = minibatch.cells
        if minibatch.muted:
            return cls(0.0, 0.0, 0.0)
        known = (0.0 if x is None else float((x >= 0).sum()) for x in (cells.label, cells.batch))
        return cls(float(minibatch.hidden.sum()), *known)


@dataclass
class Pass:
    """One minibatch on its way through the network; what several objectives need is computed once."""

    network: Network
    minibatch: Minibatch
    recipe: Recipe
    counts: Counts
    gather: Callable[[Tensor], Tensor]
    """(B, D) of this device -> those of all devices, for objectives that compare cells."""

    @property
    def cells(self) -> CellBatch:
        """As they are shown."""
        return self.minibatch.cells

    @cached_property
    def encoded(self) -> Encoded:
        """Of the first pass."""
        return self.network.backbone.encode(self.cells, at=self.at)

    @cached_property
    def at(self) -> Tensor:
        """(M,) hidden positions."""
        return self.minibatch.hidden.nonzero().squeeze(1)

    @cached_property
    def target(self) -> Tensor:
        """(M,) their values."""
        return self.minibatch.target[self.at]

    @cached_property
    def from_tokens(self) -> Prediction:
        """GEP at the hidden positions."""
        return self.network.heads.gene_expression(self.encoded, self.cells, at=self.at)

    @cached_property
    def from_cell(self) -> Prediction:
        """GEPC at the hidden positions."""
        genes = self.network.backbone.genes(self.cells.gene_ids[self.at])
        return self.network.heads.cell_expression(self.encoded, self.cells, genes, at=self.at)

    def squared_error(self, found: Prediction) -> Tensor:
        """Equations (10) to (12)."""
        unit = 1.0 if self.recipe.in_bins else self.network.config.n_bins - 1.0
        return objectives.masked_mse(found.value / unit, self.target / unit, count=self.counts.tokens)

    def zeros(self, found: Prediction) -> Tensor:
        """Likelihood of being expressed or not."""
        if found.nonzero is None:
            msg = "zero-probability objectives need a network with zero_probability=True"
            raise ValueError(msg)
        return objectives.zero_likelihood(found.nonzero, self.target, count=self.counts.tokens)

    def prompted(self) -> Tensor:
        """Cell prompts: the cell embedding in the place of `<cls>` (section 4.3.3)."""
        prompt = self.encoded.cell.detach() if self.recipe.detach_prompt else self.encoded.cell
        again = self.network.backbone.encode(self.cells, at=self.at, cell_prompt=prompt)
        return self.squared_error(self.network.heads.gene_expression(again, self.cells, at=self.at))

    def compared(self, cell: Tensor) -> Tensor:
        """(B, D) cells of this device -> those of all devices."""
        return self.gather(cell[:0] if self.minibatch.muted else cell)

    def views(self) -> tuple[Tensor, Tensor]:
        """The two views of each cell, those of all devices."""
        first, second = self.encoded.cell.chunk(2)
        return self.compared(first), self.compared(second)

    def dropout_views(self) -> tuple[Tensor, Tensor]:
        """The same cells passed twice (CCE)."""
        again = self.network.backbone.encode(self.cells, cell_only=True)
        return self.compared(self.encoded.cell), self.compared(again.cell)

    def classes(self) -> Tensor:
        """CLS."""
        scores = self.network.heads.cls(self.encoded.cell)
        label, weights = _given(self.cells.label, "label"), self.recipe.class_weights
        weight = torch.tensor(weights, device=scores.device) if weights else None
        return objectives.classification(scores, label, weight=weight, count=self.counts.labelled)

    def kin(self) -> Tensor:
        """Cells of one group, which comes as their label, among those of other batches."""
        named = _given(self.cells.label, "label"), _given(self.cells.batch, "batch")
        numbers = self.compared(torch.stack(named, 1).to(torch.float32)).long()  # exact below 2**24
        return objectives.kin_contrast(
            self.compared(self.encoded.cell), numbers[:, 0], numbers[:, 1], self.recipe.temperature
        )

    def domains(self) -> Tensor:
        """DAR."""
        scores = self.network.heads.domain(self.encoded)
        return objectives.classification(scores, _given(self.cells.batch, "batch"), count=self.counts.batched)


@dataclass(frozen=True)
class Objective:
    """What is asked of a pass."""

    loss: Callable[[Pass], Tensor]
    head: str | None = None
    pairs: bool = False
    """It compares the cells of a pass: a mean over passes, where others are sums over a count."""


OBJECTIVES: dict[str, Objective] = {
    "gep": Objective(lambda p: p.squared_error(p.from_tokens), "gep"),
    "gep_zeros": Objective(lambda p: p.zeros(p.from_tokens), "gep"),
    "gepc": Objective(lambda p: p.squared_error(p.from_cell), "gepc"),
    "gepc_zeros": Objective(lambda p: p.zeros(p.from_cell), "gepc"),
    "prompt": Objective(Pass.prompted, "gep"),
    "ecs": Objective(
        lambda p: objectives.elastic_similarity(p.compared(p.encoded.cell), p.recipe.ecs_threshold), pairs=True
    ),
    "cce": Objective(lambda p: objectives.contrast(*p.dropout_views()), pairs=True),
    "contrast": Objective(lambda p: objectives.view_contrast(*p.views(), p.recipe.temperature), pairs=True),
    "kin": Objective(Pass.kin, pairs=True),
    "cls": Objective(Pass.classes, "cls"),
    "dar": Objective(Pass.domains, "dar"),
}

#: Preprint, section 4.3: gene prompts, then cell prompts, and GEPC.
GENERATIVE = Recipe("generative", {"gep": 1.0, "gepc": 1.0, "prompt": 1.0})

#: The same where the published branch differs: errors in bins, cell prompts from step 1,000 on, and unknown genes whose
#: attention output is not projected.
GENERATIVE_PUBLISHED = Recipe(
    "generative, published",
    {"gep": 1.0, "gepc": 1.0, "prompt": 1.0},
    in_bins=True,
    prompt_after=1000,
    network={"unknown_skips_projection": True},
)

#: `GENERATIVE`, and a cell's two disjoint halves must find each other (the paper's CCE, with genes for dropout).
GENERATIVE_CONTRAST = Recipe("generative+contrast", {"gep": 1.0, "gepc": 1.0, "prompt": 1.0, "contrast": 0.2})

#: Section 4.5, masked values alone: adapts a model to more cells of one kind.
MASKED = Recipe("masked", {"gep": 1.0, "gepc": 1.0}, corruption="mask", ratios=(0.4,), in_bins=True)

#: Section 4.5 with the published weights: batches are told apart by DSBN, and nothing else may tell them apart (DAR).
INTEGRATION = Recipe(
    "integration",
    {"gep": 1.0, "gep_zeros": 1.0, "gepc": 1.0, "gepc_zeros": 1.0, "ecs": 10.0, "dar": 1.0},
    corruption="mask",
    ratios=(0.4,),
    in_bins=True,
    ecs_threshold=0.8,
    network={"input_norm": "domain", "batch_in_heads": True, "zero_probability": True, "cls_value": 0.0},
)

#: Ours, for small networks and few steps on a CPU: masked values keep a cell what it is, and cells that lie together in
#: the pretrained embedding, across batches, must find each other (`tl.scgpt_integrate` makes these groups).
INTEGRATION_KIN = Recipe("integration+kin", {"gep": 1.0, "gepc": 1.0, "kin": 0.2}, corruption="mask", ratios=(0.4,))

#: Section 4.5: cell types from `<cls>`.
ANNOTATION = Recipe("annotation", {"cls": 1.0}, corruption="none", network={"cls_value": 0.0})

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        GENERATIVE,
        GENERATIVE_PUBLISHED,
        GENERATIVE_CONTRAST,
        MASKED,
        INTEGRATION,
        INTEGRATION_KIN,
        ANNOTATION,
    )
}


def recipe_named(recipe: Recipe | str) -> Recipe:
    """A recipe, by its name; an unknown one is refused with the nearest."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        msg = f"recipe {recipe!r} is unknown; {nearest(recipe, RECIPES)}"
        raise ValueError(msg)
    return RECIPES[recipe]


@dataclass(frozen=True)
class Losses:
    """One pass's objectives, unweighted, and their weighted sum."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def hide(
    recipe: Recipe,
    cells: CellBatch,
    keys: np.ndarray,
    gene_keys: np.ndarray,
    *,
    ratio: float,
    mask_value: float,
    seed: int = 0,
    epoch: int = 0,
) -> Minibatch:
    """What a recipe hides of B cells; see `tokens.corrupt` for the arguments."""
    if recipe.corruption == "none":
        return Minibatch(cells, cells.values, torch.zeros_like(cells.values, dtype=torch.bool))
    if recipe.corruption == "mask":
        return mask_values(cells, keys, gene_keys, ratio=ratio, mask_value=mask_value, seed=seed, epoch=epoch)
    return generative_split(cells, keys, gene_keys, ratio=ratio, seed=seed, epoch=epoch, complement=recipe.two_views)


def losses(
    network: Network,
    minibatch: Minibatch,
    recipe: Recipe,
    *,
    step: int = 0,
    counts: Counts | None = None,
    share: float = 1.0,
    gather: Callable[[Tensor], Tensor] = lambda x: x,
) -> Losses:
    """A recipe's objectives on one minibatch, or on a part of one.

    Parameters
    ----------
    network
        Has `recipe.heads`.
    minibatch
        From `hide`.
    recipe
        What is asked.
    step
        Optimiser steps done, for `Recipe.prompt_after`.
    counts
        Denominators of the whole step; None: of this minibatch. Sums of parts over the same counts add up to the whole.
    share
        1 over the number of parts; weighs objectives that compare cells.
    gather
        See `Pass`.
    """
    at = Pass(network, minibatch, recipe, counts or Counts.of(minibatch), gather)
    parts: dict[str, Tensor] = {}
    for name in recipe.asked:
        if name == "prompt" and step < recipe.prompt_after:
            continue
        objective = OBJECTIVES[name]
        weight = share if objective.pairs else float(not minibatch.muted)
        parts[name] = objective.loss(at) * weight
    total = sum((recipe.weights[name] * part for name, part in parts.items()), minibatch.target.new_zeros(()))
    return Losses(total, parts)


def _given(x: Tensor | None, name: str) -> Tensor:
    if x is None:
        msg = f"this recipe needs CellBatch.{name}, which is not given"
        raise ValueError(msg)
    return x

"""Tasks as values: what is hidden, what is asked, how much each answer weighs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scgpt_tl import objectives

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgpt_tl.core.scgpt import Encoded, Network
    from scgpt_tl.tokens.batch import CellBatch


@dataclass(frozen=True)
class Recipe:
    """A training task. Adding one is adding a literal."""

    name: str
    weights: Mapping[str, float]
    """Objective -> weight. `gep`, `gepc`: gene-prompt pass; `prompt`: cell-prompt pass; `contrast`: two views."""
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Shares of unknown genes, one drawn per minibatch (section 4.3)."""
    detach_prompt: bool = True
    """No gradient flows through the cell embedding that prompts the second pass, as published."""
    temperature: float = 0.1
    """Of `contrast`."""

    @property
    def two_views(self) -> bool:
        """Each cell comes twice, with known and unknown genes exchanged."""
        return self.weights.get("contrast", 0) > 0


#: Preprint, section 4.3: gene prompts, then cell prompts, and GEPC.
GENERATIVE = Recipe("generative", {"gep": 1.0, "gepc": 1.0, "prompt": 1.0})

#: The same, and a cell's two disjoint halves must find each other (the paper's CCE, with genes in place of dropout).
GENERATIVE_CONTRAST = Recipe("generative+contrast", {"gep": 1.0, "gepc": 1.0, "prompt": 1.0, "contrast": 0.2})


@dataclass(frozen=True)
class Losses:
    """One step's objectives, unweighted, and their weighted sum."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def losses(network: Network, batch: CellBatch, recipe: Recipe) -> Losses:
    """Generative pretraining of one minibatch: gene-prompt pass, then cell-prompt pass.

    `batch` has unknown genes; under a contrast it holds each cell's two views, B first ones and then B second ones.
    Expression is predicted in units of the largest bin, so that one weighting serves any number of bins.
    """
    if batch.known is None:
        msg = "generative training needs a batch with unknown genes; see tokens.corrupt.generative_split"
        raise ValueError(msg)
    backbone, heads = network.backbone, network.heads
    hidden, scale = ~batch.known, float(network.config.n_bins - 1)
    target = batch.values / scale
    asked = {name for name, weight in recipe.weights.items() if weight > 0}
    encoded = backbone.encode(batch)
    parts: dict[str, Tensor] = {}

    def expression_loss(encoded: Encoded) -> Tensor:
        return objectives.masked_mse(heads.gene_expression(encoded, batch).value / scale, target, hidden)

    if "gep" in asked:
        parts["gep"] = expression_loss(encoded)
    if "gepc" in asked:
        genes = backbone.genes(batch.gene_ids)
        parts["gepc"] = objectives.masked_mse(
            heads.cell_expression(encoded, batch, genes).value / scale, target, hidden
        )
    if "contrast" in asked:
        first, second = encoded.cell.chunk(2)
        parts["contrast"] = objectives.view_contrast(first, second, recipe.temperature)
    if "prompt" in asked:
        prompt = encoded.cell.detach() if recipe.detach_prompt else encoded.cell
        parts["prompt"] = expression_loss(backbone.encode(batch, cell_prompt=prompt))
    total = sum((recipe.weights[name] * part for name, part in parts.items()), target.new_zeros(()))
    return Losses(total, parts)

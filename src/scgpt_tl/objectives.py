"""What training minimises: pure functions beside their formulas. Equations are the preprint's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, normalize

if TYPE_CHECKING:
    from torch import Tensor


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """GEP and GEPC, equations (10) to (12): mean over the masked positions of (predicted - target)^2.

    All (T,); `mask` True where the value was hidden. 0 where nothing was.
    """
    hidden = mask.to(predicted.dtype)
    return ((predicted - target).square() * hidden).sum() / hidden.sum().clamp(min=1)


def zero_likelihood(nonzero: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Negative log likelihood of a gene being expressed or not.

    -mean over masked of log p where target > 0, else log(1 - p); `nonzero` = p (T,).
    """
    p = torch.where(target > 0, nonzero, 1 - nonzero).clamp(min=torch.finfo(nonzero.dtype).tiny)
    hidden = mask.to(p.dtype)
    return -(p.log() * hidden).sum() / hidden.sum().clamp(min=1)


def relative_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over masked of |predicted - target| / (target + 1e-6); a measure, not a loss: it explodes on zeros."""
    return ((predicted - target).abs() / (target + 1e-6))[mask].mean()


def elastic_similarity(cell: Tensor, threshold: float = 0.6) -> Tensor:
    """ECS, equation (13), in its published form: mean over all pairs of 1 - (relu(cos) - threshold)^2.

    `cell` (B, D). The diagonal counts as similarity 0.
    """
    unit = normalize(cell, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(0).relu()
    return (1 - (similarity - threshold).square()).mean()


def contrast(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """CCE: each cell's two views (B, D) must find each other among the minibatch.

    Cross-entropy of cos(first_i, second_j) / temperature against j = i. The published views are two dropout passes.
    """
    scores = normalize(first, dim=1) @ normalize(second, dim=1).T / temperature
    return cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def view_contrast(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """`contrast` both ways, on embeddings less the mean of the minibatch.

    All cells share most of their embedding; without its mean, the cosine compares what tells them apart.
    """
    mean = torch.cat([first, second]).mean(0)
    first, second = first - mean, second - mean
    return (contrast(first, second, temperature) + contrast(second, first, temperature)) / 2

"""What training minimises: pure functions beside their formulas. Equations are the preprint's.

    GEP (10, 11), GEPC (12), perturb-GEP    masked_mse
    expressed or not                        zero_likelihood
    ECS (13)                                elastic_similarity
    CCE                                     contrast, view_contrast
    kin across batches (ours)               kin_contrast
    CLS, DAR                                classification

Means over tokens or cells take `count`: what the sum is divided by where these are a part of more (a pass of several, a
device of several). Parts over one count add up to the whole, values and gradients. DAR's reversal is in its head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, normalize

if TYPE_CHECKING:
    from torch import Tensor

#: beta of equation (13) in the paper, in the published integration tutorial, and the published package's own default.
ECS_THRESHOLDS = {"paper": 0.6, "integration tutorial": 0.8, "package": 0.3}


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor | None = None, *, count: float | None = None) -> Tensor:
    """GEP and GEPC, equations (10) to (12): mean over the masked positions of (predicted - target)^2.

    All (T,); `mask` True where the value was hidden, None: everywhere, as in perturb-GEP, whose target is the
    expression after the perturbation. 0 where nothing was hidden.
    """
    return _mean((predicted - target).square(), mask, count)


def zero_likelihood(
    nonzero: Tensor, target: Tensor, mask: Tensor | None = None, *, count: float | None = None
) -> Tensor:
    """Negative log likelihood of a gene being expressed or not.

    -mean over masked of log p where target > 0, else log(1 - p); `nonzero` = p (T,). `mask` as in `masked_mse`.
    """
    nonzero = nonzero.to(torch.promote_types(nonzero.dtype, torch.float32))
    p = torch.where(target > 0, nonzero, 1 - nonzero).clamp(min=torch.finfo(nonzero.dtype).tiny)
    return -_mean(p.log(), mask, count)


def classification(
    scores: Tensor, label: Tensor, *, weight: Tensor | None = None, count: float | None = None
) -> Tensor:
    """CLS and DAR: mean cross-entropy of scores (B, C) against labels (B,) int64; cells of label -1 are left out.

    `weight` (C,) of each class. Without `count` the sum is divided by the labelled cells, each with its class's weight.
    0 where no cell has a label.
    """
    total = cross_entropy(scores, label, weight=weight, ignore_index=-1, reduction="sum")
    if count is not None:
        return total / (count or 1.0)
    labelled = (label >= 0).to(total.dtype)
    own = labelled if weight is None else labelled * weight[label.clamp(min=0)]
    return total / own.sum().clamp(min=torch.finfo(total.dtype).tiny)


#: The number in scFoundation's equation for class weights.
_EVENED_OUT = 50.0


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weight of each class in a cross-entropy, so that rare classes count (scFoundation, "Cell type annotation").

    As printed there: w_i = B_i / sum_j B_j with B_i = max(max_j A_j / A_i, 50), for A_i cells of class i. So all
    weights are equal until the largest class has more than 50 times the cells of the smallest. Their scale is another
    here: the mean weight of a cell is 1, so that the loss is that without weights where these are equal.

    Raises
    ------
    ValueError
        A class without a cell.
    """
    if not counts or min(counts) < 1:
        msg = f"class_weights({list(counts)}): every class needs a cell"
        raise ValueError(msg)
    scaled = [max(max(counts) / n, _EVENED_OUT) for n in counts]
    mean = sum(b * n for b, n in zip(scaled, counts, strict=True)) / sum(counts)
    return tuple(b / mean for b in scaled)


def relative_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over masked of |predicted - target| / (target + 1e-6); a measure, not a loss: it explodes on zeros."""
    return ((predicted - target).abs() / (target + 1e-6))[mask].mean()


def elastic_similarity(cell: Tensor, threshold: float = ECS_THRESHOLDS["paper"]) -> Tensor:
    """ECS, equation (13), in its published form: mean over all pairs of 1 - (relu(cos) - threshold)^2.

    `cell` (B, D). The diagonal counts as similarity 0. Thresholds in use are `ECS_THRESHOLDS`.
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


def kin_contrast(cell: Tensor, kin: Tensor, batch: Tensor, temperature: float = 0.1) -> Tensor:
    """Cells of one kin must find each other across batches: supervised contrast (Khosla et al. 2020, equation 2).

    For each cell i that has kin in another batch, P(i): the mean over p in P(i) of -log softmax_p(cos(i, .) /
    temperature) over all other cells, on embeddings less the mean of the minibatch; and the mean of that over such
    cells. Cells of its own batch are never partners, so nothing is gained by what tells batches apart.

    `cell` (B, D); `kin`, `batch` (B,) int64, -1: none. 0 where no cell has a partner.
    """
    unit = normalize(cell - cell.mean(0), dim=1)
    itself = torch.eye(len(cell), dtype=torch.bool, device=cell.device)
    scores = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    partners = (kin[:, None] == kin) & (batch[:, None] != batch) & (kin[:, None] >= 0)
    some = partners.any(1)
    likelihood = scores.log_softmax(1).masked_fill(~partners, 0).sum(1)[some] / partners.sum(1)[some]
    return -likelihood.sum() / max(1, len(likelihood))


def _mean(each: Tensor, mask: Tensor | None, count: float | None) -> Tensor:
    """Sum over the masked positions, by their number or by `count`; 0 where that is 0."""
    if mask is not None:
        each = each[mask]
    return each.sum() / ((len(each) if count is None else count) or 1.0)

"""Dropout; on a CPU from a quarter of the random words that torch's takes, which are drawn one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def drop(x: Tensor, p: float) -> Tensor:
    """Each element 0 with probability `p`, else over 1 - p.

    On a CPU 16 bits decide on an element: p is met to within 1e-5, and what is kept is scaled by the p that is met.
    """
    dropped = round(p * 2**16)
    if x.device.type != "cpu" or not 0 < dropped < 2**16:
        return functional.dropout(x, p)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return drop(x, self.p) if self.training else x

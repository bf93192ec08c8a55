"""Dropout against what it promises: the share, the scale, the seed, and no tie between neighbours."""

from __future__ import annotations

import pytest
import torch

from scgpt_tl.core.dropout import Dropout


def test_dropout_keeps_the_mean_and_follows_the_seed():
    drop, x = Dropout(0.2).train(), torch.ones(1001, 301, requires_grad=True)
    torch.manual_seed(1)
    out = drop(x)
    kept = out > 0
    assert abs(float(kept.float().mean()) - 0.8) < 5e-3  # 0.0007 is the standard error
    assert out.detach().unique().tolist() == [0, pytest.approx(1 / 0.8, rel=2e-5)]
    out.sum().backward()
    assert torch.equal(x.grad, out)
    torch.manual_seed(1)
    assert torch.equal(drop(x), out)
    torch.manual_seed(2)
    assert not torch.equal(drop(x), out)
    neighbours = (kept[:, 1:] & kept[:, :-1]).float().mean()  # four come from one random word
    assert abs(float(neighbours) - 0.64) < 5e-3
    assert torch.equal(drop.eval()(x), x)
    assert drop.train()(x[:0]).shape == (0, 301)


@pytest.mark.parametrize(("p", "mean"), [(0.0, 1.0), (1.0, 0.0), (1e-7, 1.0)])
def test_dropout_at_its_ends(p: float, mean: float):
    assert float(Dropout(p).train()(torch.ones(50)).mean()) == pytest.approx(mean, abs=1e-6)

"""Processes: gathered rows and their gradients, sums, one curve for one process and for two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from scgpt_tl.engine import devices
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.objectives import view_contrast

ROWS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return view_contrast(first, second) + first.mean(0).square().sum()


def _gathers(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    own = ROWS[rank::2].clone().requires_grad_(True)  # 4 rows here, 3 there
    rows = devices.gather(own)
    (loss(rows, rows * 2 + 1) / 2).backward()
    torch.save((rows.detach(), own.grad), f"{folder}/{rank}")
    dist.destroy_process_group()


def test_gathered_rows_and_their_gradients(tmp_path: Path):
    """Losses halved over two processes, gradients summed: as if one process held all rows."""
    mp.spawn(_gathers, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)]
    order = torch.cat([torch.arange(7)[0::2], torch.arange(7)[1::2]])
    whole = ROWS[order].requires_grad_(True)
    loss(whole, whole * 2 + 1).backward()
    for rows, _ in parts:
        assert torch.equal(rows, whole.detach())
    torch.testing.assert_close(torch.cat([grad for _, grad in parts]), whole.grad)


def test_one_process_gathers_nothing():
    assert devices.gather(ROWS) is ROWS
    fabric = devices.fabric_for(TrainConfig(device="cpu"), Path())
    assert devices.summed(fabric, 1.0, 2.0) == [1.0, 2.0]
    assert devices.largest(fabric, 3) == [3]


class OneOfMany:
    """A process of several, and what the first one said to all."""

    def __init__(self, said: str | None = None):
        self.said = said

    def broadcast(self, own: str | None) -> str | None:
        return own or self.said


def test_an_error_of_the_first_process_is_heard_by_all():
    devices.together(OneOfMany(), None)
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as raised:
        devices.together(OneOfMany(), full)
    assert raised.value is full
    with pytest.raises(RuntimeError, match="the first process stopped: OSError: full"):
        devices.together(OneOfMany("OSError: full"), None)


def test_one_device_by_its_number_is_not_several():
    with pytest.raises(ValueError, match=r"device='cpu:0' is one device and devices=2"):
        devices.fabric_for(TrainConfig(device="cpu:0", devices=2), Path())


def test_two_processes_have_the_curve_of_one(tmp_path: Path, toy_cells):
    from scgpt_tl.tl._pretrain import scgpt_pretrain

    curves = []
    for n, strategy in ((1, "auto"), (2, "ddp_spawn")):
        train = TrainConfig(
            epochs=2, cells=16, max_length=30, held_out=0.1, device="cpu", progress=False, devices=n, strategy=strategy
        )
        model = scgpt_pretrain(toy_cells(48), out=tmp_path / f"m{n}", size="nano", train=train)
        curves.append(model.provenance["history"])
    for one, two in zip(*curves, strict=True):
        assert list(one) == list(two)
        np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)

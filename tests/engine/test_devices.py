"""Processes: gathered rows and their gradients, sums, one curve for one process and for two."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from scgpt_tl.engine import devices
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.objectives import view_contrast

ROWS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return view_contrast(first, second) + first.mean(0).square().sum()


def in_two(work: Callable[[int, str], None], folder: Path) -> None:
    """Run a function of this file in two processes, each as (rank, folder)."""
    words = [sys.executable, __file__, work.__name__]
    both = [subprocess.Popen([*words, str(rank), str(folder)]) for rank in range(2)]
    try:
        assert [one.wait(300) for one in both] == [0, 0]
    finally:
        for one in both:
            one.kill()


def _meets(rank: int, folder: str) -> None:
    """What a process of two gathered, and what it was handed."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    own = ROWS[rank::2].clone().requires_grad_(True)  # 4 rows here, 3 there
    rows = devices.gather(own)
    (loss(rows, rows * 2 + 1) / 2).backward()
    fabric: Any = Ranked(rank)
    found = devices.from_first(fabric, lambda: (Path(folder) / f"made{rank}").touch() or {"by": rank})
    try:
        devices.from_first(fabric, fail)
    except (OSError, RuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    torch.save({"gathered": (rows.detach(), own.grad), "found": found}, f"{folder}/{rank}")
    dist.destroy_process_group()


class Ranked:
    """A process by its number, among those that have met."""

    def __init__(self, rank: int):
        self.global_rank = rank

    def broadcast(self, own: object) -> object:
        said = [own]
        dist.broadcast_object_list(said)
        return said[0]


def fail() -> None:
    msg = "full"
    raise OSError(msg)


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they found."""
    folder = tmp_path_factory.mktemp("met")
    in_two(_meets, folder)
    return folder


def test_gathered_rows_and_their_gradients(met: Path):
    """Losses halved over two processes, gradients summed: as if one process held all rows."""
    parts = [torch.load(met / str(rank), weights_only=True)["gathered"] for rank in range(2)]
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


def test_what_the_first_process_makes_is_made_once(met: Path):
    one: Any = OneOfMany()
    assert devices.from_first(one, lambda: 3) == 3  # alone
    first, second = (torch.load(met / str(rank), weights_only=True)["found"] for rank in range(2))
    assert first == {"by": 0, "error": "OSError: full"}
    assert second == {"by": 0, "error": "RuntimeError: the first process stopped: OSError: full"}
    assert [path.name for path in met.glob("made*")] == ["made0"]


def _like_torchrun(rank: int, folder: str) -> None:
    """A whole program in each process; which of them prepared is written down."""
    os.environ.update(
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": Path(folder, "port").read_text(), "TORCHELASTIC_RUN_ID": "test"}
    )
    torch.set_num_threads(1)
    from scgpt_tl.engine import pretrain, run
    from scgpt_tl.tl._pretrain import scgpt_pretrain

    def watched(name: str, inner):
        return lambda *args, **how: (Path(folder) / f"{name}.{rank}").touch() or inner(*args, **how)

    pretrain._vocabulary, run.svd_table = watched("counts", pretrain._vocabulary), watched("table", run.svd_table)
    train = TrainConfig(epochs=1, cells=16, max_length=30, device="cpu", progress=False, devices=2)
    model = scgpt_pretrain(Path(folder) / "a.h5ad", out=Path(folder) / "m", size="nano", train=train)
    (Path(folder) / f"{rank}").write_text(model.sha256)
    dist.destroy_process_group()


def test_one_of_two_programs_prepares_the_corpus(tmp_path: Path, toy_cells):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    toy_cells(32).write_h5ad(tmp_path / "a.h5ad")
    in_two(_like_torchrun, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.[01]")) == ["counts.0", "table.0"]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def _sleeps(folder: Path) -> None:
    signal.signal(signal.SIGTERM, lambda *_: (folder / "heard").touch() or os._exit(0))
    (folder / "ready").touch()
    time.sleep(60)
    os._exit(1)  # a copy of the test run


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_signal_to_the_parent_alone_reaches_its_children(tmp_path: Path, monkeypatch, kind: type[BaseException]):
    fabric = devices.fabric_for(TrainConfig(device="cpu", devices=2, strategy="ddp_spawn"), tmp_path)

    def starts(_work) -> None:
        multiprocessing.get_context("fork").Process(target=_sleeps, args=(tmp_path,)).start()
        for _ in range(3000):
            if (tmp_path / "ready").exists():
                break
            time.sleep(0.01)
        raise kind

    monkeypatch.setattr(fabric, "launch", starts)
    with pytest.raises(kind):
        devices.launch(fabric, lambda *_: None)
    assert (tmp_path / "heard").exists()
    assert multiprocessing.active_children() == []


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


if __name__ == "__main__":  # see `in_two`
    globals()[sys.argv[1]](int(sys.argv[2]), sys.argv[3])

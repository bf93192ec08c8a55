"""The training loop: schedule, checkpoints, going on bit for bit, Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scgpt_tl._random import name_keys
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.data import Study
from scgpt_tl.engine.recipes import GENERATIVE, GENERATIVE_CONTRAST
from scgpt_tl.engine.train import Trainee, fit
from scgpt_tl.tokens.tokenize import Tokenizer

KEYS = name_keys(f"gene{i}" for i in range(62))
TRAIN = TrainConfig(epochs=3, cells=16, max_length=20, held_out=0.1, device="cpu", progress=False, learning_rate=3e-3)


def network() -> Network:
    torch.manual_seed(0)
    config = ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.2, flag_unknown=True)
    return Network(config)


@pytest.fixture(scope="module")
def studies(toy_rows: Callable[..., object]) -> list[Study]:
    tokenizer = Tokenizer(np.arange(60), KEYS, 60, max_length=20)
    return [Study(name, toy_rows(n, 60, density=0.5, seed=n), tokenizer) for name, n in (("a", 40), ("b", 25))]


def run(studies: list[Study], folder: Path, train: TrainConfig = TRAIN, recipe=GENERATIVE_CONTRAST, **options):
    net = network()
    history = fit(net, studies, recipe, train, folder=folder, seed=0, **options)
    return net, history


def cut_at(monkeypatch: pytest.MonkeyPatch, epoch: int, error: type[BaseException], *, batch: int = 1) -> None:
    """Stop in the middle of an epoch."""
    inner = Trainee.training_step

    def step(self: Trainee, cells: object, batch_idx: int) -> torch.Tensor:
        if (self.current_epoch, batch_idx) == (epoch, batch):
            msg = "cut off"
            raise error(msg)
        return inner(self, cells, batch_idx)

    monkeypatch.setattr(Trainee, "training_step", step)


@pytest.fixture(scope="module")
def unbroken(studies, tmp_path_factory: pytest.TempPathFactory):
    return run(studies, tmp_path_factory.mktemp("unbroken"))


def assert_equal(first: Network, second: Network) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_history_tells_of_every_epoch(unbroken):
    net, history = unbroken
    assert [h["epoch"] for h in history] == [0, 1, 2]
    steps = history[0]["step"]
    assert [h["step"] for h in history] == [steps, 2 * steps, 3 * steps]
    for part in ("loss", "gep", "gepc", "prompt", "contrast"):
        assert all(np.isfinite([h[f"train/{part}"], h[f"held_out/{part}"]]).all() for h in history)
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert not net.training


def test_the_same_arguments_give_the_same_weights(studies, unbroken, tmp_path: Path):
    torch.manual_seed(99)  # nothing is drawn from the global stream before it is seeded
    net, history = run(studies, tmp_path)
    assert_equal(net, unbroken[0])
    assert history == unbroken[1]


@pytest.mark.parametrize("epoch", [1, 2])
def test_going_on_gives_the_same_weights_bit_for_bit(studies, unbroken, tmp_path: Path, monkeypatch, epoch: int):
    with monkeypatch.context() as patch:
        cut_at(patch, epoch, RuntimeError)
        with pytest.raises(RuntimeError, match="cut off"):
            run(studies, tmp_path)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    seen = []
    monkeypatch.setattr(Trainee, "on_train_epoch_start", lambda self: seen.append(self.current_epoch), raising=False)
    net, history = run(studies, tmp_path)
    assert seen == list(range(epoch, 3))
    assert_equal(net, unbroken[0])
    assert history == unbroken[1]
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_a_run_cut_off_in_its_first_epoch_starts_anew(studies, unbroken, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        cut_at(patch, 0, RuntimeError)
        with pytest.raises(RuntimeError, match="cut off"):
            run(studies, tmp_path)
    assert_equal(run(studies, tmp_path)[0], unbroken[0])


def test_without_resume_it_starts_anew(studies, unbroken, tmp_path: Path):
    run(studies, tmp_path, replace(TRAIN, epochs=1))
    net, history = run(studies, tmp_path, resume=False)
    assert [h["epoch"] for h in history] == [0, 1, 2]
    assert_equal(net, unbroken[0])


def test_ctrl_c_is_ctrl_c(studies, tmp_path: Path, monkeypatch):
    cut_at(monkeypatch, 1, KeyboardInterrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(studies, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "last.ckpt").exists()


def test_an_exit_stays_an_exit(studies, tmp_path: Path, monkeypatch):
    cut_at(monkeypatch, 0, SystemExit)
    with pytest.raises(SystemExit, match="cut off"):
        run(studies, tmp_path)


def test_nothing_held_out(studies, tmp_path: Path):
    _, history = run(studies, tmp_path, replace(TRAIN, epochs=1, held_out=0.0), GENERATIVE)
    assert set(history[0]) == {"epoch", "step", "train/loss", "train/gep", "train/gepc", "train/prompt"}


def test_the_rate_warms_up_and_falls_to_a_tenth():
    trainee = Trainee(network(), GENERATIVE, replace(TRAIN, warmup=0.1), steps=100, seed=0)
    rates = [trainee._factor(step) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[100] == pytest.approx(0.1)
    assert rates[55] == pytest.approx(0.55)
    none = Trainee(network(), GENERATIVE, replace(TRAIN, warmup=0.0), steps=1, seed=0)
    assert none._factor(0) == 1


def test_an_absent_device_is_refused(studies, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': no usable CUDA device here"):
        run(studies, tmp_path, replace(TRAIN, device="cuda"))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"cells": -1}, {"learning_rate": 0.0}, {"held_out": 1.0}])
def test_options_that_cannot_work_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainConfig(**options)

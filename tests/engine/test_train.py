"""The training loop: schedule, passes, going on bit for bit, and everything that can stop it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgpt_tl._random import name_keys
from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine import checkpoint, devices
from scgpt_tl.engine import train as training
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.passes import Learner
from scgpt_tl.engine.recipes import GENERATIVE, GENERATIVE_CONTRAST, GENERATIVE_PUBLISHED, Recipe
from scgpt_tl.engine.train import Task, fit
from scgpt_tl.tokens.tokenize import Tokenizer

if TYPE_CHECKING:
    from scgpt_tl.engine.study import Study

KEYS = name_keys(f"gene{i}" for i in range(62))
TRAIN = TrainConfig(epochs=3, cells=16, max_length=20, held_out=0.1, device="cpu", progress=False, learning_rate=3e-3)


def network(dropout: float = 0.2) -> Network:
    torch.manual_seed(0)
    config = ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=dropout, flag_unknown=True)
    return Network(config)


@pytest.fixture(scope="module")
def studies(toy_study: Callable[..., Study]) -> list[Study]:
    tokenizer = Tokenizer(np.arange(60), KEYS, 60, max_length=20)
    return [toy_study(name, n, tokenizer) for name, n in (("a", 40), ("b", 25))]


def run(
    studies: list[Study], folder: Path, train: TrainConfig = TRAIN, recipe=GENERATIVE_CONTRAST, net=None, **options
):
    net = net or network()
    folder.mkdir(exist_ok=True)
    fabric = devices.fabric_for(train, folder)
    history = fit(fabric, Task(net, studies, recipe, train, folder, seed=0, **options))
    return net, history


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Let something happen when a step begins."""
    inner = training._Fit._step

    def patched(self, draw, minibatch):
        if self.progress.step == step:
            act()
        return inner(self, draw, minibatch)

    monkeypatch.setattr(training._Fit, "_step", patched)


def fail() -> None:
    msg = "cut off"
    raise RuntimeError(msg)


@pytest.fixture(scope="module")
def unbroken(studies, tmp_path_factory: pytest.TempPathFactory):
    return run(studies, tmp_path_factory.mktemp("unbroken"))


def assert_equal(first: Network, second: Network) -> None:
    assert list(first.state_dict()) == list(second.state_dict())
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def assert_close(first: Network, second: Network, **tolerance: float) -> None:
    """Keys' biases aside: softmax does not hear of them, and Adam makes steps of their gradients' rounding."""
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        if name.endswith("qkv.bias"):
            continue
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# ---- what a run gives


def test_the_history_tells_of_every_epoch(unbroken):
    net, history = unbroken
    assert [h["epoch"] for h in history] == [0, 1, 2]
    steps = history[0]["step"]
    assert [h["step"] for h in history] == [steps, 2 * steps, 3 * steps]
    for part in ("loss", "gep", "gepc", "prompt", "contrast"):
        assert all(np.isfinite([h[f"train/{part}"], h[f"held_out/{part}"]]).all() for h in history)
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())


def test_the_loss_is_the_weighted_sum_of_its_parts(unbroken):
    for h in unbroken[1]:
        parts = sum(w * h[f"train/{name}"] for name, w in GENERATIVE_CONTRAST.weights.items())
        assert h["train/loss"] == pytest.approx(parts, rel=1e-5)


def test_the_same_arguments_give_the_same_weights(studies, unbroken, tmp_path: Path):
    torch.manual_seed(99)  # nothing is drawn from the global stream before it is seeded
    before = torch.get_rng_state()
    net, history = run(studies, tmp_path)
    assert_equal(net, unbroken[0])
    assert history == unbroken[1]
    torch.manual_seed(99)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_held_out(studies, tmp_path: Path):
    _, history = run(studies, tmp_path, replace(TRAIN, epochs=1, held_out=0.0), GENERATIVE)
    assert set(history[0]) == {"epoch", "step", "train/loss", "train/gep", "train/gepc", "train/prompt"}


def test_studies_of_their_own_to_validate_on(studies, tmp_path: Path):
    train = replace(TRAIN, epochs=1)
    net, history = run(studies[:1], tmp_path / "a", train, GENERATIVE, validate=studies[1:])
    assert history[0]["step"] == 3  # 40 cells, all of them train
    other = run(studies[:1], tmp_path / "b", replace(train, held_out=0.0), GENERATIVE)
    assert_equal(net, other[0])
    assert np.isfinite(history[0]["held_out/loss"])


def test_cell_prompts_may_join_later(studies, tmp_path: Path):
    late = replace(GENERATIVE, prompt_after=4)
    _, history = run(studies, tmp_path, replace(TRAIN, epochs=3), late)
    assert history[0]["train/prompt"] > 0  # its last step alone
    assert history[0]["train/prompt"] < history[1]["train/prompt"]
    assert history[0]["held_out/prompt"] > 0
    assert GENERATIVE_PUBLISHED.prompt_after == 1000


# ---- a step is the same, however it is cut

TOKENS = replace(GENERATIVE, name="no pairs")


@pytest.mark.parametrize("cut", [{"accumulate": 4}, {"max_tokens": 70}, {"max_memory": 400_000}])
def test_passes_add_up_to_the_step(studies, tmp_path: Path, cut: dict[str, int]):
    net, history = run(studies, tmp_path / "one", replace(TRAIN, epochs=1), TOKENS, network(0.0))
    made = []
    for name, options in (("cut", cut), ("again", cut)):
        made.append(run(studies, tmp_path / name, replace(TRAIN, epochs=1, **options), TOKENS, network(0.0)))
    assert_close(made[0][0], net, atol=1e-4, rtol=1e-3)
    assert made[0][1][0]["train/loss"] == pytest.approx(history[0]["train/loss"], rel=1e-5)
    assert_equal(made[0][0], made[1][0])


def test_recomputing_blocks_changes_nothing(studies, unbroken, tmp_path: Path):
    net, history = run(studies, tmp_path, replace(TRAIN, checkpointing=True))
    assert_close(net, unbroken[0], atol=1e-4, rtol=1e-3)
    assert history[-1]["train/loss"] == pytest.approx(unbroken[1][-1]["train/loss"], rel=1e-4)


def test_out_of_memory_halves_the_passes(studies, tmp_path: Path, monkeypatch, caplog):
    inner, seen = Learner.forward, []

    def forward(self, work):
        seen.append(work.minibatch.cells.n_tokens)
        if seen[-1] > 100:
            msg = "no memory"
            raise torch.OutOfMemoryError(msg)
        return inner(self, work)

    monkeypatch.setattr(Learner, "forward", forward)
    with caplog.at_level(logging.WARNING):
        net, _ = run(studies, tmp_path, replace(TRAIN, epochs=1, held_out=0.0), TOKENS, network(0.0))
    assert "max_tokens=" in caplog.text
    assert max(seen[3:]) <= 200
    monkeypatch.undo()
    whole, _ = run(studies, tmp_path / "whole", replace(TRAIN, epochs=1, held_out=0.0), TOKENS, network(0.0))
    assert_close(net, whole, atol=1e-4, rtol=1e-3)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["progress"]["limit"]
    assert kept <= 100


def test_one_cell_that_does_not_fit_is_an_error(studies, tmp_path: Path, monkeypatch):
    def forward(self, work):
        msg = "no memory"
        raise torch.OutOfMemoryError(msg)

    monkeypatch.setattr(Learner, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        run(studies, tmp_path)


def test_bfloat16(studies, unbroken, tmp_path: Path):
    net, history = run(studies, tmp_path, replace(TRAIN, precision="bf16-mixed"))
    assert next(net.parameters()).dtype == torch.float32
    assert history[-1]["train/loss"] == pytest.approx(unbroken[1][-1]["train/loss"], rel=0.05)


# ---- going on


@pytest.mark.parametrize("step", [1, 3, 5, 9, 13])
def test_going_on_gives_the_same_weights_bit_for_bit(studies, unbroken, tmp_path: Path, monkeypatch, step: int):
    train = replace(TRAIN, save_every=2)
    with monkeypatch.context() as patch:
        at_step(patch, step, fail)
        with pytest.raises(RuntimeError, match="cut off"):
            run(studies, tmp_path, train)
    first = []
    inner = training._Fit._step
    monkeypatch.setattr(training._Fit, "_step", lambda self, *a: (first.append(self.progress.step), inner(self, *a))[1])
    net, history = run(studies, tmp_path, train)
    assert 0 <= step - first[0] <= 2  # no more than `save_every` steps are done again
    assert_equal(net, unbroken[0])
    assert history == unbroken[1]
    assert [path.name for path in tmp_path.glob("*.ckpt*")] == ["last.ckpt"]


@pytest.mark.usefixtures("signals_heard")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_finishes_the_step_and_saves(studies, unbroken, tmp_path: Path, monkeypatch, number, error):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: os.kill(os.getpid(), number))
        with pytest.raises(error, match="stopped and saved after step 8; the same call goes on from there"):
            run(studies, tmp_path)
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["progress"]["step"] == 8
    net, history = run(studies, tmp_path)
    assert_equal(net, unbroken[0])
    assert history == unbroken[1]


def test_another_number_of_processes_is_said(studies, unbroken, tmp_path: Path, caplog):
    run(studies, tmp_path, replace(TRAIN, epochs=1))
    last = tmp_path / "last.ckpt"
    kept = torch.load(last, weights_only=True)
    kept["progress"]["world"] = 4
    torch.save(kept, last)
    with caplog.at_level(logging.WARNING):
        _, history = run(studies, tmp_path, replace(TRAIN, epochs=1))
    assert "was written by 4 processes and goes on with 1" in caplog.text
    assert [h["epoch"] for h in history] == [0]
    assert torch.load(last, weights_only=True)["progress"]["world"] == 4  # nothing was left to do, nothing was written


@pytest.mark.parametrize("progress", [{"step": 3}, {"mood": 1}, None])
def test_a_checkpoint_that_tells_no_place_is_refused(studies, tmp_path: Path, progress: dict | None):
    run(studies, tmp_path, replace(TRAIN, epochs=1), GENERATIVE)
    last = tmp_path / "last.ckpt"
    kept = torch.load(last, weights_only=True)
    torch.save({name: x for name, x in (kept | {"progress": progress}).items() if x is not None}, last)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged or of another version .*resume=False starts anew"):
        run(studies, tmp_path, replace(TRAIN, epochs=1), GENERATIVE)


def test_without_resume_it_starts_anew(studies, unbroken, tmp_path: Path):
    run(studies, tmp_path, replace(TRAIN, epochs=1))
    net, history = run(studies, tmp_path, resume=False)
    assert [h["epoch"] for h in history] == [0, 1, 2]
    assert_equal(net, unbroken[0])


def test_a_loss_that_is_no_number_stops_the_run(studies, tmp_path: Path, monkeypatch):
    inner = Learner.forward

    def forward(self, work):
        total, parts = inner(self, work)
        return (total * float("nan") if work.step == 6 else total), parts

    monkeypatch.setattr(Learner, "forward", forward)
    with pytest.raises(FloatingPointError, match=r"no number at step 6 \(loss nan.*on cells \d+, .* of '[ab]'") as told:
        run(studies, tmp_path, replace(TRAIN, save_every=2))
    assert "a checkpoint in" in str(told.value)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["progress"]["step"] <= 6
    assert all(torch.isfinite(x).all() for x in kept["module"].values())


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_gradients_that_are_no_numbers_stop_it_too(studies, tmp_path: Path, monkeypatch, clip: float):
    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    inner = Learner.forward
    monkeypatch.setattr(
        Learner, "forward", lambda self, work: (Explode.apply((found := inner(self, work))[0]), found[1])
    )
    with pytest.raises(FloatingPointError):
        run(studies, tmp_path, replace(TRAIN, clip=clip))


@pytest.mark.parametrize("held_out", [0.1, 0.0])
@pytest.mark.parametrize("step", [1, 4, 9])
def test_weights_that_an_update_spoilt_are_not_kept(studies, tmp_path: Path, monkeypatch, held_out: float, step: int):
    """Too large for a loss, though numbers: told before `save_every`, an epoch's end and the run's end write them."""
    monkeypatch.setattr(training, "learning_rate", lambda _, at, *__, **___: 1e30 if at == step else 1e-3)
    train = replace(TRAIN, held_out=held_out, epochs=2, save_every=2, keep="best")
    with pytest.raises(FloatingPointError, match=f"the loss is no number at step {step + 1} ") as told:
        run(studies, tmp_path, train, GENERATIVE)
    kept = list(tmp_path.glob("*.ckpt"))
    assert bool(kept) == (step > 1) == ("is from before" in str(told.value))
    for file in kept:
        weights = torch.load(file, weights_only=True)["module"].values()
        assert max(float(x.abs().max()) for x in weights) < 1e3


def test_a_weight_that_is_no_number_is_not_kept(studies, tmp_path: Path, monkeypatch):
    def held_out(self) -> dict[str, float]:
        if self.progress.epoch == 1:
            self.network.backbone.genes.table.weight.data[61] = np.nan  # that of padding: no loss tells
        return {"held_out/loss": 1.0}

    monkeypatch.setattr(training._Fit, "_held_out", held_out)
    with pytest.raises(FloatingPointError, match=r"a weight is no number at step 10 \(loss 1\), on the cells held out"):
        run(studies, tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["progress"]["step"] == 5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("step", [1, 7])
def test_what_is_said_to_mend_it(studies, tmp_path: Path, monkeypatch, precision: str, step: int):
    """What is there, and what is not done already."""
    monkeypatch.setattr(training, "learning_rate", lambda _, at, *__, **___: 1e30 if at == step else 1e-3)
    with pytest.raises(FloatingPointError) as told:
        run(studies, tmp_path, replace(TRAIN, precision=precision, clip=0.0), GENERATIVE)
    said = str(told.value)
    assert ("no checkpoint was written before" in said) == (step == 1)
    assert ("a checkpoint in" in said) == ("resume=False" in said) == (step == 7)
    assert ("precision='32-true'" in said) == (precision == "bf16-mixed")
    assert "clip=1.0" in said


def feeding() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")}


@pytest.mark.parametrize("where", ["_step", "_add_held_out"])
def test_an_error_stops_the_threads_that_read(studies, tmp_path: Path, monkeypatch, where: str):
    """At once, not when the error with its frames is forgotten."""
    before = feeding()
    seen = []

    def stop(self, *args):
        seen.extend(feeding() - before)
        fail()

    monkeypatch.setattr(training._Fit, where, stop)
    with pytest.raises(RuntimeError, match="cut off") as told:
        run(studies, tmp_path)
    assert told.traceback
    assert seen
    assert feeding() == before


# ---- random streams


def test_training_on_a_cpu_leaves_the_streams_of_devices_alone(studies, tmp_path: Path, monkeypatch):
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("a CUDA stream was seeded"))
    before = torch.get_rng_state()
    fabric = devices.fabric_for(TRAIN, tmp_path)
    net = Network(ModelConfig(62, 61, 60, d_model=16, n_heads=2, n_layers=1, d_ff=16, dropout=0.2, flag_unknown=True))
    torch.set_rng_state(before)
    fit(fabric, Task(net, studies, GENERATIVE, replace(TRAIN, epochs=1), tmp_path, seed=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_training_on_a_gpu_hands_its_stream_back(studies, tmp_path: Path):
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    train = replace(TRAIN, epochs=1, device="cuda", precision="32-true")
    one, _ = run(studies, tmp_path / "a", train, GENERATIVE)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed(6)
    two, _ = run(studies, tmp_path / "b", train, GENERATIVE)
    assert_close(one.cpu(), two.cpu(), atol=1e-4, rtol=1e-3)  # dropout follows the step


# ---- schedule, early stop, best


def rates(monkeypatch: pytest.MonkeyPatch, studies, folder: Path, train: TrainConfig) -> list[float]:
    seen, inner = [], training._Fit._step

    def step(self, *args):
        found = inner(self, *args)
        seen.append(self.optimizer.param_groups[0]["lr"])
        return found

    monkeypatch.setattr(training._Fit, "_step", step)
    run(studies, folder, train, GENERATIVE)
    return seen


def test_cosine_warms_up_and_falls_to_a_tenth(studies, tmp_path: Path, monkeypatch):
    found = np.array(rates(monkeypatch, studies, tmp_path, replace(TRAIN, epochs=8, warmup=0.2, learning_rate=1.0)))
    warm = int(len(found) * 0.2)
    np.testing.assert_allclose(found[:warm], np.arange(1, warm + 1) / warm)
    done = np.arange(len(found) - warm) / (len(found) - warm)
    np.testing.assert_allclose(found[warm:], 0.1 + 0.9 * np.cos(np.pi * done / 2) ** 2, rtol=1e-12)


def test_the_published_schedule_falls_after_each_epoch(studies, tmp_path: Path, monkeypatch):
    train = replace(TRAIN, warmup=0.0, schedule="epoch", decay=0.5, learning_rate=1.0)
    found = rates(monkeypatch, studies, tmp_path, train)
    np.testing.assert_allclose(found, np.repeat([1, 0.5, 0.25], len(found) // 3))


def test_patience(studies, tmp_path: Path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    monkeypatch.setattr(training._Fit, "_held_out", lambda self: {"held_out/loss": next(losses)})
    _, history = run(studies, tmp_path, replace(TRAIN, epochs=5, patience=2), GENERATIVE)
    assert [h["held_out/loss"] for h in history] == [3.0, 2.0, 2.5, 2.6]


def test_what_waits_for_a_held_out_loss_needs_one(studies, tmp_path: Path, caplog):
    with pytest.raises(ValueError, match="patience=2 needs a held-out loss, and no cell is held out"):
        run(studies, tmp_path, replace(TRAIN, patience=2, held_out=0.0))
    with caplog.at_level(logging.WARNING):
        run(studies, tmp_path, replace(TRAIN, epochs=1, keep="best", held_out=0.0), GENERATIVE)
    assert "the last epoch is kept" in caplog.text


def test_no_cell_left_to_train_on(studies, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no cell is left to train on with held_out=0\.999"):
        run(studies, tmp_path, replace(TRAIN, held_out=0.999))


def test_the_best_epoch_is_kept(studies, tmp_path: Path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5])
    monkeypatch.setattr(training._Fit, "_held_out", lambda self: {"held_out/loss": next(losses)})
    best, _ = run(studies, tmp_path / "best", replace(TRAIN, keep="best"), GENERATIVE)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(training._Fit, "_patience_is_over", lambda self: self.progress.epoch == 2)
        second, _ = run(studies, tmp_path / "two", TRAIN, GENERATIVE)
    assert_equal(best, second)


# ---- what learns


def test_frozen_parts_stay(studies, tmp_path: Path):
    start = network().state_dict()
    net, _ = run(studies, tmp_path, replace(TRAIN, epochs=1, freeze=("genes", "layers:1")), GENERATIVE)
    moved = {name for name, x in net.state_dict().items() if not torch.equal(x, start[name])}
    assert not {n for n in moved if n.startswith(("backbone.genes.", "backbone.blocks.0."))}
    assert {n for n in moved if n.startswith("backbone.blocks.1.")}
    assert all(p.requires_grad for p in net.parameters())


def test_adapters_are_merged_in_the_end_and_resume(studies, tmp_path: Path, monkeypatch):
    pytest.importorskip("peft")
    train = replace(TRAIN, lora=2)
    net, _ = run(studies, tmp_path / "a", train, GENERATIVE)
    assert list(net.state_dict()) == list(network().state_dict())
    start = network().state_dict()
    assert torch.equal(net.state_dict()["backbone.genes.table.weight"], start["backbone.genes.table.weight"])
    assert not torch.equal(
        net.state_dict()["backbone.blocks.0.attn.qkv.weight"], start["backbone.blocks.0.attn.qkv.weight"]
    )
    with monkeypatch.context() as patch:
        at_step(patch, 6, fail)
        with pytest.raises(RuntimeError, match="cut off"):
            run(studies, tmp_path / "b", train, GENERATIVE)
    assert_equal(run(studies, tmp_path / "b", train, GENERATIVE)[0], net)


# ---- arguments


def test_an_absent_device_is_refused(studies, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': no usable CUDA device here"):
        run(studies, tmp_path, replace(TRAIN, device="cuda"))


def test_a_logger_of_lightning(studies, tmp_path: Path):
    run(studies, tmp_path, replace(TRAIN, epochs=2, loggers=("csv",)), GENERATIVE)
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "held_out/loss" in text
    assert len(text.splitlines()) == 3


def test_a_recipe_with_one_objective(studies, tmp_path: Path):
    _, history = run(studies, tmp_path, replace(TRAIN, epochs=1), Recipe("gepc", {"gepc": 1.0}))
    assert set(history[0]) >= {"train/gepc", "held_out/gepc"}
    assert "train/gep" not in history[0]
    assert (tmp_path / checkpoint.LAST).exists()

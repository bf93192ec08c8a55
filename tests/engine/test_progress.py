"""Where a run stands, and its learning rate."""

from __future__ import annotations

import numpy as np
import pytest

from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.progress import Progress, learning_rate


def test_losses_are_means_over_cells():
    progress = Progress()
    progress.add({"loss": 1.0}, 3)
    progress.add({"loss": 2.0}, 1)
    assert progress.means() == {"loss": 1.25}


def test_what_was_kept_is_ours():
    kept = vars(Progress(epoch=2))
    assert Progress.of(kept) == Progress(epoch=2)
    for other in (kept | {"mood": 1}, {name: x for name, x in kept.items() if name != "step"}):
        with pytest.raises(ValueError, match=r"progress has other fields: (mood|step)"):
            Progress.of(other)


def test_the_best_epoch_is_told():
    progress = Progress(step=7, position=7)
    assert [progress.end_epoch({"held_out/loss": x}) for x in (3.0, 2.0, 2.5, float("nan"), 1.0)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert (progress.epoch, progress.position, progress.waited, progress.best) == (5, 0, 0, 1.0)
    assert progress.history[0] == {"epoch": 0, "step": 7, "held_out/loss": 3.0}
    assert not Progress().end_epoch({})


def rates(steps: int = 100, **options) -> np.ndarray:
    train = TrainConfig(learning_rate=2.0, **options)
    return np.array([learning_rate(train, step, step // 10, steps=steps) for step in range(steps + 1)])


def test_cosine_warms_up_and_falls_to_a_tenth():
    found = rates(warmup=0.1)
    np.testing.assert_allclose(found[:10], 2 * np.arange(1, 11) / 10)
    assert found[10] == 2
    assert (np.diff(found[10:]) < 0).all()
    assert found[55] == pytest.approx(2 * 0.55)
    assert found[100] == pytest.approx(0.2)


def test_the_published_schedule_falls_after_each_epoch():
    np.testing.assert_allclose(rates(warmup=0, schedule="epoch", decay=0.5), 2 * 0.5 ** (np.arange(101) // 10))


def test_constant():
    assert set(rates(warmup=0, schedule="constant")) == {2.0}

"""What learns to integrate, and what it keeps; `tests/tl/test_integrate.py` runs it on cells."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.integrate import PRESETS, Integrator, train_for
from scgpt_tl.engine.recipes import INTEGRATION

SMALL = ModelConfig(n_tokens=20, pad_id=17, cls_id=18, d_model=128, n_heads=4)
LARGE = replace(SMALL, d_model=512)


def test_the_paper_s_schedule_to_the_letter():
    """Preprint, section 4.5, and the published integration tutorial."""
    for config in (SMALL, LARGE):
        train = train_for("paper", config, None, 2700)
        said = (train.learning_rate, train.schedule, train.decay, train.epochs, train.cells, train.keep)
        assert said == (1e-4, "epoch", 0.9, 15, 64, "best")
        assert (train.zeros, train.max_length, train.held_out, train.warmup) == (True, 1201, 0.1, 0.0)
    recipe = PRESETS["paper"]
    assert recipe is INTEGRATION
    assert recipe.weights == {
        "gep": 1.0, "gep_zeros": 1.0, "gepc": 1.0, "gepc_zeros": 1.0, "ecs": 10.0, "dar": 1.0,
    }  # fmt: skip
    assert (recipe.corruption, recipe.ratios, recipe.ecs_threshold) == ("mask", (0.4,), 0.8)
    assert recipe.network["input_norm"] == "domain"
    assert recipe.network["batch_in_heads"]


def test_a_small_network_is_shown_a_bounded_number_of_cells():
    shown = [n * train_for("auto", SMALL, None, n).epochs for n in (1_000, 3_000, 12_000)]
    assert shown == sorted(shown)
    assert all(not train_for("auto", config, None, 2700).zeros for config in (SMALL, LARGE))
    assert train_for("auto", LARGE, None, 2700).learning_rate == 1e-4


def test_what_the_user_gives_is_taken():
    given = TrainConfig(epochs=3)
    assert train_for("auto", SMALL, given, 100) is given
    with pytest.raises(ValueError, match="devices=2, nodes=1: integration learns in one process"):
        train_for("auto", SMALL, TrainConfig(devices=2), 100)


def test_a_model_that_has_not_learned():
    with pytest.raises(ValueError, match="give one of these, or the model from which to learn"):
        Integrator.of(SimpleNamespace(name="m", provenance={}, batches=("a", "b")))

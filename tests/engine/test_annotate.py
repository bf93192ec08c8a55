"""Learning cell types: which cells are held out, how it is trained by default, what a probe and a kNN keep."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scgpt_tl._random import mix_words, stream_key
from scgpt_tl.engine.annotate import (
    _fitted,
    _regression,
    check_method,
    default_train,
    held_out_cells,
    options_for,
)
from scgpt_tl.engine.annotator import Annotator
from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.predict import Compute
from scgpt_tl.models.model import load_model


def keys(n: int, seed: int = 0) -> np.ndarray:
    return mix_words(np.arange(n, dtype=np.uint64), stream_key(seed, 1, 0))


def test_a_tenth_of_each_class_is_held_out():
    codes = np.repeat([0, 1, 2, 3, 4, -1], [100, 37, 5, 4, 1, 50])
    held = held_out_cells(codes, keys(len(codes)), seed=0)
    assert [int(held[codes == code].sum()) for code in (0, 1, 2, 3, 4, -1)] == [10, 4, 1, 0, 0, 0]


def test_the_choice_follows_cells_and_seed_and_not_their_order():
    codes, words = np.arange(200) % 3, keys(200)
    held = held_out_cells(codes, words, seed=0)
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(held_out_cells(codes[order], words[order], seed=0), held[order])
    assert (held_out_cells(codes, words, seed=1) != held).any()


def test_of_few_cells_one_is_held_out_and_one_stays():
    codes = np.array([0, 0, 1, 1, 1, 2])
    held = held_out_cells(codes, keys(6), seed=0)
    assert [int(held[codes == code].sum()) for code in range(3)] == [1, 1, 0]


def test_the_share_held_out_is_the_users():
    codes = np.repeat([0, 1], [100, 3])
    counts = [held_out_cells(codes, keys(103), seed=0, share=share).sum() for share in (0.0, 0.25, 0.99)]
    assert counts == [0, 26, 101]  # one of each class stays
    config = load_model("pbmc-mini").config
    given = [None, TrainConfig(), {"held_out": 0.3}, {"epochs": 3}, TrainConfig(held_out=0)]
    assert [options_for("knn", config, x, 100).held_out for x in given] == [0.1, 0.02, 0.3, 0.1, 0.0]


def test_a_small_network_is_trained_quickly_and_a_large_one_as_published():
    small = load_model("pbmc-mini").config
    epochs = [default_train(small, n).epochs for n in (50, 2700, 12_000, 10**6)]
    assert epochs == sorted(epochs, reverse=True)
    assert (epochs[0], epochs[-1]) == (10, 3)
    large = default_train(replace(small, d_model=512), 2700)
    assert (large.learning_rate, large.schedule, large.decay, large.epochs) == (1e-4, "epoch", 0.9, 10)
    assert {default_train(small, 100).keep, large.keep} == {"best"}


def test_the_method_says_what_learns_and_the_user_the_rest():
    config = load_model("pbmc-mini").config
    given = TrainConfig(epochs=3, learning_rate=0.1, freeze=("genes",))
    head, lora, whole = (options_for(method, config, given, 100) for method in ("head", "lora", "finetune"))
    assert head.freeze == ("genes", "embeddings", "layers")
    assert (lora.lora, head.lora, whole.lora) == (8, 0, 0)
    assert whole.freeze == ("genes",)
    assert {x.learning_rate for x in (head, lora, whole)} == {0.1}
    assert {x.held_out for x in (head, lora, whole)} == {given.held_out}
    some = [options_for(method, config, {"epochs": 3}, 100) for method in ("head", "finetune")]
    assert [(x.epochs, x.learning_rate) for x in some] == [(3, 1e-3), (3, 1e-4)]  # the rest is the method's default


def test_a_method_that_is_none():
    assert check_method("knn") == "knn"
    with pytest.raises(ValueError, match="did you mean 'probe'"):
        check_method("prob")


def test_lora_asks_for_its_package_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"scgpt_tl\[lora\]"):
        check_method("lora")


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_is_the_regression_of_standardised_embeddings(n_classes: int):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    codes = np.arange(90) % n_classes
    cells = (rng.normal(size=(90, 6)) + 1.5 * np.eye(6)[codes] * [1, 10, 0.1, 1, 1, 1] + 5).astype(np.float32)
    found = _regression(cells, codes, n_classes)
    scaler = StandardScaler().fit(cells)
    theirs = LogisticRegression(C=20 / 90, max_iter=2000).fit(scaler.transform(cells), codes)
    scores = cells @ found["probe.coef"].T + found["probe.intercept"]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(
        shares / shares.sum(1, keepdims=True), theirs.predict_proba(scaler.transform(cells)), atol=1e-3
    )


def test_a_held_out_cell_of_a_knn_is_no_neighbour_of_itself(monkeypatch: pytest.MonkeyPatch):
    """Each alone in its direction, and of another class than its nearest: only itself would call it right."""
    parts = {"train": np.eye(12, dtype=np.float32)[:10], "held_out": np.eye(12, dtype=np.float32)[10:]}
    codes = {"train": np.zeros(10, np.int64), "held_out": np.ones(2, np.int64)}
    monkeypatch.setattr("scgpt_tl.engine.annotate._embedded", lambda _, source, __: parts[source])
    lesson: Any = SimpleNamespace(train="train", held_out="held_out", codes=codes.__getitem__)
    model: Any = replace(load_model("pbmc-mini"), labels=None)
    annotator = Annotator(model, "knn", np.arange(3), 0)
    monkeypatch.setattr(Annotator, "classes", ("a", "b"))
    made, scores, theirs = _fitted(lesson, annotator, Compute())
    assert scores.argmax(1).tolist() == [0, 0]
    assert theirs.tolist() == [1, 1]
    assert made.model.arrays["knn.label"].tolist() == [0] * 10 + [1] * 2
    assert made.told(parts["held_out"]).argmax(1).tolist() == [1, 1]

"""What functions that learn have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from scgpt_tl.engine.config import TrainConfig
from scgpt_tl.engine.predict import Compute
from scgpt_tl.tl._learned import check_save, compute_of, unheard


def test_what_is_heard_of_training_options():
    train = TrainConfig(device="cpu", progress=False, max_memory="1GB", epochs=3, compile=True)
    assert compute_of(train) == Compute(device="cpu", progress=False, max_memory="1GB")
    assert unheard(train) == ["train.epochs", "train.compile"]
    assert unheard(TrainConfig(device="cpu", progress=False, max_tokens=9)) == unheard(None) == []
    assert compute_of(None) == Compute()
    assert compute_of({"device": "cpu", "epochs": 3}) == Compute(device="cpu")
    assert unheard({"device": "cpu", "epochs": 10}) == ["train.epochs"]  # said, if only what it was


def test_where_may_be_learned(tmp_path: Path, tiny: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "native").mkdir()
    for name in ("config.json", "vocab.json", "model.safetensors"):
        (tmp_path / "native" / name).touch()
    for save in (None, tmp_path / "new", tmp_path / "empty", tmp_path / "native"):
        check_save(save, overwrite=False)
    with pytest.raises(FileExistsError, match=r"holds files that are no model of scgpt_tl: .*replaces a saved model"):
        check_save(tiny, overwrite=True)  # a published model
    with pytest.raises(FileExistsError, match=r"save='.*vocab.json' is a file"):
        check_save(tmp_path / "native" / "vocab.json", overwrite=True)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="link is a link to nowhere"):
        check_save(tmp_path / "link", overwrite=True)

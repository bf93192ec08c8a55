"""Model folders to copy, break and mend."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model, load_model


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks into the user's data folder or cache."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SCGPT_TL_DATA", str(home / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    (home / "data" / "models").mkdir(parents=True)


@pytest.fixture
def make_model() -> Callable[..., Model]:
    """`make_model(**config)` -> a small model with weights of its own, every one of them different."""

    def make(*, name: str = "toy", labels=None, batches=None, **options) -> Model:
        vocab = GeneVocab([f"G{i}" for i in range(20)])
        sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24}
        config = ModelConfig(n_tokens=23, pad_id=20, cls_id=21, **(sizes | options))
        torch.manual_seed(0)
        network = Network(config).eval()
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand(tensor.shape)
        return Model(config, vocab, network, name, labels, batches, {"cells": 12, "from": ["tests"]})

    return make


@pytest.fixture
def official(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny official folder, to be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "official"))


@pytest.fixture
def native(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model as a native folder, to be broken."""
    return load_model(tiny).save(tmp_path / "native")


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(file, key=value, ...)` sets keys; the value `...` removes one."""

    def edit(file: Path, **changes: object) -> None:
        content = json.loads(file.read_text(encoding="utf-8")) | changes
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}), encoding="utf-8")

    return edit


@pytest.fixture
def edit_weights() -> Callable[..., None]:
    """`edit_weights(folder, function)` rewrites best_model.pt with what the function makes of its table."""

    def edit(folder: Path, change: Callable[[OrderedDict[str, torch.Tensor]], object]) -> None:
        state = torch.load(folder / "best_model.pt", weights_only=True)
        torch.save(change(state), folder / "best_model.pt")

    return edit

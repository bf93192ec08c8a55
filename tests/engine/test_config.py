"""TrainConfig: one source of options for notebooks, YAML, the command line and the docs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import pytest

import scgpt_tl
from scgpt_tl.engine import config
from scgpt_tl.engine._fields import docs, hints
from scgpt_tl.engine.config import FREE, PRESETS, TrainConfig, read_options

NAMES = [f.name for f in fields(TrainConfig)]
OTHER = {
    "epochs": 3,
    "learning_rate": 1e-5,
    "schedule": "epoch",
    "freeze": ("genes", "layers:2"),
    "max_memory": "8GB",
    "max_tokens": 5000,
    "zeros": True,
    "loggers": ("csv",),
    "progress": False,
    "device": "cpu",
}


def test_every_option_says_what_it_is():
    assert list(docs(TrainConfig)) == NAMES
    assert [name for name, doc in docs(TrainConfig).items() if not doc.endswith(".")] == []


def test_some_options_change_a_default_and_a_config_takes_its_place():
    default, whole = TrainConfig(epochs=3, cells=7), TrainConfig(epochs=5)
    assert default.changed(None) is default
    assert default.changed(whole) is whole
    assert default.changed({"epochs": 4}) == TrainConfig(epochs=4, cells=7)
    with pytest.raises(ValueError, match="unknown training option 'epoch'; did you mean 'epochs'"):
        default.changed({"epoch": 4})
    with pytest.raises(TypeError, match=r"train='fast': a scgpt_tl\.TrainConfig, or a dict"):
        default.changed("fast")  # type: ignore[arg-type]


def test_options_are_learned_or_free():
    """The blank line in the source that parts them, FREE, and `learned` tell the same."""
    assert set(NAMES) > FREE
    assert set(TrainConfig().learned) == set(NAMES) - FREE
    lines = inspect.getsource(TrainConfig).splitlines()
    body = ast.parse("\n".join(lines)).body[0].body
    found = [node for node in body if isinstance(node, ast.AnnAssign)]
    after_blank = [node.target.id for node in found if not lines[node.lineno - 2]]
    assert after_blank == ["epochs", NAMES[len(NAMES) - len(FREE)]]
    assert set(NAMES[len(NAMES) - len(FREE) :]) == FREE


def test_learned_is_plain_and_the_same_after_json():
    learned = TrainConfig(**OTHER).learned
    assert json.loads(json.dumps(learned))["freeze"] == ["genes", "layers:2"]
    assert learned == replace(TrainConfig(**OTHER), devices=4, precision="32-true", progress=True).learned
    assert learned != TrainConfig(**{**OTHER, "epochs": 4}).learned


def test_it_is_a_value():
    assert TrainConfig(**OTHER) == TrainConfig(**OTHER)
    assert len({TrainConfig(), TrainConfig(), TrainConfig(epochs=2)}) == 2
    with pytest.raises(FrozenInstanceError):
        TrainConfig().epochs = 3


def test_values_are_of_their_types_wherever_they_come_from():
    made = TrainConfig(epochs=2.0, learning_rate="1e-4", clip=1, freeze=["genes"], loggers="csv,tensorboard")
    assert made == TrainConfig(epochs=2, learning_rate=0.0001, freeze=("genes",), loggers=("csv", "tensorboard"))
    assert isinstance(made.epochs, int)
    assert isinstance(made.clip, float)


def test_from_mapping():
    assert TrainConfig.from_mapping({}) == TrainConfig()
    assert TrainConfig.from_mapping({**OTHER, "freeze": ["genes", "layers:2"]}) == TrainConfig(**OTHER)
    with pytest.raises(ValueError, match="unknown training option 'epoch'; did you mean 'epochs'"):
        TrainConfig.from_mapping({"epoch": 3})
    with pytest.raises(ValueError, match=f"unknown training option 7; there are {', '.join(NAMES)}"):
        TrainConfig.from_mapping({7: 3})


def test_yaml_there_and_back(tmp_path):
    file = tmp_path / "c.yaml"
    for made in (TrainConfig(), TrainConfig(**OTHER)):
        file.write_text(made.to_yaml())
        assert TrainConfig.read(file) == made
    assert set(read_options(file)) == set(NAMES)
    assert "# Passes over the cells.\nepochs: 3\n" in file.read_text()


def test_yaml_as_people_write_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("# mine\nepochs: 3\nlearning_rate: 1e-5\nfreeze: genes\nmax_memory: 8GB\n")
    assert TrainConfig.read(file) == TrainConfig(epochs=3, learning_rate=1e-5, freeze=("genes",), max_memory="8GB")
    file.write_text("# nothing\n")
    assert TrainConfig.read(str(file)) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs: 3\nmax-length: 5\n", "unknown training option 'max-length'; did you mean 'max_length'"),
        ("- epochs\n", "holds list, expected lines of `option: value`"),
        ("epochs: [3\n", "is not YAML"),
        ("\x00", "is not YAML"),
        ("epochs: three\n", r"TrainConfig\(epochs='three'\): a whole number is needed"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, says):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        TrainConfig.read(file)


def test_yaml_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.yaml"):
        TrainConfig.read(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match="is a folder, expected a YAML file of training options"):
        TrainConfig.read(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"epochs: \xff\n")
    with pytest.raises(ValueError, match="is not YAML"):
        TrainConfig.read(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *(({name: 0}, "1 or more is needed") for name in ("epochs", "cells", "accumulate", "save_every", "devices")),
        ({"nodes": 0}, "1 or more"),
        ({"max_tokens": 0}, "1 or more"),
        ({"max_length": 1}, "2 or more"),
        *(({name: -1}, "0 or more is needed") for name in ("patience", "lora", "clip", "weight_decay")),
        ({"learning_rate": 0}, "a positive number"),
        ({"learning_rate": float("nan")}, "a finite number"),
        ({"learning_rate": "inf"}, "a finite number"),
        ({"decay": 0}, "above 0 and up to 1"),
        ({"decay": 1.1}, "above 0 and up to 1"),
        ({"warmup": 1}, "from 0 to below 1"),
        ({"held_out": -0.1}, "from 0 to below 1"),
        ({"schedule": "cosin"}, "unknown; did you mean 'cosine'"),
        ({"keep": "all"}, "unknown; there are last, best"),
        ({"precision": "bf16-mix"}, "did you mean 'bf16-mixed'"),
        ({"strategy": "dpp"}, "did you mean 'ddp'"),
        ({"loggers": ["csv", "tensorbord"]}, "did you mean 'tensorboard'"),
        ({"freeze": ["layer"]}, "no part 'layer'; did you mean 'layers'"),
        ({"keep": False}, "text is needed; there are last, best"),  # YAML's `keep: no`
        ({"precision": 16}, "text is needed; there are auto, 32-true, bf16-mixed, 16-mixed"),
        ({"loggers": 3}, "a list of names is needed; there are tensorboard, csv"),
        ({"epochs": True}, "a whole number"),
        ({"progress": "off"}, "true or false"),
        ({"max_memory": 8.5}, "a number of bytes"),
    ],
)
def test_values_that_are_refused(options, says):
    (name,) = options
    with pytest.raises(ValueError, match=rf"^TrainConfig\({name}=.*{says}"):
        TrainConfig(**options)


def test_memory_that_is_no_size_is_refused_at_once():
    for text in ("abc", 0, "8 GBs"):
        with pytest.raises(
            ValueError, match=f"^max_memory={text!r}; give a positive number of bytes, or text like '4GB'"
        ):
            TrainConfig(max_memory=text)
    assert TrainConfig(max_memory="8 GiB").max_memory == "8 GiB"


def test_adapters_and_shards_do_not_go_together():
    with pytest.raises(ValueError, match="adapters cannot be merged into sharded weights; give 'ddp'"):
        TrainConfig(lora=8, strategy="fsdp")
    assert TrainConfig(strategy="fsdp").lora == 0


def test_the_edges_are_allowed():
    TrainConfig(decay=1, warmup=0, held_out=0, clip=0, lora=0, patience=0, max_length=2, freeze=("layers:40",))


@pytest.mark.parametrize("memory", PRESETS)
def test_presets(memory):
    made = TrainConfig.for_memory(memory, epochs=3)
    assert made.epochs == 3
    assert {name: getattr(made, name) for name in PRESETS[memory]} == PRESETS[memory]
    assert made.lora > 0
    assert made.precision == "auto"
    assert float(made.max_memory.removesuffix("GB")) < float(memory.removesuffix("GB"))
    assert TrainConfig.for_memory(memory, lora=0).lora == 0


def test_a_preset_that_is_not_there():
    with pytest.raises(ValueError, match="no preset for '16Gb'; did you mean '16GB'"):
        TrainConfig.for_memory("16Gb")
    with pytest.raises(ValueError, match="unknown training option 'epoch'"):
        TrainConfig.for_memory("16GB", epoch=3)


def test_choices_belong_to_options():
    for table in (config._CHOICES, config._AT_LEAST):
        assert set(table) <= set(hints(TrainConfig))
    assert asdict(TrainConfig())["schedule"] in config._CHOICES["schedule"]


def test_no_torch_for_options():
    code = "import sys; import scgpt_tl; scgpt_tl.TrainConfig().to_yaml()\n"
    code += "print([m for m in ('torch', 'numpy', 'lightning', 'anndata') if m in sys.modules])"
    path = str(Path(scgpt_tl.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}, check=True
    )
    assert done.stdout.strip() == "[]"

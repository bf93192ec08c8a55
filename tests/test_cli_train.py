"""`scgpt-tl pretrain` and `finetune`: one option per field of TrainConfig, file, preset and options in that order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import scgpt_tl
from scgpt_tl import cli, tl
from scgpt_tl._cli_train import rank
from scgpt_tl.engine.config import FINETUNE, PRESETS, TrainConfig

SRC = Path(scgpt_tl.__file__).parents[1]

#: A value other than the default for every field, as text of the command line.
GIVEN = {
    "epochs": "3",
    "cells": "32",
    "max_length": "100",
    "zeros": None,
    "learning_rate": "1e-5",
    "schedule": "constant",
    "decay": "0.8",
    "warmup": "0.2",
    "weight_decay": "0.5",
    "clip": "0",
    "held_out": "0.3",
    "patience": "2",
    "keep": "best",
    "freeze": "genes,layers:2",
    "lora": "4",
    "accumulate": "2",
    "max_tokens": "5000",
    "max_memory": "3GB",
    "checkpointing": None,
    "compile": None,
    "save_every": "10",
    "devices": "2",
    "nodes": "3",
    "strategy": "ddp",
    "device": "cpu",
    "precision": "32-true",
    "loggers": "csv",
    "progress": False,
}


def flags(given: dict) -> list[str]:
    words = []
    for name, value in given.items():
        option = name.replace("_", "-")
        words += [f"--no-{option}"] if value is False else [f"--{option}"] if value is None else [f"--{option}", value]
    return words


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for both functions, which keep what they were called with."""
    seen = []
    for name in ("scgpt_pretrain", "scgpt_finetune"):
        monkeypatch.setitem(vars(tl), name, lambda data, name=name, **options: seen.append((name, data, options)))
    return seen


@pytest.fixture
def corpus(tmp_path):
    """Two files that nothing opens."""
    found = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path in found:
        path.touch()
    return found


def train_of(calls) -> TrainConfig:
    return calls[-1][2]["train"]


def test_pretrain_hands_over(calls, corpus, tmp_path, capsys):
    one, two = map(str, corpus)
    assert cli.main(["pretrain", one, "--out", str(tmp_path / "m")]) == 0
    assert calls[0] == (
        "scgpt_pretrain",
        corpus[0],
        {"out": tmp_path / "m", "size": "mini", "train": TrainConfig(), "resume": True, "rng": 0},
    )
    assert capsys.readouterr().out == f"None -> {tmp_path / 'm'}\n"
    more = ["--size", "nano", "--recipe", "generative", "--min-cells", "9", "--overwrite", "--fresh", "--rng", "7"]
    assert cli.main(["pretrain", one, two, "--out", "m", "--validate", two, *more, "--epochs", "2"]) == 0
    _, data, options = calls[1]
    assert data == corpus
    assert options == {
        "out": Path("m"), "size": "nano", "recipe": "generative", "min_cells": 9, "validate": [corpus[1]],
        "overwrite": True, "resume": False, "rng": 7, "train": TrainConfig(epochs=2),
    }  # fmt: skip


def test_finetune_hands_over(calls, corpus, capsys):
    one = str(corpus[0])
    assert cli.main(["finetune", one, "--model", "pbmc-mini", "--out", "m"]) == 0
    expected = {"out": Path("m"), "model": "pbmc-mini", "train": FINETUNE, "resume": True, "rng": 0}
    assert calls[0] == ("scgpt_finetune", corpus[0], expected)
    more = ["--recipe", "annotation", "--labels-key", "type", "--batch-key", "lane", "--overwrite"]
    assert cli.main(["finetune", one, "--model", "pbmc-mini", "--out", "m", *more]) == 0
    given = {"recipe": "annotation", "labels_key": "type", "batch_key": "lane", "overwrite": True}
    assert calls[1][2] == {**expected, **given}


def test_a_corpus_with_options_of_its_own_is_opened_here(calls, corpus, tiny, monkeypatch, capsys):
    seen = []
    monkeypatch.setitem(vars(tl), "open_corpus", lambda data, **options: seen.append((data, options)) or "open")
    one = str(corpus[0])
    assert cli.main(["pretrain", one, "--out", "m", "--weight", "a=0.5", "--weight", "b=2", "--skip-bad"]) == 0
    columns = {"labels_key": None, "batch_key": None}
    assert seen == [(corpus[0], {"model_vocab": None, "weights": {"a": 0.5, "b": 2.0}, "skip_bad": True, **columns})]
    assert calls[0][1] == "open"
    words = ["finetune", one, "--model", str(tiny), "--out", "m", "--labels-key", "type", "--skip-bad"]
    assert cli.main(words) == 0
    _, options = seen[1]
    assert len(options.pop("model_vocab")) == 1003
    assert options == {"weights": {}, "skip_bad": True, "labels_key": "type", "batch_key": None}
    assert calls[1][1] == "open"
    assert cli.main(["pretrain", one, "--out", "m", "--weight", "a"]) == 1
    assert "--weight a: expected STUDY=X" in capsys.readouterr().err
    for words, said in ((["--out", one], "is a file"), (["--out", "m", "--recipe", "maskd"], "'masked'")):
        assert cli.main(["pretrain", one, "--skip-bad", *words]) == 1
        assert said in capsys.readouterr().err
    assert len(seen) == 2  # nothing was read for it


def test_every_field_is_an_option(calls, corpus):
    assert list(GIVEN) == [f.name for f in fields(TrainConfig)]
    assert cli.main(["pretrain", str(corpus[0]), "--out", "m", *flags(GIVEN)]) == 0
    made, default = train_of(calls), TrainConfig()
    plain = {name: True if value is None else value for name, value in GIVEN.items()}
    assert made == TrainConfig.from_mapping(plain)
    assert [f.name for f in fields(made) if getattr(made, f.name) == getattr(default, f.name)] == []


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_help_tells_every_field_with_its_default(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(TrainConfig):
        assert re.search(rf"--{f.name.replace('_', '-')}[ ,]", text), f.name
    assert "Passes over the cells. (default: 10)" in text
    assert "`layers:6` (the first 6), `heads`. (default: none)" in text
    rate = {"pretrain": "0.001", "finetune": "0.0001"}[command]
    assert f"Peak of the schedule. (default: {rate})" in text
    assert "Show a bar with cells per second, loss and the time left. (default: yes)" in text


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom scgpt_tl.cli import main\ntry: main(['finetune', '--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'anndata', 'numpy', 'yaml', 'lightning') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_options_win_over_the_file_and_the_file_over_the_preset(calls, corpus, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nlora: 3\nfreeze: [genes]\ncheckpointing: true\n")
    words = ["finetune", str(corpus[0]), "--model", "m", "--out", "m", "--config", str(file)]
    assert cli.main([*words, "--preset", "16GB", "--epochs", "2", "--no-checkpointing"]) == 0
    assert train_of(calls) == replace(
        FINETUNE, **{**PRESETS["16GB"], "epochs": 2, "lora": 3, "freeze": ("genes",), "checkpointing": False}
    )
    assert cli.main([*words, "--freeze", "layers:2", "--freeze", "values,heads"]) == 0
    assert train_of(calls) == replace(
        FINETUNE, epochs=7, lora=3, freeze=("layers:2", "values", "heads"), checkpointing=True
    )
    assert cli.main([*words, "--freeze", ""]) == 0
    assert train_of(calls).freeze == ()


def test_a_wrong_file_is_told_in_one_line(calls, corpus, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("epoch: 3\n")
    assert cli.main(["pretrain", str(corpus[0]), "--out", "m", "--config", str(tmp_path / "c.yaml")]) == 1
    assert capsys.readouterr().err == "scgpt-tl: error: unknown training option 'epoch'; did you mean 'epochs'?\n"
    assert calls == []


def test_what_an_error_advises_is_an_option_here(corpus, monkeypatch, capsys):
    words = ["pretrain", str(corpus[0]), "--out", "m", "--zeros"]
    assert cli.main(words) == 1
    assert capsys.readouterr().err.endswith("or leave it out with --skip-bad\n")

    def refuse(*_, **__):
        msg = "TrainConfig(zeros=True): overwrite=True if it may go, resume=False starts anew, append=True"
        raise ValueError(msg)

    monkeypatch.setitem(vars(tl), "scgpt_pretrain", refuse)
    assert cli.main(words) == 1
    said = "TrainConfig(zeros=True): --overwrite if it may go, --fresh starts anew, append=True"
    assert capsys.readouterr().err == f"scgpt-tl: error: {said}\n"


@pytest.mark.parametrize(
    "wrong", [["--schedule", "cosin"], ["--epochs", "ten"], ["--preset", "9GB"], ["--size", "huge"]]
)
def test_wrong_values_are_wrong_command_lines(wrong, corpus):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pretrain", str(corpus[0]), "--out", "m", *wrong])


def test_the_configuration_is_printed_and_read_again(calls, tmp_path, capsys):
    given = flags(GIVEN)
    assert cli.main(["pretrain", "anything", "--out", "m", "--print-config", *given]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capsys.readouterr().out)
    assert calls == []
    assert TrainConfig.read(file).max_memory == "3GB"
    assert cli.main(["pretrain", str(file), "--out", "m", "--config", str(file)]) == 0
    assert train_of(calls) == TrainConfig.read(file)


@pytest.mark.parametrize(
    ("environ", "number"),
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),  # torchrun
        ({"LOCAL_RANK": "1"}, 1),  # Lightning's own processes
        ({"SLURM_PROCID": "2"}, 2),
        ({"RANK": "captain", "LOCAL_RANK": "1"}, 1),
    ],
)
def test_the_number_of_this_process(environ, number):
    assert rank(environ) == number


def test_only_the_first_process_prints(calls, corpus, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["pretrain", str(corpus[0]), "--out", "m"]) == 0
    assert cli.main(["pretrain", str(corpus[0]), "--out", "m", "--print-config"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(calls) == 1


def test_sizes_are_those_of_the_engine():
    from scgpt_tl.engine.pretrain import SIZES

    parser = cli._parser()
    for size in SIZES:
        assert parser.parse_args(["pretrain", "x", "--out", "m", "--size", size]).size == size


QUICK = ["--epochs", "1", "--cells", "16", "--max-length", "20", "--device", "cpu", "--no-progress"]


def test_pretrain_and_finetune_for_real(counts, tmp_path, capsys):
    data, base, made = tmp_path / "cells.h5ad", tmp_path / "base", tmp_path / "made"
    counts.write_h5ad(data)
    words = ["pretrain", str(data), "--out", str(base), "--size", "nano", "--min-cells", "1", *QUICK]
    assert cli.main([*words, "--held-out", "0.2"]) == 0
    assert "2 layers x 64" in capsys.readouterr().out
    assert scgpt_tl.load_model(base).provenance["train"] == TrainConfig(
        epochs=1, cells=16, max_length=20, held_out=0.2
    ).learned | {"freeze": []}
    words = ["finetune", str(data), "--model", str(base), "--out", str(made), "--recipe", "annotation"]
    assert cli.main([*words, "--labels-key", "cell_type", "--lora", "2", *QUICK]) == 0
    told = capsys.readouterr()
    assert "weights that 'base' does not have start at random: heads.cls." in told.err
    model = scgpt_tl.load_model(made)
    assert model.labels == ("B", "NK", "T")
    assert set(model.network.state_dict()) > set(scgpt_tl.load_model(base).network.state_dict())


def test_two_processes_under_torchrun_print_once(counts, tmp_path):
    counts.write_h5ad(tmp_path / "cells.h5ad")
    words = ["pretrain", "cells.h5ad", "--out", "m", "--size", "nano", "--min-cells", "1", "--devices", "2", *QUICK]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "scgpt_tl.cli"]
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("-> m") == 1
    assert scgpt_tl.load_model(tmp_path / "m").provenance["history"][0]["epoch"] == 0

"""`tl.scgpt_pretrain`: from cells to a folder that `load_model` reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

import scgpt_tl
from scgpt_tl.engine import run
from scgpt_tl.engine import train as training
from scgpt_tl.engine.recipes import GENERATIVE
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.tl import _pretrain
from scgpt_tl.tl._pretrain import scgpt_pretrain

TRAIN = scgpt_tl.TrainConfig(epochs=3, cells=16, max_length=30, held_out=0.1, device="cpu", progress=False)


def pretrain(data: Any, out: Path, **options: Any) -> Model:
    return scgpt_pretrain(data, out=out, **({"size": "nano", "train": TRAIN} | options))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> tuple[Path, Model]:
    out = tmp_path_factory.mktemp("done") / "toy"
    return out, pretrain([toy_cells(), toy_cells(32, seed=1, first=10)], out)


def assert_same_weights(first: Model, second: Model) -> None:
    a, b = first.network.state_dict(), second.network.state_dict()
    assert list(a) == list(b)
    for name, weight in a.items():
        assert torch.equal(weight, b[name]), name


def cut_at(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """End as a killed process would, in the middle of an epoch."""
    inner = training._Fit._step

    def step(self, *args):
        if (self.progress.epoch, self.progress.position) == (epoch, 1):
            msg = "killed"
            raise RuntimeError(msg)
        return inner(self, *args)

    monkeypatch.setattr(training._Fit, "_step", step)


# ---- the model


def test_a_native_folder_that_load_model_reads(done: tuple[Path, Model]):
    out, model = done
    assert sorted(path.name for path in out.iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "model.safetensors",
        "provenance.json",
        "vocab.json",
    ]
    assert not out.with_name("toy.training").exists()
    assert_same_weights(load_model(out), model)
    assert (model.name, len(model.vocab.genes), model.config.d_model, model.config.n_layers) == ("toy", 60, 64, 2)
    assert not model.network.training
    assert model.config.flag_unknown


def test_the_loss_falls(done: tuple[Path, Model]):
    history = done[1].provenance["history"]
    assert [h["epoch"] for h in history] == [0, 1, 2]
    for name in ("train/loss", "held_out/loss", "train/gepc"):
        assert history[-1][name] < history[0][name]


def test_provenance_says_what_went_in(done: tuple[Path, Model]):
    told = json.loads((done[0] / "provenance.json").read_text())
    told = told.get("provenance", told)
    assert [(d["name"], d["cells"], d["genes"]) for d in told["data"]] == [("study1", 48, 50), ("study2", 32, 50)]
    assert (told["size"], told["seed"], told["recipe"]["name"]) == ("nano", 0, "generative+contrast")
    assert (told["train"]["epochs"], told["train"]["max_length"]) == (3, 30)
    assert told["scgpt_tl"] == scgpt_tl.__version__
    assert "device" not in told["train"]


def test_the_card_says_what_it_is_and_what_it_is_not(done: tuple[Path, Model]):
    card = (done[0] / "MODEL_CARD.md").read_text()
    assert "pretrained by `scgpt_tl.tl.scgpt_pretrain` on 80 unlabelled cells" in card
    assert "- study1: 48 cells, 50 genes" in card
    history = done[1].provenance["history"]
    assert f"| 3 | {history[2]['train/loss']:.4f} / {history[2]['held_out/loss']:.4f} | " in card
    assert "## Limits" in card


def test_it_embeds_and_tells_the_kinds_apart(done: tuple[Path, Model], toy_cells):
    adata = toy_cells(40, seed=9)
    scgpt_tl.tl.scgpt_embed(adata, model=done[0], progress=False, device="cpu")
    x = adata.obsm["X_scGPT"]
    x = x - x.mean(0)
    kind = np.arange(40) % 2
    centres = np.stack([x[kind == k].mean(0) for k in (0, 1)])
    nearest = np.argmin(((x[:, None] - centres[None]) ** 2).sum(-1), axis=1)
    assert (nearest == kind).mean() > 0.9


def test_the_published_recipe_alone(tmp_path: Path, toy_cells):
    model = pretrain(toy_cells(), tmp_path / "m", recipe=GENERATIVE, train=replace(TRAIN, epochs=2))
    history = model.provenance["history"]
    assert "train/contrast" not in history[0]
    assert history[1]["train/loss"] < history[0]["train/loss"]
    assert model.provenance["recipe"]["name"] == "generative"


def test_the_global_seed_does_not_matter_and_ours_does(done: tuple[Path, Model], tmp_path: Path, toy_cells):
    data = [toy_cells(), toy_cells(32, seed=1, first=10)]
    torch.manual_seed(5)
    assert_same_weights(pretrain(data, tmp_path / "toy"), done[1])
    other = pretrain(data, tmp_path / "other", rng=1, train=replace(TRAIN, epochs=1))
    assert other.provenance["seed"] == 1


def test_no_stream_of_a_device_is_seeded(tmp_path: Path, monkeypatch, toy_cells):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda *_: pytest.fail("a CUDA stream was seeded"))
    pretrain(toy_cells(), tmp_path / "m", train=replace(TRAIN, epochs=1))


def test_where_the_published_branch_differs(tmp_path: Path, toy_cells):
    model = pretrain(toy_cells(), tmp_path / "m", recipe="generative, published", train=replace(TRAIN, epochs=1))
    assert model.config.unknown_skips_projection
    assert model.provenance["recipe"]["prompt_after"] == 1000
    assert model.provenance["history"][0]["train/gep"] > 100  # in bins


def test_studies_to_validate_on(tmp_path: Path, toy_cells):
    short = replace(TRAIN, epochs=1)
    model = pretrain(toy_cells(), tmp_path / "m", train=short, validate=toy_cells(20, seed=8))
    assert np.isfinite(model.provenance["history"][0]["held_out/loss"])
    assert model.provenance["history"][0]["step"] == 3  # 48 cells, all of them train


def test_studies_to_validate_on_must_share_genes(tmp_path: Path, toy_cells):
    with pytest.raises(ValueError, match=r"validate: 0% of the genes of 'study1' are in the corpus, at least 20%"):
        pretrain(toy_cells(), tmp_path / "m", validate=toy_cells(20, first=500))


def test_adapters_are_for_models_that_know_something(tmp_path: Path, toy_cells):
    with pytest.raises(ValueError, match="lora=4 would leave a new network's random weights as they are"):
        pretrain(toy_cells(), tmp_path / "m", train=replace(TRAIN, lora=4))


# ---- going on


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    done: tuple[Path, Model], tmp_path: Path, monkeypatch, epoch: int, toy_cells
):
    data = [toy_cells(), toy_cells(32, seed=1, first=10)]
    with monkeypatch.context() as patch:
        cut_at(patch, epoch)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(data, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
    assert (tmp_path / "toy.training" / "run.json").exists()
    model = pretrain(data, tmp_path / "toy")
    assert_same_weights(model, done[1])
    assert model.provenance == done[1].provenance
    assert not (tmp_path / "toy.training").exists()


def test_another_run_does_not_go_on_with_it(tmp_path: Path, monkeypatch, toy_cells):
    with monkeypatch.context() as patch:
        cut_at(patch, 1)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(toy_cells(), tmp_path / "m")
    last = tmp_path / "m.training" / "last.ckpt"
    before = last.read_bytes()
    for data, options, differ in (
        (toy_cells(), {"rng": 1}, "seed"),
        (toy_cells(), {"train": replace(TRAIN, epochs=4)}, "train"),
        (toy_cells(), {"recipe": GENERATIVE}, "recipe"),
        (toy_cells(seed=3), {}, "data"),
    ):
        with pytest.raises(
            ValueError, match=rf"unfinished run with other {differ}: .*repeat its arguments.*resume=False"
        ):
            pretrain(data, tmp_path / "m", **options)
    assert last.read_bytes() == before
    model = pretrain(toy_cells(), tmp_path / "m", rng=1, resume=False, train=replace(TRAIN, epochs=1))
    assert len(model.provenance["history"]) == 1


def test_progress_and_device_may_change_between(tmp_path: Path, monkeypatch, toy_cells):
    with monkeypatch.context() as patch:
        cut_at(patch, 1)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(toy_cells(), tmp_path / "m")
    model = pretrain(toy_cells(), tmp_path / "m", train=replace(TRAIN, device="auto", precision="32-true"))
    assert len(model.provenance["history"]) == 3


def test_a_finished_run_is_loaded_and_others_are_refused(done: tuple[Path, Model], monkeypatch, toy_cells):
    out, model = done
    data = [toy_cells(), toy_cells(32, seed=1, first=10)]
    with monkeypatch.context() as patch:
        patch.setattr("scgpt_tl.engine.run.fit", lambda *_, **__: pytest.fail("trained again"))
        assert_same_weights(pretrain(data, out), model)
        for options in ({"rng": 3}, {"resume": False}, {"train": replace(TRAIN, epochs=9)}):
            with pytest.raises(FileExistsError, match=r"holds another model, 'toy', or .* overwrite"):
                pretrain(data, out, **options)
    assert_same_weights(load_model(out), model)


def test_a_run_that_another_caller_ends_meanwhile_is_handed_back(done: tuple[Path, Model], monkeypatch, toy_cells):
    """The first look finds nothing yet; the one inside the lock does."""
    out, model = done
    inner, looks = run._finished, []
    monkeypatch.setattr(run, "_finished", lambda job: looks.append(job) or (inner(job) if len(looks) > 1 else None))
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert_same_weights(pretrain([toy_cells(), toy_cells(32, seed=1, first=10)], out), model)
    assert len(looks) == 2
    assert not out.with_name("toy.training").exists()


def test_the_gene_table_is_made_for_a_run_that_begins(tmp_path: Path, monkeypatch, toy_cells):
    inner, made = run.svd_table, []
    monkeypatch.setattr(run, "svd_table", lambda *a, **k: made.append(1) or inner(*a, **k))
    for _ in range(2):  # the first is cut off, and so is the one that goes on with it
        with monkeypatch.context() as patch:
            cut_at(patch, 1)
            with pytest.raises(RuntimeError, match="killed"):
                pretrain(toy_cells(), tmp_path / "m")
    pretrain(toy_cells(), tmp_path / "m")
    pretrain(toy_cells(), tmp_path / "m")  # and this one finds it whole
    assert made == [1]


def test_too_few_cells_leave_nothing_that_stands_in_the_way(tmp_path: Path, toy_cells):
    with pytest.raises(ValueError, match="one cell does not tell"):
        pretrain(toy_cells(1), tmp_path / "m", min_cells=1)
    pretrain(toy_cells(), tmp_path / "m", min_cells=1, train=replace(TRAIN, epochs=1))


def test_overwrite_replaces_the_model(tmp_path: Path, toy_cells):
    short = replace(TRAIN, epochs=1)
    first = pretrain(toy_cells(), tmp_path / "m", train=short)
    second = pretrain(toy_cells(), tmp_path / "m", train=short, rng=1, overwrite=True)
    assert second.provenance["seed"] == 1
    assert first.sha256 != second.sha256
    assert load_model(tmp_path / "m").sha256 == second.sha256


def test_folders_of_others_are_left_alone(tmp_path: Path, toy_cells):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("keep")
    for overwrite in (True, False):
        with pytest.raises(FileExistsError, match="holds files that are no model; give a new or an empty folder"):
            pretrain(tmp_path / "not looked at", tmp_path / "m", overwrite=overwrite)
    (tmp_path / "n.training").mkdir()
    (tmp_path / "n.training" / "notes.txt").write_text("keep")
    for resume in (True, False):
        with pytest.raises(FileExistsError, match=r"n\.training is where checkpoints go, and it holds something else"):
            pretrain(toy_cells(), tmp_path / "n", resume=resume)
    assert (tmp_path / "m" / "notes.txt").read_text() == (tmp_path / "n.training" / "notes.txt").read_text() == "keep"


# ---- data


def test_files_folders_and_lists(done: tuple[Path, Model], tmp_path: Path, toy_cells):
    corpus = tmp_path / "corpus"
    (corpus / "deeper").mkdir(parents=True)
    toy_cells().write_h5ad(corpus / "a.h5ad")
    toy_cells(32, seed=1, first=10).write_h5ad(corpus / "deeper" / "b.h5ad")
    short = replace(TRAIN, epochs=1)
    one = pretrain(corpus, tmp_path / "one", train=short)
    two = pretrain([corpus / "a.h5ad", str(corpus / "deeper")], tmp_path / "two", train=short)
    assert [d["name"] for d in one.provenance["data"]] == ["a", "b"]
    assert_same_weights(one, two)


def test_input_that_cannot_work(tmp_path: Path, toy_cells):
    out, empty = tmp_path / "m", toy_cells()
    empty.X *= 0
    for data, match in (
        ([], "there are no cells to train on"),
        (toy_cells(0), r"study1 is empty \(0 cells x 50 genes\)"),
        (toy_cells(1), r"no gene is expressed in min_cells=5 cells, the commonest in 1: give min_cells=1 or less, or"),
        (empty, r"no gene is expressed in min_cells=5 cells, the commonest in 0: give counts in \.X"),
    ):
        with pytest.raises(ValueError, match=match):
            pretrain(data, out)
    with pytest.raises(ValueError, match="one cell does not tell which genes vary together"):
        pretrain(toy_cells(1), out, min_cells=1)
    for value in (-1.0, np.nan, np.inf):
        bad = toy_cells()
        bad.X.data[5] = value
        with pytest.raises(ValueError, match="study1 holds negative or non-finite values: give counts"):
            pretrain(bad, out)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give h5ad files"):
        pretrain(tmp_path / "nowhere", out)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        toy_cells(5).write_h5ad(tmp_path / name / "same.h5ad")
    with pytest.raises(ValueError, match="two files are named 'same'"):
        pretrain([tmp_path / "x", tmp_path / "y"], out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": "tiny"}, "size='tiny' is unknown; there are nano, mini, human"),
        ({"size": ["mini"]}, r"size=\['mini'\] is unknown; did you mean 'mini'"),
        ({"min_cells": "a"}, "min_cells='a': a number of cells is needed"),
        ({"train": {"epoch": 1}}, "unknown training option 'epoch'; did you mean 'epochs'"),
    ],
)
def test_wrong_arguments_are_refused_before_files_are_read(tmp_path: Path, monkeypatch, options, match: str):
    monkeypatch.setattr(_pretrain, "open_corpus", lambda _: pytest.fail("files were read"))
    with pytest.raises(ValueError, match=match):
        pretrain(tmp_path, tmp_path / "m", **options)


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch, toy_cells):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': no usable CUDA device here"):
        pretrain(toy_cells(), tmp_path / "m", train=replace(TRAIN, device="cuda"))
    assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_holds_genes_that_enough_cells_express(tmp_path: Path, toy_cells):
    rare = toy_cells()
    x = rare.X.toarray()
    x[:, 3] = 0
    x[:4, 3] = 1
    rare.X = sparse.csr_matrix(x)
    short = replace(TRAIN, epochs=1)
    assert "G3" not in pretrain(rare, tmp_path / "five", train=short).vocab
    assert "G3" in pretrain(rare, tmp_path / "four", train=short, min_cells=4).vocab


def test_min_cells_counts_the_cells_of_a_gene_not_its_columns(tmp_path: Path, toy_cells):
    rare = toy_cells()
    x = rare.X.toarray()
    x[:, :3] = 0
    x[:2, :3] = 5
    rare.X = sparse.csr_matrix(x)
    rare.var_names = [*["DUP"] * 3, *rare.var_names[3:]]
    short = replace(TRAIN, epochs=1)
    assert "DUP" not in pretrain(rare, tmp_path / "five", train=short).vocab
    assert "DUP" in pretrain(rare, tmp_path / "two", train=short, min_cells=2).vocab


def test_empty_cells_and_the_input_as_it_was(tmp_path: Path, toy_cells):
    odd = toy_cells(20)
    x = odd.X.toarray()
    x[4] = 0
    odd.X = sparse.csr_matrix(x)
    model = pretrain(odd, tmp_path / "m", train=replace(TRAIN, epochs=1))
    assert [d["cells"] for d in model.provenance["data"]] == [20]
    np.testing.assert_array_equal(odd.X.toarray(), x)
    assert (list(odd.obsm), list(odd.uns)) == ([], [])


@pytest.mark.parametrize("storage", ["csc", "dense", "int64"])
def test_storage_does_not_matter(tmp_path: Path, storage: str, toy_cells):
    short = replace(TRAIN, epochs=1)
    expected = pretrain(toy_cells(), tmp_path / "a", train=short)
    other = toy_cells()
    other.X = {"csc": sparse.csc_matrix, "dense": lambda x: x.toarray(), "int64": lambda x: x.astype(np.int64)}[
        storage
    ](other.X)
    assert_same_weights(pretrain(other, tmp_path / "b", train=short), expected)

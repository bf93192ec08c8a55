"""`Model` and `load_model`: what a user holds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scgpt_tl import load_model as opened
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model, load_model, with_random_weights


def test_the_face_opens_the_same_function():
    assert opened is load_model


def test_loading_by_folder_by_text_and_by_name(
    tiny: Path, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    a = load_model(tiny)
    assert a.sha256 == load_model(str(native)).sha256
    monkeypatch.setenv("SCGPT_TL_DATA", str(tmp_path))
    a.save(tmp_path / "models" / "mine")
    assert load_model("mine").sha256 == a.sha256
    assert load_model(a) is a


def test_what_a_loaded_model_is(tiny: Path):
    model = load_model(tiny)
    assert not model.network.training
    assert {p.device.type for p in model.network.parameters()} == {"cpu"}
    assert all(p.requires_grad for p in model.network.parameters())
    assert model.backbone is model.network.backbone
    assert model.heads is model.network.heads
    assert model.n_parameters == 135_937
    assert model.name == "ckpt"
    assert "2 layers x 64, 4 heads, 135,937 parameters, 1,003 tokens; heads gep, gepc" in repr(model)


def test_unknown_names_say_what_is_at_hand():
    with pytest.raises(FileNotFoundError, match="'no-such' is neither a folder nor a known name"):
        load_model("no-such")


def test_heads_that_must_be_there(tiny: Path):
    assert load_model(tiny, heads=("gep", "gepc")).config.heads == ("gep", "gepc")
    with pytest.raises(ValueError, match="'ckpt' has no head cls, dar; it has gep, gepc"):
        load_model(tiny, heads=("gep", "cls", "dar"))


def test_ignore_is_for_official_folders(native: Path):
    with pytest.raises(ValueError, match=r"ignore=\('x',\) is for official folders"):
        load_model(native, ignore=("x",))


class TestFingerprint:
    def test_every_weight_counts(self, make_model):
        model = make_model()
        before = model.sha256
        for tensor in model.network.state_dict().values():
            held = tensor.clone()
            tensor.view(-1)[-1] += 1
            assert model.sha256 != before
            tensor.copy_(held)
        assert model.sha256 == before

    @pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {}])
    def test_it_follows_training(self, make_model, how: dict):
        """A fused optimiser leaves a tensor's version counter as it was."""
        model = make_model()
        first = model.sha256
        optimiser = torch.optim.AdamW(model.network.parameters(), **how)
        model.network.backbone.genes.table.weight.square().sum().backward()
        optimiser.step()
        assert model.sha256 != first

    def test_it_follows_new_tensors(self, make_model):
        model, other = make_model(), make_model()
        first = model.sha256
        model.network.load_state_dict(with_random_weights(other).network.state_dict(), assign=True)
        assert model.sha256 != first

    def test_names_and_shapes_count(self, make_model):
        """The same bytes under another shape are other weights."""
        from scgpt_tl.models._weights import fingerprint

        x = torch.arange(6.0)
        states = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(torch.int32)}, {"a": x[:3], "b": x[3:]}]
        assert len({fingerprint(state) for state in states}) == len(states)

    def test_order_and_layout_do_not(self):
        from scgpt_tl.models._weights import fingerprint

        x, y = torch.randn(3, 4), torch.tensor(3)
        assert fingerprint({"a": x, "b": y}) == fingerprint({"b": y, "a": x.T.contiguous().T})


class TestParts:
    def test_vocabulary_and_table(self, make_model):
        with pytest.raises(ValueError, match=r"\(25, 22, 23\) and the config says \(23, 20, 21\)"):
            replace(make_model(), vocab=GeneVocab([f"G{i}" for i in range(22)]))

    def test_special_ids(self, make_model):
        names = [f"G{i}" for i in range(20)]
        with pytest.raises(ValueError, match="pad id, cls id"):
            replace(make_model(), vocab=GeneVocab(["<cls>", *names]))

    @pytest.mark.parametrize("what", ["labels", "batches"])
    def test_labels_and_batches(self, make_model, what: str):
        sizes = {"heads": ("cls", "dar"), "n_classes": 3, "n_batches": 2}
        good = {"labels": ("a", "b", "c"), "batches": ("x", "y")}
        make_model(**sizes, **good)
        with pytest.raises(ValueError, match=f"{what} has 1 names"):
            make_model(**sizes, **(good | {what: ("a",)}))


class TestRandomWeights:
    def test_the_same_network_untrained(self, tiny: Path):
        model = load_model(tiny)
        before = model.sha256
        a, b, c = with_random_weights(model), with_random_weights(model), with_random_weights(model, rng=1)
        assert a.sha256 == b.sha256
        assert len({a.sha256, c.sha256, before}) == 3
        assert model.sha256 == before
        assert (a.config, a.vocab) == (model.config, model.vocab)
        assert a.provenance == {"random_weights_of": "ckpt", "seed": 0}
        assert not a.network.training
        assert a.coverage is None

    def test_torchs_own_stream_is_left_alone(self, tiny: Path):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        with_random_weights(load_model(tiny), rng=np.random.default_rng(2))
        assert torch.equal(torch.rand(3), expected)


def test_models_can_be_copied(tiny: Path):
    model = load_model(tiny)
    assert copy.deepcopy(model).sha256 == model.sha256
    assert isinstance(model, Model)

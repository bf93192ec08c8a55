"""The native folder: whole or not there, and what was changed is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scgpt_tl.genes.folders import bundled_folder
from scgpt_tl.models.model import load_model, with_random_weights

FILES = ["config.json", "model.safetensors", "provenance.json", "vocab.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(make_model, tmp_path: Path):
    model = make_model(
        name="toy/1", heads=("gep", "cls", "dar"), n_classes=2, n_batches=3, ties="upper", cls_value=0.0,
        labels=("α/β", "NK"), batches=("1", "2", "3"),
    )  # fmt: skip
    folder = model.save(tmp_path / "deep" / "toy", card="# Toy\n")
    again = load_model(folder)
    assert names(folder) == sorted([*FILES, "MODEL_CARD.md"])
    assert again.sha256 == model.sha256
    for field in ("config", "vocab", "name", "labels", "batches", "provenance"):
        assert getattr(again, field) == getattr(model, field)
    assert again.coverage is not None
    assert again.coverage.complete
    assert again.coverage.absent_heads == ("gepc", "perturb")
    head = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert head["format"] == 1
    assert head["weights_sha256"] == model.sha256


def test_saving_twice_gives_the_same_bytes(make_model, tmp_path: Path):
    a, b = (make_model().save(tmp_path / name) for name in "ab")
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


def test_half_precision_weights_are_read_as_saved_in_the_networks_precision(make_model, tmp_path: Path):
    model = make_model()
    model.network.bfloat16()
    again = load_model(model.save(tmp_path / "half"))
    assert again.backbone.genes.table.weight.dtype == torch.float32
    assert torch.equal(again.backbone.genes.table.weight, model.backbone.genes.table.weight.float())


def test_a_model_in_use_can_be_saved_over_its_own_folder(native: Path):
    model = load_model(native)
    before = model.sha256
    model.save(native, overwrite=True)
    model.backbone.genes.table.weight.data.add_(1)
    after = model.save(native, overwrite=True)
    assert load_model(after).sha256 == model.sha256 != before
    assert names(native.parent) == ["native"]


@pytest.mark.parametrize("name", ["vocab.json", "model.safetensors", "provenance.json"])
def test_half_a_folder(native: Path, name: str):
    (native / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}"):
        load_model(native)


def test_a_folder_without_its_mark(native: Path):
    (native / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a model folder, which holds config.json"):
        load_model(native)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1), flip=st.integers(1, 255), name=st.sampled_from(["model.safetensors", "vocab.json"]))
def test_no_changed_byte_goes_unnoticed(native: Path, where: float, flip: int, name: str):
    """Weights and vocabulary; a change that alters nothing that is read (white space) may pass."""
    file = native / name
    whole = file.read_bytes()
    place = int(where * (len(whole) - 1))
    file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
    try:
        before = load_model_or_error(native)
    finally:
        file.write_bytes(whole)
    assert before is None or before == load_model(native).sha256 + load_model(native).vocab.sha256


def load_model_or_error(folder: Path) -> str | None:
    try:
        model = load_model(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error)  # noqa: PT017 (the same claim for either error)
        return None
    return model.sha256 + model.vocab.sha256


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), name=st.sampled_from(FILES))
def test_every_truncated_file_is_named(native: Path, share: float, name: str):
    file = native / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * (len(whole) - 2))])
    try:
        with pytest.raises(ValueError, match=name):
            load_model(native)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this scgpt_tl reads 1"),
        ({"config": []}, "no object 'config'"),
        ({"weights_sha256": "0" * 64}, "model.safetensors has the sha256 .* says '000000000000'"),
        ({"weights_sha256": ...}, "model.safetensors has the sha256 .* says 'None'"),
        ({"vocab_sha256": "0" * 64}, "vocab.json has the sha256 .* says '000000000000'"),
        ({"labels": {"a": 1}}, "labels is not a list of names"),
        ({"batches": [1, 2]}, "batches is not a list of names"),
    ],
)
def test_a_changed_head(native: Path, edit_json, changes: dict, message: str):
    edit_json(native / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load_model(native)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_modle": 64}, "unknown model option 'd_modle'; did you mean 'd_model'"),
        ({"n_heads": 5}, "d_model=64 is not a multiple of n_heads=5"),
        ({"heads": ["gep", "lost"]}, "unknown head 'lost'"),
        ({"heads": 3}, "describes no network"),
        ({"dropout": "much"}, "describes no network"),
        ({"n_tokens": ...}, "n_tokens is None and vocab.json has 1003"),
        ({"n_tokens": 999}, "n_tokens is 999 and vocab.json has 1003"),
        ({"d_model": 128}, r"backbone.genes.table.weight has shape \(1003, 64\), expected \(1003, 128\)"),
        ({"n_modalities": 2, "pad_modality": 5}, "describes no network"),
        ({"n_layers": 3}, "missing     backbone.blocks.2.attn.qkv.weight"),
        ({"n_layers": 1}, "unexpected  backbone.blocks.1.attn.qkv.weight"),
        ({"heads": ["gep", "gepc", "cls"], "n_classes": 2}, "missing     heads.cls.out.weight"),
        ({"cls_id": 1002}, "cls_id is 1002 and vocab.json has 1001"),
        ({"ties": "down"}, "ties is 'down'"),
    ],
)
def test_a_changed_config(native: Path, changes: dict, message: str):
    file = native / "config.json"
    head = json.loads(file.read_text(encoding="utf-8"))
    head["config"] = {key: value for key, value in (head["config"] | changes).items() if value is not ...}
    file.write_text(json.dumps(head), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_model(native)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_bins": 31}, {"ties": "upper"}, {"cls_value": 0.0}, {"n_heads": 2}, {"norm_scheme": "published_pre"},
        {"cell_style": "w-pool"}, {"attn_dropout": 0.5}, {"max_length": 10}, {"dropout": ...},
    ],
)  # fmt: skip
def test_a_config_that_fits_the_weights_and_was_changed(native: Path, edit_json, changes: dict):
    file = native / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))["config"] | changes
    edit_json(file, config={key: value for key, value in config.items() if value is not ...})
    with pytest.raises(ValueError, match=r"config.json tells of config, labels and batches has the sha256 .* changed"):
        load_model(native)
    edit_json(file, config_sha256=...)  # a folder older than this hash
    assert load_model(native).sha256


def test_changed_labels_are_told(make_model, tmp_path: Path, edit_json):
    folder = make_model(heads=("cls",), n_classes=2, labels=("B", "T")).save(tmp_path / "labelled")
    edit_json(folder / "config.json", labels=["T", "B"])
    with pytest.raises(ValueError, match="one of them was changed"):
        load_model(folder)


def test_the_shipped_model_has_every_hash():
    head = json.loads((bundled_folder() / "pbmc-mini" / "config.json").read_text(encoding="utf-8"))
    assert {"weights_sha256", "vocab_sha256", "config_sha256"} <= set(head)
    assert load_model("pbmc-mini", heads="gep").name == "pbmc-mini"


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds a list"), ("\udcff", "is not JSON")])
def test_provenance_that_is_none(native: Path, text: str, message: str):
    (native / "provenance.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"provenance.json {message}"):
        load_model(native)


def test_provenance_that_json_cannot_hold_is_refused_before_anything_is_written(make_model, tmp_path: Path):
    model = make_model()
    model.provenance["object"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        model.save(tmp_path / "toy")
    assert names(tmp_path) == []


# ---- arrays beside the weights


@pytest.fixture
def with_arrays(make_model, tmp_path: Path) -> Path:
    model = make_model()
    model.arrays = {
        "probe.coef": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "genes": np.arange(5),
        "knn.embedding": np.ones((4, 2), np.float32)[:, ::-1],  # not contiguous
    }
    return model.save(tmp_path / "arrays")


def test_arrays_come_back_as_they_were(with_arrays: Path):
    arrays = load_model(with_arrays).arrays
    assert sorted(arrays) == ["genes", "knn.embedding", "probe.coef"]
    np.testing.assert_array_equal(arrays["probe.coef"], np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3))
    assert arrays["genes"].dtype == np.int64
    assert names(with_arrays) == sorted([*FILES, "arrays.safetensors"])


def test_a_model_without_arrays_writes_none(native: Path):
    assert names(native) == FILES
    assert load_model(native).arrays == {}


def test_a_folder_older_than_arrays_loads(native: Path, edit_json):
    edit_json(native / "config.json", arrays_sha256=...)
    assert load_model(native).arrays == {}


@pytest.mark.parametrize("place", [0, 0.3, 0.6, 0.999])
def test_changed_arrays_are_refused(with_arrays: Path, place: float):
    file = with_arrays / "arrays.safetensors"
    whole = bytearray(file.read_bytes())
    whole[int(place * (len(whole) - 1))] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ValueError, match=r"arrays.safetensors .*(fetch it again|fetch the folder again)"):
        load_model(with_arrays)


def test_arrays_that_are_gone_or_were_put_there(with_arrays: Path, native: Path):
    (native / "arrays.safetensors").write_bytes((with_arrays / "arrays.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"arrays.safetensors has the sha256 .* says 'None'"):
        load_model(native)
    (with_arrays / "arrays.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks arrays.safetensors"):
        load_model(with_arrays)


def test_random_weights_keep_no_arrays(with_arrays: Path):
    assert with_random_weights(load_model(with_arrays)).arrays == {}

"""GeneVocab: names and ids, one to one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from scgpt_tl._random import name_keys
from scgpt_tl.genes.vocab import GeneVocab

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny" / "ckpt" / "vocab.json"


def test_specials_are_appended_in_the_published_order() -> None:
    vocab = GeneVocab(["CD3E", "LYZ"])
    assert list(vocab) == ["CD3E", "LYZ", "<pad>", "<cls>", "<eoc>"]
    assert (vocab.pad_id, vocab.cls_id, vocab.eoc_id) == (2, 3, 4)
    assert vocab.genes == ("CD3E", "LYZ")


def test_only_absent_specials_are_appended() -> None:
    vocab = GeneVocab({"<cls>": 0, "LYZ": 2, "CD3E": 1})
    assert list(vocab) == ["<cls>", "CD3E", "LYZ", "<pad>", "<eoc>"]


def test_look_up_both_ways() -> None:
    vocab = GeneVocab(["CD3E", "LYZ"])
    assert "LYZ" in vocab
    assert "lyz" not in vocab
    assert None not in vocab
    assert vocab["LYZ"] == 1
    assert vocab.name(1) == "LYZ"
    np.testing.assert_array_equal(vocab.ids(np.array(["LYZ", "nope", "CD3E"])), [1, -1, 0])
    ids = vocab.ids([None, float("nan"), "LYZ"])
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, [-1, -1, 1])
    assert vocab.ids([]).shape == (0,)


def test_keys_and_names_are_by_id_and_read_only() -> None:
    vocab = GeneVocab(["CD3E", "LYZ"])
    assert vocab.keys.dtype == np.uint64
    np.testing.assert_array_equal(vocab.keys, name_keys(vocab.names))
    np.testing.assert_array_equal(vocab.names, list(vocab))
    for array in (vocab.keys, vocab.names):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]


def test_unknown_name_is_answered_with_near_ones() -> None:
    vocab = GeneVocab(["CD3E", "CD3D", "LYZ"])
    with pytest.raises(KeyError, match=r"'cd3e' is not among the 6 names.*nearest: CD3E, CD3D"):
        vocab["cd3e"]
    with pytest.raises(IndexError, match="id 6 is outside"):
        vocab.name(6)
    with pytest.raises(IndexError, match="id -1 is outside"):
        vocab.name(-1)


def test_immutable_equal_hashed_pickled() -> None:
    vocab = GeneVocab(["CD3E", "LYZ"])
    with pytest.raises(AttributeError, match="immutable"):
        vocab.names = np.array([])  # type: ignore[misc]
    same, other = GeneVocab({"LYZ": 1, "CD3E": 0}), GeneVocab(["LYZ", "CD3E"])
    assert vocab == same
    assert hash(vocab) == hash(same)
    assert vocab.sha256 == same.sha256
    assert vocab != other
    assert vocab.sha256 != other.sha256
    assert vocab != ["CD3E", "LYZ"]
    assert pickle.loads(pickle.dumps(vocab)) == vocab


def test_file_round_trip(tmp_path: Path) -> None:
    vocab = GeneVocab(["CD3E", "LYZ", "Größe"])
    vocab.save(tmp_path / "vocab.json")
    assert GeneVocab.from_file(tmp_path / "vocab.json") == vocab
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))["LYZ"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GeneVocab(["OLD"]).save(tmp_path / "vocab.json")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        GeneVocab(["NEW"]).save(tmp_path / "vocab.json")
    assert GeneVocab.from_file(tmp_path / "vocab.json").genes == ("OLD",)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]


def test_published_vocabulary() -> None:
    vocab = GeneVocab.from_file(GOLDEN)
    assert len(vocab) == 1003
    raw = json.loads(GOLDEN.read_text())
    np.testing.assert_array_equal(vocab.ids(raw), list(raw.values()))


def test_whole_human_size(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({f"GENE{i}": i for i in range(60_694)}))
    vocab = GeneVocab.from_file(path)
    assert len(vocab) == 60_697
    np.testing.assert_array_equal(vocab.ids(vocab.names), np.arange(60_697))


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ({"A": 0, "B": 0}, ValueError, "'A' and 'B' share the id 0"),
        ({"A": 0, "B": 2}, ValueError, "holes .the first is 1"),
        ({"A": 0, "B": -1}, ValueError, "'B' has the negative id -1"),
        ({"A": 0, "B": 1.0}, TypeError, "'B' has the id 1.0, which is not an integer"),
        ({"A": True}, TypeError, "not an integer"),
        ({"A": 0, 7: 1}, TypeError, "7 is a int, not a name"),
        (["A", "B", "A"], ValueError, "1 names stand in the vocabulary twice, A"),
        (["A", ""], ValueError, "empty text"),
        (["A", None], TypeError, "None is a NoneType"),
        ([], ValueError, "no gene"),
        (["<pad>"], ValueError, "no gene"),
        ("vocab.json", TypeError, "GeneVocab.from_file"),
    ],
)
def test_what_is_no_vocabulary(tokens: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GeneVocab(tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [b"", b'{"A": 0', b"\x80\x04\x95", b"3", b'{"A": 0, "A": 1}', b'{"A": "0"}', b"null", b'{"A": 5}']
)
def test_what_is_no_vocabulary_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"vocab\.json is not a gene vocabulary"):
        GeneVocab.from_file(path)
    with pytest.raises(FileNotFoundError):
        GeneVocab.from_file(tmp_path / "absent.json")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    GeneVocab(["A"]).save("~/vocab.json")
    assert (tmp_path / "vocab.json").is_file()
    assert GeneVocab.from_file("~/vocab.json").genes == ("A",)

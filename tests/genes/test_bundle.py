"""Model folders, read without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scgpt_tl.genes import bundle as module
from scgpt_tl.genes.bundle import bundles, read_bundle, resolve
from scgpt_tl.genes.vocab import GeneVocab

CONFIG = {
    "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 128, "n_bins": 21, "max_length": 300, "ties": "upper",
}  # fmt: skip
ARGS = {"embsize": 64, "nlayers": 2, "nheads": 4, "d_hid": 96, "n_bins": 51, "max_seq_len": 1200}


def write_native(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    GeneVocab(["CD3E", "LYZ"]).save(folder / "vocab.json")
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": CONFIG} | changes))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_official(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({"CD3E": 0, "LYZ": 1}))
    (folder / "args.json").write_text(json.dumps(ARGS | changes))
    (folder / "best_model.pt").write_bytes(b"")
    return folder


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Three empty places where names are looked up."""
    places = {name: tmp_path / name for name in ("own", "packaged", "cache")}
    for place in places.values():
        place.mkdir()
    monkeypatch.setenv("SCGPT_TL_DATA", str(places["own"]))
    monkeypatch.setattr(module, "bundled_folder", lambda: places["packaged"])
    monkeypatch.setattr(module, "cache_folder", lambda: places["cache"])
    return places


def test_native(tmp_path: Path) -> None:
    folder = write_native(tmp_path / "toy")
    found = read_bundle(folder)
    assert (found.name, found.kind, found.path) == ("toy", "native", folder)
    assert {key: getattr(found, key) for key in CONFIG} == CONFIG
    assert found.vocab.genes == ("CD3E", "LYZ")
    assert found.weights_file == folder / "model.safetensors"


def test_official(tmp_path: Path) -> None:
    found = read_bundle(str(write_official(tmp_path / "toy")))
    assert (found.kind, found.ties, found.weights_file.name) == ("official", "spread", "best_model.pt")
    sizes = (found.d_model, found.n_layers, found.n_heads, found.d_ff, found.n_bins, found.max_length)
    assert sizes == (64, 2, 4, 96, 51, 1200)
    assert len(found.vocab) == 5


def test_official_sizes_that_may_be_absent(tmp_path: Path) -> None:
    folder = write_official(tmp_path / "toy")
    (folder / "args.json").write_text(json.dumps({k: ARGS[k] for k in ("embsize", "nlayers", "nheads", "d_hid")}))
    found = read_bundle(folder)
    assert (found.n_bins, found.max_length) == (51, 1200)


def test_golden_folder() -> None:
    found = read_bundle(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")
    assert (found.d_model, found.n_layers, found.n_heads, found.d_ff, len(found.vocab)) == (64, 2, 4, 64, 1003)


def test_names_are_looked_up_in_order(roots: dict[str, Path]) -> None:
    write_native(roots["cache"] / "models" / "m")
    assert resolve("m") == roots["cache"] / "models" / "m"
    write_native(roots["packaged"] / "m")
    assert resolve("m") == roots["packaged"] / "m"
    write_official(roots["own"] / "models" / "m")
    assert resolve("m") == roots["own"] / "models" / "m"
    write_native(roots["cache"] / "models" / "other")
    (roots["cache"] / "models" / "no-model").mkdir()
    assert list(bundles()) == ["m", "other"]


def test_unknown_name_lists_what_is_at_hand(roots: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match="At hand: none"):
        resolve("scGPT_human")
    write_native(roots["packaged"] / "pbmc-mini")
    with pytest.raises(FileNotFoundError, match=r"'scGPT_human'.*At hand: pbmc-mini\..*args\.json") as caught:
        read_bundle("scGPT_human")
    for place in ("own", "cache"):
        assert str(roots[place] / "models" / "scGPT_human") in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    folder = write_official(tmp_path / "toy")
    with pytest.raises(NotADirectoryError, match="give the folder"):
        resolve(folder / "best_model.pt")


def test_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a model folder.*config\.json.*args\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("write", [write_native, write_official])
@pytest.mark.parametrize("position", [1, 2])
def test_missing_file_is_named(tmp_path: Path, write: object, position: int) -> None:
    folder = write(tmp_path / "toy")  # type: ignore[operator]
    kind = read_bundle(folder).kind
    (folder / module.FILES[kind][position]).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {module.FILES[kind][position]}; an? {kind}"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this scgpt_tl reads 1"),
        ({"config": None}, "no object 'config'"),
        ({"config": CONFIG | {"ties": "lower"}}, "config.ties is 'lower'"),
        ({"config": CONFIG | {"n_layers": 0}}, "n_layers is 0, expected a positive integer"),
        ({"config": CONFIG | {"d_model": "64"}}, "d_model is '64'"),
        ({"config": {"ties": "upper"}}, "d_model is None"),
    ],
)
def test_native_content_is_checked(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_bundle(write_native(tmp_path / "toy", **changes))


def test_official_content_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"args\.json: nheads is True"):
        read_bundle(write_official(tmp_path / "a", nheads=True))
    folder = write_official(tmp_path / "b")
    (folder / "args.json").write_text('{"embsize": 64,')
    with pytest.raises(ValueError, match=r"args\.json is not JSON.*truncated"):
        read_bundle(folder)
    (folder / "args.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        read_bundle(folder)
    shutil.copy(folder / "best_model.pt", folder / "vocab.json")
    (folder / "args.json").write_text(json.dumps(ARGS))
    with pytest.raises(ValueError, match=r"vocab\.json is not a gene vocabulary"):
        read_bundle(folder)


def test_real_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("SCGPT_TL_DATA", str(tmp_path / "absent"))
    assert [root.name for root in module.roots()] == ["_bundled", "models"]


def test_torch_stays_out() -> None:
    code = (
        "import sys, scgpt_tl.genes.bundle; print(sorted({'torch', 'anndata', 'scanpy', 'pooch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("as_path", [str, Path])
def test_what_is_no_model_hides_no_model(
    tmp_path: Path, roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch, as_path: type
) -> None:
    write_native(roots["packaged"] / "pbmc-mini")
    write_native(roots["packaged"] / "other")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pbmc-mini").mkdir()
    (tmp_path / "other").write_text("")
    assert resolve(as_path("pbmc-mini")) == roots["packaged"] / "pbmc-mini"
    assert resolve(as_path("other")) == roots["packaged"] / "other"
    assert resolve("./pbmc-mini") == Path("pbmc-mini")  # a path, not a name
    (tmp_path / "pbmc-mini").rmdir()
    write_official(tmp_path / "pbmc-mini")
    assert resolve(as_path("pbmc-mini")) == Path("pbmc-mini")

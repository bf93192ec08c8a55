"""Models by name: listed, fetched with pinned sha256, verified by structure."""

from __future__ import annotations

import json
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from scgpt_tl import models
from scgpt_tl.genes.folders import cache_folder
from scgpt_tl.models import registry
from scgpt_tl.models.model import load_model

PUBLISHED = (
    "whole-human", "continual-pretrained", "brain", "blood", "heart", "lung", "kidney", "pan-cancer",
)  # fmt: skip
FILES = ("args.json", "best_model.pt", "vocab.json")


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; a file named in `broken` breaks off in the middle."""

    broken: tuple[str, ...] = ()
    served: list[str] = []  # noqa: RUF012 (one list for all requests is what is wanted)

    def log_message(self, *args: object) -> None:
        pass

    def copyfile(self, source, out) -> None:
        self.served.append(self.path.rpartition("/")[2])
        content = source.read()
        out.write(content[: len(content) // 2] if self.path.endswith(self.broken or "//") else content)


@pytest.fixture
def entry(official: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.Entry]:
    """The tiny model under the name `distant`, on a server of our own."""
    monkeypatch.setattr(Server, "broken", ())
    monkeypatch.setattr(Server, "served", [])
    monkeypatch.setattr(registry, "_RETRIES", 0)  # they wait for seconds
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=official)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        files = {name: sha256((official / name).read_bytes()).hexdigest() for name in FILES}
        url = f"http://127.0.0.1:{server.server_port}"
        made = registry.Entry("distant", "blood", 48, url=url, files=files)
        monkeypatch.setitem(registry.ENTRIES, "distant", made)
        yield made
        server.shutdown()
        thread.join()


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


class TestFetch:
    def test_a_name_is_downloaded_once(self, entry: registry.Entry, tiny: Path):
        model = load_model("distant")
        assert model.sha256 == load_model(tiny).sha256
        assert model.name == "distant"
        assert registry.fetch("distant") == cache_folder() / "models" / "distant"
        assert load_model("distant").sha256 == model.sha256
        assert sorted(Server.served) == sorted(FILES)
        assert listed(cache_folder() / "downloads") == []

    def test_other_bytes_are_refused(self, entry: registry.Entry, official: Path, edit_json):
        edit_json(official / "args.json", dropout=0.3)
        with pytest.raises(ValueError, match=r"args.json of distant has another sha256 than was pinned"):
            load_model("distant")
        assert listed(cache_folder() / "models") == []

    def test_a_broken_download_goes_on(self, entry: registry.Entry, tiny: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Server, "broken", ("best_model.pt",))
        with pytest.raises((OSError, ValueError), match=r"best_model.pt of distant"):
            load_model("distant")
        assert listed(cache_folder() / "models") == []
        monkeypatch.setattr(Server, "broken", ())
        assert load_model("distant").sha256 == load_model(tiny).sha256
        assert Server.served.count("args.json") == 1

    def test_a_file_that_is_not_there(self, entry: registry.Entry, official: Path):
        (official / "vocab.json").unlink()
        with pytest.raises(OSError, match=r"vocab.json of distant could not be downloaded"):
            load_model("distant")
        assert listed(cache_folder() / "models") == []

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_what_is_downloaded_by_hand(self, name: str):
        with pytest.raises(FileNotFoundError) as raised:
            load_model(name)
        for word in (
            "by hand", "drive.google.com/drive/folders/", "github.com/bowang-lab/scGPT", *FILES,
            str(cache_folder() / "models" / name), f"data/models/{name}", "models.verify",
        ):  # fmt: skip
            assert word in str(raised.value)

    def test_a_download_by_hand_is_found(self, tiny: Path):
        import os
        import shutil

        shutil.copytree(tiny, Path(os.environ["SCGPT_TL_DATA"]) / "models" / "lung")
        assert load_model("lung").name == "lung"

    def test_an_unknown_name(self):
        with pytest.raises(KeyError, match="no model is called 'liver'; there are pbmc-mini, whole-human"):
            registry.fetch("liver")


class TestAvailable:
    def test_every_model_that_has_a_name(self):
        table = models.available()
        assert table.index.name == "name"
        assert set(PUBLISHED) | {"pbmc-mini"} <= set(table.index)
        published = table.loc[list(PUBLISHED)]
        assert (published[["d_model", "n_layers", "n_heads", "n_tokens"]] == (512, 12, 8, 60_697)).all(axis=None)
        assert published["source"].str.contains("Pretrained scGPT Model Zoo").all()
        assert published["citation"].str.contains("10.1038/s41592-024-02201-0").all()
        assert published["source"].is_unique
        assert not published["at_hand"].any()
        assert table.loc["pan-cancer", "cells"] == 5_700_000
        assert table.loc["pbmc-mini", "cells"] == 13_744

    def test_folders_of_ones_own(self, tiny: Path, make_model):
        folder = cache_folder() / "models" / "mine"
        make_model().save(folder)
        row = models.available().loc["mine"]
        assert row["at_hand"]
        assert row["folder"] == str(folder)
        assert (row["d_model"], row["n_layers"], row["n_heads"], row["n_tokens"]) == (16, 2, 2, 23)

    def test_a_broken_folder_hides_no_other(self, make_model):
        folder = cache_folder() / "models" / "mine"
        make_model().save(folder)
        (folder / "vocab.json").write_text("{")
        table = models.available()
        assert table.loc["mine", "note"].startswith("cannot be read:")
        assert "whole-human" in table.index


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an entry that the tiny model fulfils."""
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 64}
    entry = registry.Entry("small", "blood", 48, n_tokens=(1003, 77), sizes=sizes, heads=("gep", "gepc"))
    monkeypatch.setitem(registry.ENTRIES, "small", entry)
    return "small"


class TestVerify:
    def test_all_is_as_it_should_be(self, tiny: Path, small: str):
        assert models.verify(tiny, small) == []

    def test_sizes_and_vocabulary(self, tiny: Path):
        assert models.verify(tiny, "whole-human") == [
            "args.json: d_model is 64, expected 512",
            "args.json: n_layers is 2, expected 12",
            "args.json: n_heads is 4, expected 8",
            "args.json: d_ff is 64, expected 512",
            "vocab.json: 1,003 tokens, expected 60,697",
        ]
        assert "vocab.json: 1,003 tokens, expected 60,697 or 36,574" in models.verify(tiny, "blood")

    def test_special_ids(self, official: Path, small: str):
        names = json.loads((official / "vocab.json").read_text())
        names["<pad>"], names["ADTRP"] = names["ADTRP"], names["<pad>"]
        (official / "vocab.json").write_text(json.dumps(names))
        (line,) = models.verify(official, small)
        assert line.startswith("vocab.json: <pad>, <cls>, <eoc> have the ids (0, 1001, 1002), expected the last three")

    def test_weights(self, official: Path, small: str, edit_weights):
        edit_weights(official, lambda s: OrderedDict((k, v) for k, v in s.items() if not k.startswith("mvc_decoder")))
        assert models.verify(official, small) == ["best_model.pt: no weights of the head gepc"]
        edit_weights(official, lambda s: OrderedDict((k, v) for k, v in s.items() if k != "decoder.fc.0.bias"))
        (line,) = models.verify(official, small)
        assert "missing     decoder.fc.0.bias" in line

    def test_damaged_bytes(self, official: Path, small: str):
        """torch reads them without a word; the archive's own checksums tell."""
        file = official / "best_model.pt"
        with zipfile.ZipFile(file) as archive:
            place = next(i.header_offset for i in archive.infolist() if i.filename.endswith("data/0")) + 5000
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        load_model(official)
        (line,) = models.verify(official, small)
        assert "data/0 does not have its checksum" in line

    def test_files_from_before_zip_have_no_checksums(self, official: Path, small: str):
        state = torch.load(official / "best_model.pt", weights_only=True)
        torch.save(state, official / "best_model.pt", _use_new_zipfile_serialization=False)
        assert models.verify(official, small) == []

    def test_what_cannot_be_verified(self, native: Path, tiny: Path, small: str):
        with pytest.raises(ValueError, match="'pbmc-mini' is no published model"):
            models.verify(tiny, "pbmc-mini")
        with pytest.raises(FileNotFoundError, match=r"no folder of the published package, which holds args.json"):
            models.verify(native, small)
        with pytest.raises(KeyError, match="no model is called"):
            models.verify(tiny, "liver")

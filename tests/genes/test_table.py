"""The table of names that human genes have and had."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scgpt_tl.genes import table as module
from scgpt_tl.genes.table import hgnc_table

#: As HGNC writes it: quotes around fields that hold several values, withdrawn entries among the others.
CONTENT = (
    "hgnc_id\tsymbol\tstatus\tprev_symbol\talias_symbol\tensembl_gene_id\n"
    'HGNC:1\tMARCHF1\tApproved\tMARCH1\t"FLJ20668|MARCH-I"\tENSG00000145416\n'
    "HGNC:2\tQARS1\tApproved\tQARS\t\tENSG00000172053\n"
    "HGNC:3\tEPRS1\tApproved\tEPRS|QARS\tPARS\tENSG00000136628\n"
    "HGNC:4\tGONE\tEntry Withdrawn\tWENT\t\tENSG00000000004\n"
    "HGNC:5\tCD3E\tApproved\t\tT3E\t\n"
)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data folder, an empty cache."""
    monkeypatch.delenv("SCGPT_TL_DATA", raising=False)
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "hgnc.txt").write_text(CONTENT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/hgnc.txt"
        http.shutdown()
        thread.join()


def write(path: Path, content: str = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("name", ["hgnc.txt", "hgnc.tsv.gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_content(tmp_path: Path, name: str, ending: str) -> None:
    table = hgnc_table(path=write(tmp_path / name, CONTENT.replace("\n", ending)))
    assert table is not None
    assert table.names == {
        "MARCHF1": (("MARCH1",), ("FLJ20668", "MARCH-I")),
        "QARS1": (("QARS",), ()),
        "EPRS1": (("EPRS", "QARS"), ("PARS",)),
        "CD3E": ((), ("T3E",)),
    }
    assert table.previous["QARS"] == ("QARS1", "EPRS1")
    assert table.alias["MARCH-I"] == ("MARCHF1",)
    assert table.ensembl["ENSG00000145416"] == ("MARCHF1",)
    assert "WENT" not in table.previous
    assert "" not in table.ensembl
    assert repr(table) == f"GeneTable(4 genes from {tmp_path / name})"


def test_data_folder_goes_first_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "data" / "gene_resources" / "hgnc_mapping.tsv.gz")
    monkeypatch.setenv("SCGPT_TL_DATA", str(tmp_path / "data"))
    table = hgnc_table()
    assert table is not None
    assert hgnc_table() is table
    write(file, CONTENT.replace("MARCHF1", "MARCHF9"))
    os.utime(file, (1, 1))
    again = hgnc_table()
    assert again is not None
    assert "MARCHF9" in again.names


def test_download_is_verified_and_kept(server: str, places: Path) -> None:
    good = sha256(CONTENT.encode()).hexdigest()
    with pytest.raises(ValueError, match="hash"):
        hgnc_table(url=server, sha256=good[::-1])
    assert not [path for path in (places / "cache").rglob("*") if path.is_file()]
    table = hgnc_table(url=server, sha256=good)
    assert table is not None
    assert Path(table.source).is_relative_to(places / "cache")
    (places / "served" / "hgnc.txt").unlink()
    assert hgnc_table(url=server, sha256=good) is table  # no second request


def test_without_asking_the_network(server: str, places: Path) -> None:
    good = {"url": server, "sha256": sha256(CONTENT.encode()).hexdigest()}
    assert hgnc_table(**good, download=False) is None
    assert not (places / "cache").exists()
    table = hgnc_table(**good)
    assert table is not None
    assert hgnc_table(**good, download=False) is table  # the copy in the cache


def test_without_a_network(caplog: pytest.LogCaptureFixture) -> None:
    assert hgnc_table(url="http://127.0.0.1:9/hgnc.txt", sha256="0" * 64) is None
    assert "could not be fetched" in caplog.text
    assert "$SCGPT_TL_DATA" in caplog.text


def test_the_pin_is_a_dated_release() -> None:
    assert len(module.SHA256) == 64
    assert "archive" in module.URL
    assert module.URL.endswith("2026-10-06.txt")


def test_files_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hgnc_table(path=tmp_path / "absent.txt")
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(gzip.compress(CONTENT.encode())[:-20])
    with pytest.raises(ValueError, match=r"cut\.tsv\.gz is damaged"):
        hgnc_table(path=cut)
    with pytest.raises(ValueError, match="lacks the columns prev_symbol"):
        hgnc_table(path=write(tmp_path / "a.txt", "symbol\tname\nA\tB\n"))
    with pytest.raises(ValueError, match=r"row of 2 fields where the header has 6: 'HGNC:9"):
        hgnc_table(path=write(tmp_path / "b.txt", CONTENT + "HGNC:9\tTAIL\n"))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "hgnc.txt", CONTENT)
    assert hgnc_table(path="~/hgnc.txt").names

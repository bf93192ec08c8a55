"""Gene sets from a file, a dictionary or Enrichr, and names that do not fit."""

from __future__ import annotations

import gzip
from types import SimpleNamespace

import pytest
import requests

from scgpt_tl._compat import need
from scgpt_tl.tl import _gene_sets
from scgpt_tl.tl._gene_sets import check_names, gene_sets_of, kind_of, read_gmt

GOOD = "A/b pathway\thttp://a\tCD3E\tCD3D\n\nTwo\t\tCD79A,1.0\tCD79B,0.5\tCD79A\t\t\r\n"


@pytest.fixture
def gmt(tmp_path):
    def write(text, name="sets.gmt"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["sets.gmt", "SETS.GMT", "sets.gmt.gz", "sets.txt"])
def test_a_file(gmt, name):
    expected = {"A/b pathway": {"CD3E", "CD3D"}, "Two": {"CD79A", "CD79B"}}
    assert gene_sets_of(gmt(GOOD, name)) == expected
    assert gene_sets_of(str(gmt("\ufeff" + GOOD, name))) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A\td\tG1\nB d G1 G2\n", r"sets\.gmt, line 2, has 1 field\(s\) \('B d G1 G2'\): .* separated by tabs"),
        ("A\td\tG1\n\nB\td\n", r"line 3, has 2 field\(s\)"),
        ("A\td\t\t\n", "line 1, has no gene"),
        ("\td\tG1\n", "line 1, has no name"),
        ("A\td\tG1\nB\td\tG2\nA\td\tG3\n", r"the pathway 'A' on lines 1 and 3: rename or drop"),
        ("", r"sets\.gmt is empty"),
        ("\n \n", "is empty"),
        ("source,target\nMYC,TERT\n", r"line 1, has 1 field\(s\)"),
    ],
)
def test_bad_files(gmt, text, says):
    with pytest.raises(ValueError, match=says):
        gene_sets_of(gmt(text))


def test_files_that_are_no_text(tmp_path):
    for name, content in (
        ("a.gmt", b"\xff\xfe\x00bad"),
        ("a.gmt.gz", b"no gzip"),
        ("b.gmt.gz", gzip.compress(b"x")[:-9]),
        ("c.gmt.gz", gzip.compress(b"x")[:10] + b"\xff" * 20),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as text .*gmt\.gz"):
            read_gmt(tmp_path / name)


@pytest.mark.parametrize("source", ["no.gmt", "no.gmt.gz", "folder/Reactome.txt", "reactome.txt", "folder/Reactome"])
def test_a_file_that_is_not_there(source):
    with pytest.raises(FileNotFoundError, match="is not there: give a GMT file"):
        gene_sets_of(source)


def test_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        gene_sets_of(tmp_path)


def test_a_dictionary():
    assert gene_sets_of({"a/b": ["G1", "G1", "G2"], 3: {"G3"}}) == {"a/b": {"G1", "G2"}, "3": {"G3"}}
    for given, says in (
        ({}, "is empty"),
        ({"a": []}, r"gene_sets\['a'\] has no gene"),
        ({"a": "CD3E"}, "is the text 'CD3E': give a list"),
        ({"1": ["G"], 1: ["G"]}, "'1' twice"),
    ):
        with pytest.raises(ValueError, match=says):
            gene_sets_of(given)
    with pytest.raises(TypeError, match="gene_sets is list; give a GMT file"):
        gene_sets_of(["a"])


@pytest.fixture
def enrichr(monkeypatch, tmp_path):
    """Enrichr without a network: what it is asked, what it answers, and where GSEApy keeps it."""
    gseapy = need("gseapy")
    asked = []

    def library(name, **options):
        asked.append((name, options))
        return {"One": ["CD3E", "CD3D"]}

    monkeypatch.setattr(need("gseapy.utils"), "DEFAULT_CACHE_PATH", str(tmp_path))
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    monkeypatch.setattr(gseapy, "get_library_name", lambda organism: ["Reactome_2022", "KEGG_2021_Human"])
    monkeypatch.setattr(gseapy, "get_library", library)
    return SimpleNamespace(asked=asked, cache=tmp_path)


def test_a_library_by_name_once(enrichr):
    assert gene_sets_of("Reactome_2022") == {"One": {"CD3E", "CD3D"}}
    assert [name for name, _ in enrichr.asked] == ["Reactome_2022"]
    (enrichr.cache / "Enrichr.Reactome_2022.gmt").write_text(GOOD)
    assert len(gene_sets_of("Reactome_2022")) == 2  # from gseapy's cache
    assert len(enrichr.asked) == 1
    with pytest.raises(ValueError, match=r"no library of Enrichr; did you mean 'Reactome_2022'\?"):
        gene_sets_of("Reactome_2023")
    with pytest.raises(ValueError, match="its 2 are listed at https"):
        gene_sets_of("xyz")


def test_no_network(enrichr, monkeypatch):
    def fail(*_, **__):
        raise requests.exceptions.ConnectionError

    monkeypatch.setattr(requests, "head", fail)
    with pytest.raises(
        ConnectionError,
        match=r"Enrichr.*does not answer \(ConnectionError\).*libraryName=Reactome_2022 as Reactome_2022\.gmt, and "
        r"give gene_sets='Reactome_2022\.gmt'",
    ):
        gene_sets_of("Reactome_2022")


def test_names_of_another_kind():
    symbols = {"One": frozenset({"CD3E", "CD3D", "MS4A1"})}
    ensembl = ["ENSG00000198851", "ENSG00000167286.11"]
    with pytest.raises(
        ValueError,
        match=r"0 of 2 genes .* Ensembl ids \(ENSG.*human gene symbols \(CD3D.*gene_symbols= \(there: 'symbol'\)",
    ):
        check_names(ensembl, symbols, columns=["symbol"])
    with pytest.raises(ValueError, match=r"pathways Entrez ids \(915, 916\); give gene sets in the data's kind"):
        check_names(["CD3E", "CD3D"], {"One": frozenset({"915", "916"})})
    with pytest.raises(ValueError, match=r"mouse gene symbols \(Cd3d, Cd3e\)"):
        check_names(["Cd3e", "Cd3d"], symbols)


def test_few_names_in_common_are_told(caplog):
    sets = {"One": frozenset(f"G{i}" for i in range(100))}
    assert check_names([f"X{i}" for i in range(95)] + ["G1"], sets) == {"G1"}
    assert "1 of 96 genes of the data are in a pathway" in caplog.text
    caplog.clear()
    assert check_names(["G1", "G2", *(f"X{i}" for i in range(10_000))], {"a": frozenset({"G1", "G2"})}) == {"G1", "G2"}
    assert not caplog.text


def test_kinds_of_names():
    assert kind_of(["P01308", "Q9Y6K9", "A0A024"]) == "UniProt accessions"
    assert kind_of(["1", "22"]) == "Entrez ids"
    assert kind_of(["a b", "?"]) == "gene names"
    assert kind_of(["CD3E", "C1orf43", "HLA-A"]) == "human gene symbols"


@pytest.mark.parametrize(
    ("name", "n", "pathway", "gene"),
    [
        ("reactome_pathways.gmt.gz", 1448, "TCR signaling", "CD3E"),
        ("hallmark_human.gmt.gz", 50, "HALLMARK_INTERFERON_ALPHA_RESPONSE", "ISG15"),
        ("wikipathways_msigdb_v7.2.gmt.gz", 500, "WP_B_CELL_RECEPTOR_SIGNALING_PATHWAY", "CD19"),
    ],
)
@pytest.mark.data
def test_real_files(data, name, n, pathway, gene):
    sets = gene_sets_of(data(f"gene_resources/{name}"))
    assert len(sets) == n
    assert gene in sets[pathway]
    assert _gene_sets.kind_of(frozenset().union(*sets.values())) == "human gene symbols"

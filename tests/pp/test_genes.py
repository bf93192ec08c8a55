"""`pp.harmonize_genes` on AnnData."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scgpt_tl
from scgpt_tl._slots import OWNER
from scgpt_tl.genes.table import GeneTable
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.pp import _genes as module
from scgpt_tl.pp._genes import genes_of, harmonize_genes

VOCAB = GeneVocab(["CD3E", "LYZ", "MARCHF1", "QARS1", "EPRS1"])
TABLE = GeneTable(
    names={"CD3E": ((), ("T3E",)), "LYZ": ((), ()), "MARCHF1": (("MARCH1",), ()), "QARS1": (("QARS",), ()),
           "EPRS1": (("QARS",), ())},
    previous={"MARCH1": ("MARCHF1",), "QARS": ("QARS1", "EPRS1")},
    alias={"T3E": ("CD3E",)},
    ensembl={"ENSG00000090382": ("LYZ",), "ENSG00000172053": ("QARS1",)},
    source="/somewhere/toy.tsv",
)  # fmt: skip
NAMES = ["CD3E", "T3E", "MARCH1", "ENSG00000090382.3", "QARS", "what"]
GENES = ["CD3E", "CD3E", "MARCHF1", "LYZ", "", ""]
HOW = ["symbol", "alias", "previous", "ensembl", "ambiguous", "unmatched"]


@pytest.fixture
def adata() -> ad.AnnData:
    return ad.AnnData(np.ones((2, 6), dtype=np.float32), var=pd.DataFrame(index=NAMES))


def test_decisions_are_written_and_nothing_else_moves(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert harmonize_genes(adata, VOCAB, table=TABLE) is None
    assert adata.var_names.tolist() == NAMES
    assert adata.shape == (2, 6)
    assert adata.var["scgpt_gene"].tolist() == GENES
    assert adata.var["scgpt_gene_how"].tolist() == HOW
    summary = adata.uns["scgpt_genes"]
    assert summary[OWNER] == "pp.harmonize_genes"
    assert (summary["n_matched"], summary["vocab_sha256"], summary["table"]) == (4, VOCAB.sha256, "toy.tsv")
    assert summary["duplicates"].tolist() == ["CD3E"]
    assert summary["ambiguous"].tolist() == ["QARS"]
    assert "4 of 6 genes matched (66.7%)" in caplog.text
    assert "1 in several columns (CD3E)" in caplog.text


def test_copy_and_rerun(adata: ad.AnnData) -> None:
    result = harmonize_genes(adata, VOCAB, table=TABLE, copy=True)
    assert result is not None
    assert "scgpt_gene" not in adata.var
    assert not adata.uns
    harmonize_genes(result, GeneVocab(["LYZ"]), table=TABLE)
    assert result.var["scgpt_gene"].tolist() == ["", "", "", "LYZ", "", ""]


@pytest.mark.parametrize("column", ["gene_symbols", "feature_name", "gene_name", "gene_ids"])
def test_columns_of_common_files(adata: ad.AnnData, column: str) -> None:
    adata.var[column] = pd.Categorical(["CD3E", "LYZ", None, "MARCHF1", "QARS1", "EPRS1"])
    adata.var_names = [f"x{i}" for i in range(6)]
    harmonize_genes(adata, VOCAB, table=TABLE)
    assert adata.uns["scgpt_genes"]["column"] == column
    assert adata.var["scgpt_gene"].tolist() == ["CD3E", "LYZ", "", "MARCHF1", "QARS1", "EPRS1"]


def test_what_is_not_ours_is_not_overwritten(adata: ad.AnnData) -> None:
    adata.var["scgpt_gene"] = "mine"
    with pytest.raises(ValueError, match=r"\.var\['scgpt_gene'\] was not written by pp.harmonize_genes"):
        harmonize_genes(adata, VOCAB, table=TABLE)
    assert (adata.var["scgpt_gene"] == "mine").all()
    harmonize_genes(adata, VOCAB, table=TABLE, overwrite=True)
    assert adata.var["scgpt_gene"].tolist() == GENES


def test_h5ad_backed_and_views(adata: ad.AnnData, tmp_path: Path) -> None:
    harmonize_genes(adata, VOCAB, table=TABLE)
    adata.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    assert back.var["scgpt_gene"].tolist() == GENES
    np.testing.assert_array_equal(genes_of(back, VOCAB).ids, VOCAB.ids(GENES))
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    harmonize_genes(backed, VOCAB, table=TABLE)  # ours: replaced
    result = harmonize_genes(backed, VOCAB, table=TABLE, copy=True)
    assert result is not None
    assert not result.isbacked
    view = adata[:, [2, 5]]
    result = harmonize_genes(view, VOCAB, table=TABLE, copy=True)
    assert result is not None
    assert view.is_view
    assert result.var["scgpt_gene"].tolist() == ["MARCHF1", ""]


def test_genes_of_uses_what_was_found_for_the_same_vocabulary(adata: ad.AnnData) -> None:
    exact = genes_of(adata, VOCAB)
    assert exact.n_matched == 1
    harmonize_genes(adata, VOCAB, table=TABLE)
    found = genes_of(adata, VOCAB)
    assert found.names.tolist() == GENES
    assert found.how.tolist() == HOW
    assert found.ids.tolist() == VOCAB.ids(GENES).tolist()
    assert (found.ambiguous, found.unmatched, found.duplicates) == (("QARS",), ("what",), ("CD3E",))
    assert genes_of(adata[:, 2:], VOCAB).names.tolist() == GENES[2:]
    assert genes_of(adata, GeneVocab(["LYZ"])).n_matched == 0  # another vocabulary: exact names
    adata.uns["scgpt_genes"] = {"mine": 1}
    assert genes_of(adata, VOCAB).n_matched == 1


def test_names_that_a_file_has_made_categories_of(adata: ad.AnnData, tmp_path: Path) -> None:
    """Every gene matched and one repeated: anndata keeps categories, none of which is ""."""
    adata = adata[:, :4].copy()
    harmonize_genes(adata, VOCAB, table=TABLE)
    adata.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    for held in (adata, back):
        assert isinstance(held.var["scgpt_gene"].dtype, pd.CategoricalDtype)
        assert genes_of(held, VOCAB).names.tolist() == GENES[:4]


def test_what_takes_no_results_is_refused_at_once(adata: ad.AnnData, tmp_path: Path, monkeypatch) -> None:
    adata.write_h5ad(tmp_path / "x.h5ad")
    view = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")[:, :4]
    assert harmonize_genes(view, VOCAB, table=TABLE, copy=True).var["scgpt_gene"].tolist() == GENES[:4]
    monkeypatch.setattr(module, "match_genes", lambda *_, **__: pytest.fail("genes were matched"))
    with pytest.raises(ValueError, match=r"adata is a view of a backed object, .* copy=True"):
        harmonize_genes(view, VOCAB, table=TABLE)
    both = md.MuData({"rna": adata})
    with pytest.raises(TypeError, match=r"adata is MuData; AnnData is expected .*mdata\['rna'\]"):
        harmonize_genes(both, VOCAB, table=TABLE)


def test_without_any_table(adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hgnc_table", lambda **_: None)
    harmonize_genes(adata, VOCAB)
    assert adata.uns["scgpt_genes"]["n_matched"] == 1
    assert adata.uns["scgpt_genes"]["table"] == ""


def test_mouse_names_are_said_to_be_so(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    adata.var_names = ["Cd3e", "Lyz2", "Marchf1", "Qars", "Eprs", "mt-Co1"]
    with caplog.at_level(logging.INFO):
        harmonize_genes(adata, VOCAB, table=TABLE)
    assert "look like mouse genes" in caplog.text
    assert adata.uns["scgpt_genes"]["species"] == "mouse"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        harmonize_genes(adata, GeneVocab(adata.var_names.tolist()), table=TABLE)
    assert "mouse" not in caplog.text


def test_model_may_be_a_folder_or_is_refused(adata: ad.AnnData, tiny: Path) -> None:
    harmonize_genes(adata, tiny, table=TABLE)
    assert adata.uns["scgpt_genes"]["vocab_sha256"] == GeneVocab.from_file(tiny / "vocab.json").sha256
    with pytest.raises(TypeError, match="model is a int; give"):
        harmonize_genes(adata, 3)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a known name"):
        harmonize_genes(adata, "no-such-model")
    with pytest.raises(FileNotFoundError):
        harmonize_genes(adata, VOCAB, table="absent.tsv")


def test_real_cells(data: Callable[[str], Path]) -> None:
    adata = ad.read_h5ad(data("kang_ctrl12k/kang_ctrl12k.h5ad"), backed="r")
    table = data("gene_resources/hgnc_mapping.tsv.gz")
    vocab = GeneVocab(["MARCHF1", *adata.var["ensembl"].head(3), "CD3E"])
    scgpt_tl.pp.harmonize_genes(adata, vocab, table=table)
    assert adata.uns["scgpt_genes"]["n_matched"] == 4
    assert adata.uns["scgpt_genes"]["column"] == "ensembl"

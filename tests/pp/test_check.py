"""`pp.check_input`: the preflight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import dask.array as da
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scgpt_tl
from scgpt_tl.genes.bundle import read_bundle
from scgpt_tl.genes.table import GeneTable
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.pp import _check as module
from scgpt_tl.pp._check import check_input

GENES = [f"GENE{i}" for i in range(10)]
MODEL = SimpleNamespace(
    name="toy",
    vocab=GeneVocab([*GENES, *(f"OTHER{i}" for i in range(90))]),
    config=SimpleNamespace(d_model=8, n_layers=3, d_ff=16, max_length=5),
)
X = np.array(
    [
        [1, 2, 0, 0, 0, 0, 0, 0, 0, 0],
        [3, 1, 1, 1, 0, 0, 0, 0, 0, 2],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 4, 0, 0, 0, 0, 0, 0],
    ],
    dtype=np.float32,
)


def make(x: Any = X, genes: list[str] = GENES, **kwargs: Any) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes), **kwargs)


def without_times(report: Any) -> Any:
    return replace(report, seconds=0.0)


def test_a_good_data_set() -> None:
    report = check_input(make(), MODEL)
    assert report.ok
    report.raise_for_errors()
    assert (report.model, report.n_obs, report.n_vars, report.layer) == ("toy", 4, 10, None)
    assert (report.n_matched, report.share, report.vocab_share) == (10, 1.0, 0.1)
    assert (report.values, report.gene_column, report.species) == ("counts", "index", "human")
    assert (report.max_length, report.n_long, report.n_empty, report.median_length) == (5, 1, 1, 2.5)
    assert report.n_tokens == 4 + (2 + 4 + 0 + 1)  # a <cls> for each cell, the long one cut to 4 genes
    assert "1 cells express no gene" in report.warnings[0]
    assert "max_length - 1 = 4 genes" in report.notes[0]
    assert "estimates" in report.notes[-1]
    assert report.seconds > 0
    with pytest.raises(FrozenInstanceError):
        report.errors = ()  # type: ignore[misc]


def test_flops_and_memory_by_hand() -> None:
    report = check_input(make(X[:1]), MODEL)
    d, inner, t = 8, 16, 3
    block = t * (2 * 3 * d * d + 2 * d * d + 2 * 2 * d * inner) + 2 * 2 * t * t * d
    last = t * 2 * 2 * d * d + 2 * 2 * d * d + 2 * 2 * d * inner + 2 * 2 * t * d
    assert report.flops == 2 * block + last
    weights = 103 * d + 3 * (4 * d * d + 2 * d * inner)
    assert report.memory_bytes == 4 * (weights + d + t * (8 * d + inner))


FORMATS: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: x.astype(np.int64),
    "uint8 csr": lambda x: sparse.csr_matrix(x.astype(np.uint8)),
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "dask": lambda x: da.from_array(x, chunks=(3, 10)),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_storage_and_block_size_change_nothing(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = check_input(make(), MODEL)
    monkeypatch.setattr(module, "_ROWS", rows)
    assert without_times(check_input(make(FORMATS[name](X)), MODEL)) == without_times(expected)


def test_backed_views_and_bool(tmp_path: Path) -> None:
    adata = make(sparse.csr_matrix(X))
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert without_times(check_input(backed, MODEL)) == without_times(check_input(adata, MODEL))
    view = check_input(backed[[1, 3], :4], MODEL)
    assert (view.n_obs, view.n_vars, view.n_tokens, view.n_empty) == (2, 4, 2 + 4 + 1, 0)
    assert check_input(make(X > 0), MODEL).values == "counts"


def test_nothing_is_changed() -> None:
    adata = make(sparse.csr_matrix(X))
    before = adata.copy()
    check_input(adata, MODEL)
    assert adata.var.columns.empty
    assert not adata.uns
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


@pytest.mark.parametrize("shape", [(0, 10), (4, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    report = check_input(make(np.zeros(shape, dtype=np.float32), GENES[: shape[1]]), MODEL)
    with pytest.raises(ValueError, match=rf"is empty \({shape[0]} cells x {shape[1]} genes\)"):
        report.raise_for_errors()


def test_a_layer_that_is_not_there_and_one_that_is() -> None:
    adata = make(X - 1, layers={"counts": X})
    (error,) = check_input(adata, MODEL, layer="raw").errors
    assert error == "layer 'raw' is not in .layers (there: 'counts'); give one of these, or layer=None for .X"
    assert check_input(adata, MODEL, layer="counts").ok
    nothing = ad.AnnData(shape=(2, 10), var=pd.DataFrame(index=GENES))
    assert ".X is empty (None)" in check_input(nothing, MODEL).errors[0]
    assert "real numbers" in check_input(make(X.astype(complex)), MODEL).errors[0]


def test_scaled_values() -> None:
    x = X.copy()
    x[1, 2] = -0.5
    report = check_input(make(x, layers={"counts": X}), MODEL)
    assert report.values == "scaled"
    (error,) = report.errors
    for part in ("1 negative values (least -0.5)", "'cell1'", "adata.raw.to_adata()", "layer=", "'counts'"):
        assert part in error


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 1)
    x = X.copy()
    x[1, 0] = x[3, 3] = bad
    for stored in (x, sparse.csr_matrix(x)):
        report = check_input(make(stored), MODEL)
        (error,) = report.errors
        assert ".X holds 2 values that are NaN or infinite, the first in cell 'cell1'" in error
        assert report.values == "counts"


def test_every_error_is_told_at_once() -> None:
    x = X.copy()
    x[0, 0], x[3, 3] = np.nan, -1
    report = check_input(make(x, [f"x{i}" for i in range(10)]), MODEL)
    with pytest.raises(ValueError, match=r"(?s)0 of 10 genes.*NaN.*'cell0'.*negative.*'cell3'"):
        report.raise_for_errors()


@pytest.mark.parametrize(
    ("x", "values", "note"),
    [
        (X, "counts", None),
        (np.log1p(X), "logs", "look like logarithms"),
        (X * 33.3, "floats", "neither counts nor logarithms"),
    ],
)
def test_kinds_of_values(x: np.ndarray, values: str, note: str | None) -> None:
    report = check_input(make(x), MODEL)
    assert report.ok
    assert report.values == values
    assert note is None or any(note in text for text in report.notes)


def test_counts_are_told_from_the_first_rows_but_errors_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GUESS_ROWS", 2)
    x = X.copy()
    x[3, 3] = 4.5
    assert check_input(make(x), MODEL).values == "counts"
    x[3, 3] = -4.5
    assert not check_input(make(x), MODEL).ok


def test_too_few_genes() -> None:
    names = ["GENE0", *(f"x{i}" for i in range(9))]
    (error,) = check_input(make(genes=names), MODEL).errors
    for part in (
        "1 of 10 genes (10.0%)", "'toy'", "at least 20%", "var_names: 'x0', 'x1'", "Species by their spelling: unknown",
        "pp.harmonize_genes",
    ):  # fmt: skip
        assert part in error
    names[:2] = GENES[:2]
    report = check_input(make(genes=names), MODEL)
    assert report.ok
    assert "only 20.0%" in report.warnings[0]


def test_a_small_vocabulary_may_know_few_genes_of_a_big_data_set() -> None:
    genes = [*GENES, *(f"x{i}" for i in range(90))]
    small = SimpleNamespace(name="small", vocab=GeneVocab(GENES), config=MODEL.config)
    report = check_input(make(np.ones((2, 100), dtype=np.float32), genes), small)
    assert (report.share, report.vocab_share, report.errors) == (0.1, 1.0, ())


def test_mouse_genes() -> None:
    (error,) = check_input(make(genes=[f"Gene{i}" for i in range(10)]), MODEL).errors
    assert "mouse" in error
    assert "orthologues" in error
    adata = make(genes=[f"Gene{i}" for i in range(10)])
    adata.var["gene_symbols"] = GENES
    report = check_input(adata, MODEL)
    assert (report.ok, report.species, report.gene_column) == (True, "human", "gene_symbols")


@pytest.mark.filterwarnings("ignore:Observation names are not unique", "ignore:Variable names are not unique")
def test_repeated_names() -> None:
    adata = make(genes=["GENE0", "GENE0", *GENES[2:]])
    adata.obs_names = ["a", "a", "a", "b"]
    report = check_input(adata, MODEL)
    assert report.ok
    assert (report.n_duplicate_var_names, report.n_duplicate_obs_names) == (1, 2)
    assert report.duplicate_genes == ("GENE0",)
    assert report.n_tokens == 4 + (1 + 4 + 0 + 1)  # the first cell's two values are one gene
    assert any("summed: GENE0" in text for text in report.warnings)


def test_harmonised_genes_are_used() -> None:
    adata = make(genes=[f"x{i}" for i in range(10)])
    adata.var["gene_ids"] = GENES
    scgpt_tl.pp.harmonize_genes(adata, MODEL, table=GeneTable({}, {}, {}, {}, source="none"))
    adata.var_names = [f"y{i}" for i in range(10)]
    del adata.var["gene_ids"]
    assert check_input(adata, MODEL).share == 1.0


def test_arguments() -> None:
    assert check_input(make(), MODEL, max_length=6).n_long == 0
    for length in (1, 0, -1):
        with pytest.raises(ValueError, match=f"max_length={length} leaves no room"):
            check_input(make(), MODEL, max_length=length)
    both = md.MuData({"rna": ad.AnnData(X, var=pd.DataFrame(index=GENES))})
    with pytest.raises(TypeError, match=r"MuData; AnnData is expected .*mdata\['rna'\]"):
        check_input(both, MODEL)
    with pytest.raises(TypeError, match="ndarray; AnnData is expected"):
        check_input(X, MODEL)  # type: ignore[arg-type]
    for model in (MODEL.vocab, None, 3):
        with pytest.raises(TypeError, match="model's name or folder"):
            check_input(make(), model)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a known name"):
        check_input(make(), "no-such-model")


def test_it_reads_well() -> None:
    x = X.copy()
    x[0, 0] = -1
    report = check_input(make(x), replace_name(MODEL, "<script>"))
    text, html = str(report), report._repr_html_()
    for part in ("4 cells x 10 genes", "error: .X holds", "warning: 1 cells", "note: time and memory"):
        assert part in text
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert html.count("<li>") == len(report.errors) + len(report.warnings) + len(report.notes)
    for seconds, words in ((0.1, "less than a second"), (30, "30 s"), (600, "10 min"), (7200, "2.0 h")):
        assert words in str(replace(report, seconds=seconds))


def replace_name(model: SimpleNamespace, name: str) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(model), "name": name})


def test_the_published_folder(tiny: Path, counts: ad.AnnData) -> None:
    report = check_input(counts, tiny)
    assert (report.ok, report.model, report.max_length, report.share) == (True, "ckpt", 1200, 1.0)
    assert without_times(check_input(counts, read_bundle(tiny))) == without_times(report)


def test_real_cells(data: Callable[[str], Path], tiny: Path) -> None:
    adata = ad.read_h5ad(data("pbmc3k/pbmc3k.h5ad"), backed="r")
    report = check_input(adata, tiny)
    assert (report.ok, report.values, report.species, report.n_matched) == (True, "counts", "human", 753)
    mouse = ad.read_h5ad(data("mouse_brain10k_1kgenes/mouse_brain10k_1kgenes.h5ad"), backed="r")
    report = check_input(mouse, tiny)
    assert (report.ok, report.species) == (False, "mouse")


def test_mouse_genes_of_a_mouse_model() -> None:
    genes = [f"Gene{i}" for i in range(10)]
    mouse = SimpleNamespace(name="mouse", vocab=GeneVocab(genes), config=MODEL.config)
    report = check_input(make(genes=genes), mouse)
    assert (report.species, report.share, report.warnings) == ("mouse", 1.0, check_input(make(), MODEL).warnings)
    (error,) = check_input(make(genes=[f"Other{i}" for i in range(10)]), mouse).errors
    assert "human" not in error


@pytest.mark.parametrize("max_length", [60.0, "60", True, np.float64(60.5)])
def test_a_length_is_a_whole_number(max_length: object) -> None:
    with pytest.raises(TypeError, match=r"^max_length=.*; give a whole number, 2 or more, or None"):
        check_input(make(), MODEL, max_length=max_length)
    assert type(check_input(make(), MODEL, max_length=np.int64(6)).max_length) is int

"""`pp.select_genes`, `pp.select_peaks`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scgpt_tl.pp._features import select_genes, select_peaks


@pytest.fixture
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 2.0, size=50) * np.ones((80, 1))).astype(np.float32)
    x[:40, :5] += 20
    obs = pd.DataFrame({"batch": pd.Categorical(["a", "b"] * 40)}, index=[f"c{i}" for i in range(80)])
    return ad.AnnData(sparse.csr_matrix(x), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(50)]))


@pytest.fixture
def peaks() -> ad.AnnData:
    x = np.zeros((8, 5), dtype=np.float32)
    for peak, n_open in enumerate((8, 4, 1, 5, 0)):
        x[:n_open, peak] = 3
    return ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=[f"chr1:{i}" for i in range(5)]))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that imports what episcanpy imports, and has its score."""
    folder = tmp_path / "episcanpy"
    folder.mkdir()
    (folder / "__init__.py").write_text("from anndata import read\nfrom numpy import NaN\nfrom . import pp\n")
    (folder / "pp.py").write_text(
        textwrap.dedent("""
        def cal_var(adata, show=True):
            assert not show
            adata.var["prop_shared_cells"] = adata.X.sum(axis=0).tolist()[0]
            adata.var["prop_shared_cells"] /= adata.n_obs
            adata.var["variability_score"] = [1 - abs(p - 0.5) for p in adata.var["prop_shared_cells"]]
        """)
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "episcanpy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "episcanpy"]:
        del sys.modules[name]


def test_genes_are_those_of_scanpy_and_nothing_else_moves(cells: ad.AnnData) -> None:
    before = cells.X.toarray()
    assert select_genes(cells, n_genes=10) is None
    assert cells.var["highly_variable"].sum() == 10
    assert cells.shape == (80, 50)
    np.testing.assert_array_equal(cells.X.toarray(), before)
    expected = ad.AnnData(cells.X.copy(), obs=cells.obs, var=pd.DataFrame(index=cells.var_names))
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    logs = expected.copy()
    sc.pp.highly_variable_genes(expected, n_top_genes=10)
    pd.testing.assert_frame_equal(cells.var, expected.var)
    assert cells.uns["hvg"] == expected.uns["hvg"]
    assert "log1p" not in cells.uns
    select_genes(logs, n_genes=10)  # logarithms are taken as they are
    pd.testing.assert_frame_equal(logs.var, expected.var)


def test_batches_layers_copies_and_backed_files(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.layers["counts"], cells.X = cells.X, cells.X * 0
    result = select_genes(cells, n_genes=7, layer="counts", batch_key="batch", copy=True)
    assert result is not None
    assert result.var["highly_variable"].sum() == 7
    assert "highly_variable_nbatches" in result.var
    assert cells.var.empty
    cells.X = cells.layers["counts"]
    cells.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    select_genes(backed, n_genes=7, flavor="cell_ranger")
    assert backed.var["highly_variable"].sum() == 7


@pytest.mark.filterwarnings("ignore:`n_top_genes` > number")
def test_genes_arguments(cells: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="n_genes=0"):
        select_genes(cells, n_genes=0)
    with pytest.raises(KeyError, match=r"batch_key='donor' is not in \.obs \(there: 'batch'\)"):
        select_genes(cells, batch_key="donor")
    with pytest.raises(KeyError, match="layer 'counts'"):
        select_genes(cells, layer="counts")
    select_genes(cells, n_genes=10_000)
    assert cells.var["highly_variable"].sum() <= 50


@pytest.mark.usefixtures("stand_in")
def test_peaks_by_variability(peaks: ad.AnnData) -> None:
    select_peaks(peaks, n_peaks=2)
    np.testing.assert_allclose(peaks.var["variability_score"], [0.5, 1.0, 0.625, 0.875, 0.5])
    np.testing.assert_allclose(peaks.var["prop_shared_cells"], [1, 0.5, 0.125, 0.625, 0])
    assert peaks.var["highly_variable"].tolist() == [False, True, False, True, False]
    assert peaks.X.max() == 3
    result = select_peaks(peaks, n_peaks=4, copy=True)
    assert result is not None
    assert result.var["highly_variable"].tolist() == [True, True, True, True, False]  # a tie: the first one
    assert peaks.var["highly_variable"].sum() == 2


@pytest.mark.usefixtures("stand_in")
def test_names_are_lent_and_taken_back(peaks: ad.AnnData) -> None:
    had = [hasattr(np, "NaN"), "read" in vars(ad)]
    select_peaks(peaks)
    assert [hasattr(np, "NaN"), "read" in vars(ad)] == had


def test_peaks_without_the_package(peaks: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "episcanpy", None)
    with pytest.raises(ImportError, match=r"pip install 'scgpt_tl\[atac\]'"):
        select_peaks(peaks)
    assert "read" not in vars(ad)


def test_peaks_arguments(peaks: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="n_peaks=0"):
        select_peaks(peaks, n_peaks=0)
    with pytest.raises(ValueError, match="no cell"):
        select_peaks(peaks[:0].copy())


@pytest.mark.skipif(find_spec("episcanpy") is None, reason="episcanpy is not installed (the extra atac)")
def test_peaks_with_episcanpy_itself(peaks: ad.AnnData) -> None:
    select_peaks(peaks, n_peaks=2)
    np.testing.assert_allclose(peaks.var["variability_score"], [0.5, 1.0, 0.625, 0.875, 0.5])


@pytest.mark.usefixtures("stand_in")
@pytest.mark.filterwarnings("ignore:`n_top_genes` > number")
@pytest.mark.parametrize("function", [select_genes, select_peaks])
class TestRefused:
    @pytest.mark.parametrize(
        ("value", "says"),
        [(-0.5, r"must not be negative, .*adata\.raw\.to_adata\(\), .*layer="), (np.nan, "finite"), (np.inf, "finite")],
    )
    def test_values_that_are_none(self, function, cells: ad.AnnData, monkeypatch, value: float, says: str) -> None:
        monkeypatch.setattr("scgpt_tl.pp._features._ROWS", 7)  # the cell is named wherever blocks begin
        cells.X[23, 4] = value
        with pytest.raises(ValueError, match=rf"\.X holds {value} in cell 'c23'; .*{says}"):
            function(cells)
        assert cells.var.empty

    def test_mudata(self, function, cells: ad.AnnData) -> None:
        with pytest.raises(TypeError, match=r"adata is MuData; AnnData is expected .*mdata\['rna'\]"):
            function(md.MuData({"rna": cells}))

    def test_a_view_of_a_file_at_once(self, function, cells: ad.AnnData, tmp_path: Path, monkeypatch) -> None:
        cells.write_h5ad(tmp_path / "x.h5ad")
        view = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")[:60]
        result = function(view, copy=True)
        assert result.n_obs == 60
        assert "highly_variable" in result.var
        monkeypatch.setattr("scgpt_tl.pp._features._values", lambda *_: pytest.fail("the matrix was read"))
        with pytest.raises(ValueError, match=r"adata is a view of a backed object, .* copy=True"):
            function(view)

"""Batches of `.obs`, and the genes that their cells are compared by."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from scgpt_tl.genes.match import match_genes
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.tl._batches import genes_for, read_batches, read_labels

GENES = [f"G{i}" for i in range(60)]


def cells(sizes: tuple[int, ...], seed: int = 0) -> ad.AnnData:
    """All genes expressed nearly everywhere; batches a, b, ... of these sizes."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, (sum(sizes), 60)).astype(np.float32)
    names = np.repeat([chr(97 + i) for i in range(len(sizes))], sizes)
    obs = pd.DataFrame({"lab": names}, index=[f"c{i}" for i in range(sum(sizes))])
    return ad.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=GENES))


def genes(adata: ad.AnnData, *, known: int = 60, n_genes: int = 60, flavor: str = "seurat") -> np.ndarray:
    vocab = GeneVocab(GENES[:known])
    match = match_genes({"index": adata.var_names.tolist()}, vocab)
    batches = read_batches(adata, "lab")
    return genes_for(adata, batches, match, layer=None, n_genes=n_genes, flavor=flavor)


def test_names_and_codes():
    found = read_batches(cells((3, 2, 4)), "lab")
    assert found.names == ("a", "b", "c")
    assert found.codes.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert found.counts.tolist() == [3, 2, 4]
    assert found.column.tolist() == list("aaabbcccc")


def test_categories_without_a_cell_are_no_batches():
    adata = cells((3, 2))
    adata.obs["lab"] = pd.Categorical(adata.obs["lab"], categories=["z", "b", "a"])
    assert read_batches(adata, "lab").names == ("a", "b")


def test_genes_must_be_in_every_large_batch_and_in_the_vocabulary():
    adata = cells((60, 60, 5))
    counts = adata.X.toarray()
    counts[:60, 0] = 0  # not in a, which decides
    counts[120:, 1] = 0  # not in c, which is too small to decide
    adata.X = sparse.csr_matrix(counts)
    found = genes(adata, known=50)
    assert np.flatnonzero(found).tolist() == list(range(1, 50))


def test_where_all_batches_are_small_all_decide():
    adata = cells((20, 20))
    counts = adata.X.toarray()
    counts[20:, 1] = 0
    adata.X = sparse.csr_matrix(counts)
    assert not genes(adata)[1]


def test_variable_genes_are_scanpy_s_per_batch():
    adata = cells((200, 200))
    rng = np.random.default_rng(1)
    counts = adata.X.toarray() * (1 + rng.integers(0, 9, (400, 60)) * (rng.random(60) < 0.4))
    counts[:, 3] = 0  # common to no batch
    adata.X = sparse.csr_matrix(counts.astype(np.float32))
    own = adata[:, np.arange(60) != 3].copy()
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    own.obs["lab"] = own.obs["lab"].astype("category")
    sc.pp.highly_variable_genes(own, n_top_genes=20, batch_key="lab")
    found = genes(adata, n_genes=20)
    assert adata.var_names[found].tolist() == own.var_names[own.var["highly_variable"]].tolist()


def test_a_batch_of_one_cell_chooses_no_genes():
    found = genes(cells((100, 80, 1)), n_genes=25)
    assert found.sum() == 25


@pytest.mark.parametrize("flavor", ["seurat", "seurat_v3"])
def test_values_that_are_no_counts(flavor: str):
    if flavor == "seurat_v3":
        pytest.importorskip("skmisc")
    adata = cells((100, 80))
    adata.X = adata.X.log1p()
    assert genes(adata, n_genes=30, flavor=flavor).sum() == 30


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ([0.0, 1.0] * 5, ("0", "1")),
        (pd.Categorical([1.0, 2.0] * 5), ("1", "2")),
        (["101", "101 "] * 4 + ["7"] * 2, ("101", "7")),
        (["unknown", "none"] * 5, ("none", "unknown")),
    ],
)
def test_names_are_read_as_everywhere(column, names):
    adata = cells((10,))
    adata.obs["lab"] = column
    assert read_batches(adata, "lab").names == names


def test_the_text_of_a_missing_batch_is_none():
    adata = cells((10,))
    adata.obs["lab"] = ["a", "nan"] * 5
    with pytest.raises(ValueError, match="5 cells have no batch"):
        read_batches(adata, "lab")
    adata.obs["lab"] = [0.5, 1] * 5
    with pytest.raises(ValueError, match="numbers with fractions"):
        read_batches(adata, "lab")


def test_types_that_are_not_known_are_no_types(caplog):
    adata = cells((10,))
    adata.obs["type"] = ["B", "unknown", "T ", "nan", "T"] * 2
    assert read_labels(adata, "type").tolist() == ["B", None, "T", None, "T"] * 2
    assert "4 of 10 cells have no label" in caplog.text

"""`tl.scgpt_embed` on what is wrong, odd or unusual: a clear error, or what is stated; and nothing lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import ImplicitModificationWarning
from scipy import sparse

import scgpt_tl
from scgpt_tl.engine import predict
from scgpt_tl.genes.table import GeneTable
from scgpt_tl.models.model import load_model
from scgpt_tl.tl._embed import scgpt_embed

MODEL = load_model(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")


def embed(adata: Any, model: Any = MODEL, **options: Any) -> Any:
    return scgpt_embed(adata, model=model, **({"progress": False, "device": "cpu"} | options))


def refused(adata: Any, match: str, error: type[Exception] = ValueError, **options: Any) -> None:
    """An error before anything is computed or written."""
    slots = ("obs", "var", "obsm", "varm", "uns", "layers") if isinstance(adata, ad.AnnData) else ()
    before = {slot: list(getattr(adata, slot)) for slot in slots}
    with (
        patch.object(predict._Runner, "__call__", side_effect=AssertionError("computed")),
        pytest.raises(error, match=match),
    ):
        embed(adata, **options)
    assert {slot: list(getattr(adata, slot)) for slot in slots} == before


@pytest.fixture
def expected(counts: ad.AnnData) -> np.ndarray:
    return embed(counts, copy=True).obsm["X_scGPT"]


def close(adata: ad.AnnData, expected: np.ndarray) -> None:
    np.testing.assert_allclose(adata.obsm["X_scGPT"], expected, atol=1e-6, rtol=0)


# ---- cells


@pytest.mark.parametrize("shape", [(0, 60), (40, 0), (0, 0)])
def test_an_empty_data_set(counts: ad.AnnData, shape: tuple[int, int]):
    some = counts[: shape[0], : shape[1]].copy()
    refused(some, rf"the data set is empty \({shape[0]} cells x {shape[1]} genes\)")


def test_cells_without_counts_embed_as_cls_alone(counts: ad.AnnData, expected: np.ndarray, caplog):
    x = counts.X.toarray()
    x[[5, 30]] = 0
    counts.X = sparse.csr_matrix(x)
    with caplog.at_level(logging.WARNING):
        embed(counts)
    told = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith("2 cells express no gene of the model: they are embedded as <cls> alone")
    found = counts.obsm["X_scGPT"]
    assert counts.uns["scgpt"]["n_empty"] == 2
    np.testing.assert_array_equal(found[5], found[30])
    assert np.linalg.norm(found[5]) == pytest.approx(1)
    keep = np.setdiff1d(np.arange(40), [5, 30])
    np.testing.assert_allclose(found[keep], expected[keep], atol=1e-6)


def test_one_cell(counts: ad.AnnData, expected: np.ndarray):
    one = counts[7].copy()
    embed(one)
    close(one, expected[[7]])


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.nan, r"\.X holds 1 values that are NaN or infinite, the first in cell 'cell3'"),
        (np.inf, r"\.X holds 1 values that are NaN or infinite, the first in cell 'cell3'"),
        (-1.5, r"1 negative values \(least -1\.5\), the first in cell 'cell3'.*raw\.to_adata\(\).*layer=.*'logs'"),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_values_that_cannot_be(counts: ad.AnnData, value: float, match: str, dense: bool):
    counts.layers["logs"] = counts.X.copy()
    x = counts.X.toarray()
    x[3, 4] = value
    counts.X = x if dense else sparse.csr_matrix(x)
    refused(counts, match)
    embed(counts, layer="logs")  # the cure that the message names


def test_scaled_data_with_a_raw(counts: ad.AnnData, expected: np.ndarray):
    counts.raw = counts
    x = counts.X.toarray()
    counts.X = (x - x.mean(0)) / (x.std(0) + 1)
    refused(counts, r"scaled data cannot be read\. Use adata\.raw\.to_adata\(\), or layer=")
    raw = counts.raw.to_adata()
    embed(raw)
    close(raw, expected)


def test_a_layer_that_is_not_there(counts: ad.AnnData):
    counts.layers["counts"] = counts.X.copy()
    refused(counts, r"layer 'count' is not in \.layers \(there: 'counts'\)", layer="count")


def test_no_x(counts: ad.AnnData, expected: np.ndarray):
    bare = ad.AnnData(obs=counts.obs, var=counts.var, layers={"counts": counts.X})
    refused(bare, r"\.X is empty \(None\); name a layer with layer= \(there: 'counts'\)")
    embed(bare, layer="counts")
    close(bare, expected)


# ---- matrices


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(k, d) for k in ("dense", "csr", "csc") for d in ("float64", "int64", "int8", "uint16")] + [("dense", "float16")],
)
def test_kinds_of_numbers_and_layouts(counts: ad.AnnData, expected: np.ndarray, kind: str, dtype: str):
    dense = np.minimum(counts.X.toarray(), 100)  # int8
    assert counts.X.max() <= 100
    x = dense.astype(dtype)
    counts.X = {"dense": lambda: x, "csr": lambda: sparse.csr_matrix(x), "csc": lambda: sparse.csc_matrix(x)}[kind]()
    embed(counts)
    close(counts, expected)


def test_booleans_are_ones(counts: ad.AnnData):
    ones = counts.copy()
    ones.X = sparse.csr_matrix((counts.X.toarray() > 0).astype(np.float32))
    counts.X = counts.X.toarray() > 0
    for adata in (ones, counts):
        embed(adata)
    close(counts, ones.obsm["X_scGPT"])


def test_a_view_becomes_a_copy_as_in_scanpy(counts: ad.AnnData, expected: np.ndarray):
    view = counts[[9, 3, 4]]
    with pytest.warns(ImplicitModificationWarning, match="view"):
        embed(view)
    close(view, expected[[9, 3, 4]])
    assert list(counts.obsm) == []


def test_backed_files_are_read_and_left(counts: ad.AnnData, expected: np.ndarray, tmp_path: Path):
    file = tmp_path / "a.h5ad"
    counts.write_h5ad(file)
    before = file.read_bytes()
    backed = ad.read_h5ad(file, backed="r")
    embed(backed)
    close(backed, expected)
    assert backed.isbacked
    del backed.obsm["X_scGPT"], backed.varm["scGPT"], backed.uns["scgpt"]
    done = embed(backed, copy=True)
    assert not done.isbacked
    close(done, expected)
    assert list(backed.obsm) == []
    refused(backed[:10], r"view of a backed object, which takes no results: give copy=True, or adata\.to_memory\(\)")
    close(embed(backed[5:15], copy=True), expected[5:15])
    backed.file.close()
    assert file.read_bytes() == before


def test_not_an_anndata(counts: ad.AnnData):
    refused(counts.to_df(), r"adata is DataFrame; AnnData is expected \(of a MuData, one modality", TypeError)
    refused(counts.X, "adata is csr_matrix; AnnData is expected", TypeError)


# ---- genes


@pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning")
@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_repeated_names(counts: ad.AnnData, expected: np.ndarray, caplog):
    counts.obs_names = ["same"] * 40
    embed(counts)
    close(counts, expected)
    x = counts.X.toarray()
    split = np.concatenate([x, np.zeros_like(x[:, :2])], axis=1)
    split[:, 60], split[:, 5] = np.floor(x[:, 5] / 2), x[:, 5] - np.floor(x[:, 5] / 2)
    split[:, 61] = 0
    names = [*counts.var_names, counts.var_names[5], counts.var_names[6]]
    twice = ad.AnnData(sparse.csr_matrix(split), var=pd.DataFrame(index=names))
    with caplog.at_level(logging.WARNING):
        embed(twice)
    close(twice, expected)  # columns of one gene are summed
    assert any("2 genes of the model stand in several variables; they are summed" in r.message for r in caplog.records)
    assert twice.varm["scGPT"].shape == (62, 64)
    np.testing.assert_array_equal(twice.varm["scGPT"][5], twice.varm["scGPT"][60])


def test_no_gene_in_the_vocabulary(counts: ad.AnnData):
    counts.var_names = [f"PEAK{i}" for i in range(60)]
    refused(counts, r"0 of 60 genes \(0\.0%\) are in the vocabulary of 'ckpt', at least 20% are needed.*'PEAK0'")


def test_fewer_than_a_fifth_of_the_genes(counts: ad.AnnData, caplog):
    names = counts.var_names.tolist()
    counts.var_names = [*names[:11], *(f"X{i}" for i in range(49))]
    refused(counts, r"11 of 60 genes \(18\.3%\).*harmonize_genes")
    counts.var_names = [*names[:12], *(f"X{i}" for i in range(48))]
    with caplog.at_level(logging.WARNING):
        embed(counts)
    assert "only 20.0% of the genes" in caplog.text
    assert counts.uns["scgpt"]["params"]["n_genes_matched"] == 12


def test_genes_outside_the_vocabulary_change_nothing(counts: ad.AnnData, expected: np.ndarray):
    more = sparse.hstack([counts.X, sparse.csr_matrix(np.full((40, 30), 7, np.float32))], format="csr")
    wide = ad.AnnData(more, var=pd.DataFrame(index=[*counts.var_names, *(f"X{i}" for i in range(30))]))
    embed(wide)
    close(wide, expected)
    assert np.isnan(wide.varm["scGPT"]).all(1).tolist() == [False] * 60 + [True] * 30


def test_mouse_symbols(toy: Callable[..., ad.AnnData]):
    adata = toy(10, 200)
    adata.var_names = [f"{name.capitalize()}" if name.isalpha() else f"Gm{i}" for i, name in enumerate(adata.var_names)]
    refused(
        adata, r"Species by their spelling: mouse\. A human model reads human genes: put the symbols of human ortho"
    )


def test_ensembl_ids_and_how_harmonize_genes_mends_them(counts: ad.AnnData, expected: np.ndarray):
    symbols = counts.var_names.tolist()
    ids = [f"ENSG{i:011d}" for i in range(60)]
    counts.var_names = [f"{name}.{i % 7}" for i, name in enumerate(ids)]
    refused(counts, r"0 of 60 genes.*pp\.harmonize_genes\(adata, model\) finds Ensembl ids")
    table = GeneTable(
        dict.fromkeys(symbols, ((), ())), {}, {}, {i: (s,) for i, s in zip(ids, symbols, strict=True)}, source="toy"
    )
    scgpt_tl.pp.harmonize_genes(counts, MODEL, table=table)
    embed(counts)
    close(counts, expected)
    assert counts.uns["scgpt"]["params"]["n_genes_matched"] == 60


def test_symbols_in_a_column(counts: ad.AnnData, expected: np.ndarray):
    counts.var["feature_name"] = counts.var_names.to_numpy()
    counts.var_names = [f"ENSG{i:011d}" for i in range(60)]
    embed(counts)
    close(counts, expected)
    assert counts.uns["scgpt"]["params"]["gene_column"] == "feature_name"


# ---- slots


@pytest.mark.parametrize(
    ("slot", "key", "value"),
    [
        ("obsm", "X_scGPT", np.zeros((40, 2))),
        ("varm", "scGPT", np.zeros((60, 2))),
        ("uns", "scgpt", {"mine": 1}),
        ("varm", "scGPT_context", np.zeros((60, 2))),
    ],
)
def test_what_another_wrote_is_not_overwritten(counts: ad.AnnData, slot: str, key: str, value: Any):
    getattr(counts, slot)[key] = value
    options = {"groupby": "batch"} if key.endswith("context") else {}
    refused(
        counts, rf"\.{slot}\['{key}'\] was not written by tl\.scgpt_embed: give another key_added, or ov", **options
    )
    embed(counts, key_added="other", **options)
    assert getattr(counts, slot)[key] is value or np.array_equal(getattr(counts, slot)[key], value)
    embed(counts, overwrite=True, **options)
    assert counts.obsm["X_scGPT"].shape == (40, 64)


def test_key_added_that_is_taken(counts: ad.AnnData):
    counts.obsm["X_pca"] = np.zeros((40, 2))
    refused(counts, r"\.obsm\['X_pca'\] was not written by", key_added="X_pca")


def test_our_own_results_are_overwritten(counts: ad.AnnData):
    embed(counts, rng=1)
    first = counts.obsm["X_scGPT"]
    embed(counts, rng=2)
    assert not np.array_equal(counts.obsm["X_scGPT"], first)
    assert counts.uns["scgpt"]["params"]["seed"] == 2


def test_groupby_that_cannot_be(counts: ad.AnnData, tmp_path: Path):
    refused(counts, r"groupby='celltype' is not in \.obs \(there: 'cell_type', 'batch'\)", KeyError, groupby="celltype")
    refused(counts, "groupby= needs all cells in one run", groupby="batch", out=tmp_path / "e.zarr")
    assert not (tmp_path / "e.zarr").exists()


def test_groups_may_be_anything(counts: ad.AnnData):
    counts.obs["cluster/odd"] = np.arange(40) % 2 == 0
    counts.obs["none"] = np.nan
    embed(counts, groupby="cluster/odd")
    assert counts.uns["scgpt"]["groups"].tolist() == ["False", "True"]
    embed(counts, groupby="none")
    assert counts.varm["scGPT_context"].shape == (60, 0, 64)


# ---- options


@pytest.mark.parametrize("max_length", [1, 0, -5])
def test_room_for_cls_and_a_gene(counts: ad.AnnData, max_length: int):
    refused(counts, f"max_length={max_length} leaves no room for a gene beside <cls>", max_length=max_length)
    embed(counts, max_length=2)
    assert counts.uns["scgpt"]["n_tokens"] == 80


def test_cuda_where_there_is_none(counts: ad.AnnData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        refused(counts, f"device='{device}': no usable CUDA device here; device='auto' or 'cpu'", device=device)
    embed(counts, device="auto")
    assert counts.uns["scgpt"]["params"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"device": "warp"}, ValueError, "device='warp' is not a device"),
        ({"dtype": "double"}, ValueError, "dtype='double'; give 'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"max_memory": "a lot"}, ValueError, "max_memory='a lot'; give a positive number of bytes, or text like"),
        ({"max_memory": -1}, ValueError, "max_memory=-1"),
        ({"max_tokens": 0}, ValueError, "max_tokens=0; give 1 or more"),
        ({"rng": -1}, ValueError, "rng=-1 is negative"),
        ({"rng": "seed"}, TypeError, "rng must be an integer"),
        ({"rng": 2**63}, ValueError, "rng=9223372036854775808 is too large"),
        ({"max_length": 60.0}, TypeError, r"max_length=60\.0; give a whole number, 2 or more, or None"),
        ({"max_length": "60"}, TypeError, "max_length='60'; give a whole number"),
        ({"max_length": True}, TypeError, "max_length=True; give a whole number"),
        ({"unit_norm": "no"}, TypeError, "unit_norm='no'; give True or False"),
        ({"key_added": "."}, ValueError, r"'\.'\] cannot be kept"),
        ({"key_added": 5}, ValueError, r"\[5\] cannot be kept: a name in h5ad is text"),
        ({"device": "meta"}, ValueError, "device='meta': no usable device here"),
        ({"max_lenght": 5}, TypeError, "unexpected argument 'max_lenght'; did you mean 'max_length'"),
        ({"maxtokens": 5}, TypeError, "unexpected argument 'maxtokens'; did you mean 'max_tokens'"),
        ({"batch_size": 5}, TypeError, "unexpected argument 'batch_size'"),
        ({"model": "no-such"}, FileNotFoundError, "'no-such' is neither a folder nor a known name"),
    ],
)
def test_options_that_cannot_be(counts: ad.AnnData, options: dict, error: type[Exception], match: str):
    refused(counts, match, error, **options)


def test_max_memory_changes_no_result(counts: ad.AnnData, expected: np.ndarray):
    embed(counts, max_memory="200KB")
    close(counts, expected)


@pytest.mark.parametrize("out", ["", ".", ".."])
@pytest.mark.parametrize("overwrite", [False, True])
def test_out_without_a_name(
    counts: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, overwrite: bool
):
    """In a folder of its own: what is refused here once removed the folder above."""
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    (here / "mine").write_text("keep")
    monkeypatch.chdir(here)
    refused(counts, "is no folder that could be made or replaced: add a name", out=out, overwrite=overwrite)
    assert (here / "mine").read_text() == "keep"

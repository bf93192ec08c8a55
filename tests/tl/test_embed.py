"""`tl.scgpt_embed`: published numbers, slots, the same answer every time, going on with `out=`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import scgpt_tl
from scgpt_tl._slots import OWNER
from scgpt_tl.engine import predict, store
from scgpt_tl.engine.store import EmbeddingStore
from scgpt_tl.models.model import Model, load_model
from scgpt_tl.pp._blocks import Matrix
from scgpt_tl.tl import _embed as module
from scgpt_tl.tl._embed import scgpt_embed
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer, ahead

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"
MODEL = load_model(GOLDEN / "ckpt")


def embed(adata: ad.AnnData, model: Any = MODEL, **options: Any) -> Any:
    return scgpt_embed(adata, model=model, **({"progress": False, "device": "cpu"} | options))


def golden_cells() -> tuple[ad.AnnData, np.ndarray]:
    held = np.load(GOLDEN / "embed_noties.npz")
    adata = ad.AnnData(held["X"], pd.DataFrame(index=held["cells"]), pd.DataFrame(index=held["genes"]))
    return adata, held["emb"]


@contextmanager
def blocks_of(rows: int) -> Iterator[None]:
    """Read and tokenise so many rows at a time."""
    with patch.object(module, "ROWS", rows), patch.object(store, "ROWS", rows):
        yield


# ---- numbers


@pytest.mark.parametrize("model", [GOLDEN / "ckpt", str(GOLDEN / "ckpt"), MODEL])
def test_embeddings_are_the_published_ones(model: Any):
    adata, expected = golden_cells()
    assert embed(adata, model) is None
    np.testing.assert_allclose(adata.obsm["X_scGPT"], expected, atol=1e-5, rtol=0)


def test_logs_give_the_same_as_what_they_are_logs_of():
    adata, expected = golden_cells()
    for change in (np.log1p, np.expm1, lambda x: x * 1000.0):
        other = adata.copy()
        other.X = change(adata.X.astype(np.float64))
        embed(other)
        np.testing.assert_allclose(other.obsm["X_scGPT"], expected, atol=1e-5, rtol=0)


def test_gene_embeddings_are_what_the_transformer_reads(counts: ad.AnnData):
    counts.var_names = [*counts.var_names[:-1], "NO_SUCH_GENE"]
    embed(counts)
    found = counts.varm["scGPT"]
    assert (found.shape, found.dtype) == ((60, 64), np.float32)
    assert np.isnan(found[-1]).all()
    ids = torch.from_numpy(MODEL.vocab.ids(counts.var_names[:-1].tolist()))
    backbone = MODEL.backbone
    with torch.no_grad():
        expected = backbone.genes.norm(backbone.genes.table(ids)).numpy()
    np.testing.assert_allclose(found[:-1], expected, atol=1e-6)


def test_unit_norm_off(counts: ad.AnnData):
    embed(counts, key_added="raw", unit_norm=False)
    embed(counts)
    raw, unit = counts.obsm["raw"], counts.obsm["X_scGPT"]
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), unit, atol=1e-6)


@torch.no_grad()
def test_contexts_equal_a_plain_loop(counts: ad.AnnData):
    labels = counts.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[:3] = None
    counts.obs["group"] = pd.Categorical(labels, categories=["none of it", "B", "NK", "T"])
    embed(counts, groupby="group", max_tokens=90)
    found = counts.varm["scGPT_context"]
    groups = counts.uns["scgpt"]["groups"].tolist()
    assert groups == ["B", "NK", "T"]  # a category without cells is no group
    assert (found.shape, found.dtype) == ((60, 3, 64), np.float32)
    tokenizer = Tokenizer(np.arange(60), MODEL.vocab.keys, MODEL.config.cls_id)
    expected = np.full(found.shape, np.nan, np.float32)
    for g, group in enumerate(groups):
        per_gene: list[list[np.ndarray]] = [[] for _ in range(60)]
        for i in np.flatnonzero(labels == group):
            block = tokenizer(counts.X[i])
            tokens = MODEL.backbone.encode(block.batch(np.array([0]))).tokens.numpy()
            for gene, token in zip(block.gene_ids[1:], tokens[1:], strict=True):
                per_gene[gene].append(token)
        for gene, tokens in enumerate(per_gene):
            if tokens:
                expected[gene, g] = np.mean(tokens, axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ---- the same answer every time

STORAGES = ("csr", "csc", "csr_array", "dense", "view", "backed", "zarr", "zarr_sparse", "dask")
DTYPES = ("float32", "float64", "int64", "int32", "uint16")


def rich() -> tuple[sparse.csr_matrix, pd.DataFrame]:
    """20 cells x 60 columns: an empty cell, long ones, genes in several columns, columns outside the vocabulary."""
    rng = np.random.default_rng(8)
    x = rng.poisson(rng.gamma(0.5, 4.0, (20, 60))) * (rng.random((20, 60)) < np.linspace(0.1, 0.9, 20)[:, None])
    x[7] = 0
    names = list(MODEL.vocab.genes[:60])
    names[10] = names[41] = names[3]
    names[20] = "NO_SUCH_GENE"
    return sparse.csr_matrix(x.astype(np.float64)), pd.DataFrame(
        {"gene_symbols": names}, index=[f"v{i}" for i in range(60)]
    )


def stored(x: sparse.csr_matrix, var: pd.DataFrame, storage: str, folder: Path) -> ad.AnnData:
    """The matrix as an AnnData that holds it in one way or another."""
    obs = pd.DataFrame(index=[f"c{i}" for i in range(x.shape[0])])
    if storage == "view":
        outer = sparse.vstack([x[:1], x, x[:2]], format="csr")
        parent = ad.AnnData(outer, var=var)
        parent.obs_names = [f"c{i}" for i in range(outer.shape[0])]
        return parent[1 : 1 + x.shape[0]]
    if storage == "backed":
        ad.AnnData(x, obs, var).write_h5ad(folder / "x.h5ad")
        return ad.read_h5ad(folder / "x.h5ad", backed="r")
    if storage.startswith("zarr"):
        group = zarr.open_group(folder / "x.zarr", mode="w")
        ad.io.write_elem(group, "X", x.toarray() if storage == "zarr" else x)
        held = group["X"] if storage == "zarr" else ad.io.sparse_dataset(group["X"])
        return ad.AnnData(held, obs, var)
    made = {
        "csr": lambda: x,
        "csc": x.tocsc,
        "csr_array": lambda: sparse.csr_array(x),
        "dense": x.toarray,
        "dask": lambda: da.from_array(x.toarray(), chunks=(7, 60)),
    }[storage]()
    return ad.AnnData(made, obs, var)


def tokens_and_cells(adata: ad.AnnData, **options: Any) -> tuple[list[tuple[bytes, bytes]], np.ndarray]:
    """Each cell's tokens, as bytes, and its embedding."""
    met: list[TokenBlock] = []

    def spy(rows: Any, tokenizer: Tokenizer) -> Iterator[tuple[int, TokenBlock]]:
        for start, block in ahead(rows, tokenizer):
            met.append(block)
            yield start, block

    with patch.object(predict, "ahead", spy):
        done = embed(adata, copy=True, max_length=25, **options)
    spans = [(b, s, e) for b in met for s, e in zip(b.offsets[:-1], b.offsets[1:], strict=True)]
    return [(b.gene_ids[s:e].tobytes(), b.values[s:e].tobytes()) for b, s, e in spans], done.obsm["X_scGPT"]


@cache
def expected() -> tuple[list[tuple[bytes, bytes]], np.ndarray]:
    x, var = rich()
    return tokens_and_cells(ad.AnnData(x, var=var))


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")  # anndata's, about files it writes
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_cells=st.integers(1, 20),
    max_tokens=st.integers(1, 400),
    rows=st.integers(1, 25),
    storage=st.sampled_from(STORAGES),
    dtype=st.sampled_from(DTYPES),
    threads=st.sampled_from((1, 2)),
)
def test_a_cell_is_the_same_whatever_surrounds_it(
    tmp_path_factory: pytest.TempPathFactory, seed, n_cells, max_tokens, rows, storage, dtype, threads
):
    """Any order and subset of cells, order of columns, blocks, minibatches, storage, kind of number, threads."""
    x, var = rich()
    rng = np.random.default_rng(seed)
    cells, columns = rng.permutation(20)[:n_cells], rng.permutation(60)
    adata = stored(x[cells][:, columns].astype(dtype), var.iloc[columns], storage, tmp_path_factory.mktemp("stored"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with blocks_of(rows):
            tokens, found = tokens_and_cells(adata, max_tokens=max_tokens)
    finally:
        torch.set_num_threads(before)
    assert tokens == [expected()[0][i] for i in cells]
    np.testing.assert_allclose(found, expected()[1][cells], atol=1e-6, rtol=0)


def test_the_toy_of_the_property_shows_every_case():
    x, var = rich()
    lengths = [len(ids) // 8 for ids, _ in expected()[0]]
    assert lengths[7] == 1
    assert max(lengths) == 25
    assert 1 < min(lengths[:5]) < 25
    assert var["gene_symbols"].duplicated().sum() == 2
    assert sparse.issparse(x)


def test_names_of_cells_do_not_matter_and_the_seed_does(counts: ad.AnnData):
    other = counts.copy()
    other.obs_names = [f"other{i}" for i in range(40)]
    for adata, rng in ((counts, 0), (other, np.int64(0))):
        embed(adata, rng=rng)
    np.testing.assert_array_equal(counts.obsm["X_scGPT"], other.obsm["X_scGPT"])
    embed(other, rng=1)
    assert not np.array_equal(counts.obsm["X_scGPT"], other.obsm["X_scGPT"])  # ties fall otherwise
    upper = replace(MODEL, config=replace(MODEL.config, ties="upper"))
    for adata, rng in ((counts, 0), (other, 1)):
        embed(adata, upper, rng=rng)
    np.testing.assert_array_equal(counts.obsm["X_scGPT"], other.obsm["X_scGPT"])
    assert counts.uns["scgpt"]["params"]["ties"] == "upper"


# ---- slots


def test_what_is_written_down(counts: ad.AnnData, tiny: Path):
    before = set(counts.obs), set(counts.var)
    embed(counts, tiny, max_length=10, rng=7)
    run = counts.uns["scgpt"]
    lengths = np.minimum(counts.X.getnnz(axis=1), 9) + 1
    assert run[OWNER] == "tl.scgpt_embed"
    assert (run["n_cells"], run["n_empty"], run["n_tokens"]) == (40, 0, lengths.sum())
    assert run["n_sampled"] == (counts.X.getnnz(axis=1) > 9).sum()
    expected = {
        "model": "ckpt",
        "weights_sha256": MODEL.sha256,
        "seed": 7,
        "layer": "X",
        "max_length": 10,
        "ties": "spread",
        "n_bins": 51,
        "unit_norm": True,
        "n_genes_matched": 60,
        "gene_column": "index",
        "device": "cpu",
        "dtype": "float32",
        "out": "",
        "scgpt_tl": scgpt_tl.__version__,
        "torch": str(torch.__version__),
    }
    assert {key: run["params"][key] for key in expected} == expected
    assert (set(counts.obs), set(counts.var)) == before
    assert counts.obsm["X_scGPT"].dtype == np.float32


def test_results_go_through_h5ad(counts: ad.AnnData, tmp_path: Path):
    embed(counts, groupby="cell_type")
    counts.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["X_scGPT"], counts.obsm["X_scGPT"])
    np.testing.assert_array_equal(back.varm["scGPT_context"], counts.varm["scGPT_context"])
    assert back.uns["scgpt"]["groups"].tolist() == ["B", "NK", "T"]
    assert back.uns["scgpt"]["params"] == counts.uns["scgpt"]["params"]
    embed(back, rng=3)  # what came from a file is known as ours
    assert back.uns["scgpt"]["params"]["seed"] == 3


def test_a_later_run_leaves_nothing_of_an_earlier_one(counts: ad.AnnData, tmp_path: Path):
    counts.obs["half"] = np.arange(counts.n_obs) % 2
    embed(counts, groupby="half")
    embed(counts)
    assert "scGPT_context" not in counts.varm
    assert "groups" not in counts.uns["scgpt"]
    embed(counts, out=tmp_path / "embedding.zarr")
    assert "X_scGPT" not in counts.obsm


def test_what_an_earlier_run_did_not_write_stays(counts: ad.AnnData, tmp_path: Path):
    embed(counts)
    counts.varm["scGPT_context"] = np.ones((60, 2))
    embed(counts)
    np.testing.assert_array_equal(counts.varm["scGPT_context"], 1)
    with pytest.raises(ValueError, match=r"\.varm\['scGPT_context'\] was not written by"):
        embed(counts, groupby="batch")
    embed(counts, out=tmp_path / "e.zarr")
    assert "X_scGPT" not in counts.obsm
    counts.obsm["X_scGPT"] = np.ones((40, 2))
    embed(counts, out=tmp_path / "e.zarr")
    np.testing.assert_array_equal(counts.obsm["X_scGPT"], 1)
    with pytest.raises(ValueError, match=r"^\.obsm\['X_scGPT'\] was not written by"):
        embed(counts)
    embed(counts, overwrite=True)
    assert counts.obsm["X_scGPT"].shape == (40, 64)


def test_key_added_writes_everything_under_it(counts: ad.AnnData):
    embed(counts, key_added="mine", groupby="batch")
    assert list(counts.obsm) == ["mine"]
    assert sorted(counts.varm) == ["mine", "mine_context"]
    assert list(counts.uns) == ["mine"]


def test_a_layer_is_read_in_place_of_x(counts: ad.AnnData):
    embed(counts)
    expected = counts.obsm["X_scGPT"]
    counts.layers["counts"], counts.X = counts.X, -counts.X
    embed(counts, layer="counts")
    np.testing.assert_array_equal(counts.obsm["X_scGPT"], expected)
    assert counts.uns["scgpt"]["params"]["layer"] == "counts"


def snapshot(adata: ad.AnnData) -> Any:
    x = adata.X.copy()
    return x, {slot: dict(getattr(adata, slot)) for slot in ("obsm", "varm", "uns", "layers")}, adata.obs.copy()


def assert_unchanged(adata: ad.AnnData, before: Any) -> None:
    x, slots, obs = before
    assert (abs(adata.X - x)).sum() == 0
    for slot, held in slots.items():
        assert dict(getattr(adata, slot)) == held
    pd.testing.assert_frame_equal(adata.obs, obs)


def test_copy_leaves_the_input_alone(counts: ad.AnnData):
    before = snapshot(counts)
    done = embed(counts, copy=True)
    assert_unchanged(counts, before)
    assert done.obsm["X_scGPT"].shape == (40, 64)
    embed(counts)
    np.testing.assert_array_equal(counts.obsm["X_scGPT"], done.obsm["X_scGPT"])


def test_the_model_is_as_it_was(counts: ad.AnnData):
    sha = MODEL.sha256
    embed(counts)
    assert MODEL.sha256 == sha
    assert {p.device.type for p in MODEL.network.parameters()} == {"cpu"}


def test_progress_is_shown_when_asked_for(counts: ad.AnnData, capsys):
    embed(counts)
    assert capsys.readouterr().err == ""
    embed(counts, progress=True)
    assert "40/40" in capsys.readouterr().err


# ---- out=


def interrupted(after: int) -> Any:
    """A store whose disk is cut off when it has taken some blocks."""
    inner, taken = EmbeddingStore.__setitem__, []

    def setitem(self: EmbeddingStore, rows: slice, values: np.ndarray) -> None:
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(rows)
        inner(self, rows, values)

    return patch.object(EmbeddingStore, "__setitem__", setitem)


def counted(adata: ad.AnnData) -> dict[str, Any]:
    run = adata.uns["scgpt"]
    return {key: run[key] for key in ("n_cells", "n_empty", "n_sampled", "n_tokens")}


@pytest.fixture
def holey(toy: Callable[..., ad.AnnData]) -> ad.AnnData:
    """40 cells, of which 2, 9 and 33 are empty."""
    adata = toy()
    x = adata.X.toarray()
    x[[2, 9, 33]] = 0
    adata.X = sparse.csr_matrix(x)
    return adata


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_run_that_was_cut_off_goes_on(holey: ad.AnnData, tmp_path: Path, after: int):
    whole = holey.copy()
    with blocks_of(8):
        embed(whole, out=tmp_path / "whole.zarr", max_length=12)
        before = snapshot(holey)
        with interrupted(after), pytest.raises(KeyboardInterrupt):
            embed(holey, out=tmp_path / "cut.zarr", max_length=12)
        assert_unchanged(holey, before)
        assert zarr.open_array(tmp_path / "cut.zarr", mode="r").attrs["rows_done"] == 8 * after
        seen: list[int] = []
        inner = predict.embed_rows

        def spy(*args: Any, **options: Any) -> Any:
            seen.append(options["total"])
            return inner(*args, **options)

        with patch.object(module, "embed_rows", spy):
            embed(holey, out=tmp_path / "cut.zarr", max_length=12)
    assert seen == [40 - 8 * after]  # what was done is not done again
    expected, found = (zarr.open_array(tmp_path / f"{name}.zarr", mode="r")[:] for name in ("whole", "cut"))
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all()
    assert counted(holey) == counted(whole)
    assert counted(holey)["n_empty"] == 3
    assert list(holey.obsm) == []
    assert holey.uns["scgpt"]["params"]["out"] == str(tmp_path / "cut.zarr")


def test_out_holds_what_obsm_would(counts: ad.AnnData, tmp_path: Path):
    embed(counts, out=str(tmp_path / "e.zarr"))
    embed(counts, key_added="here")
    np.testing.assert_allclose(zarr.open_array(tmp_path / "e.zarr", mode="r")[:], counts.obsm["here"], atol=1e-6)


def test_a_finished_run_is_not_done_again(counts: ad.AnnData, tmp_path: Path):
    embed(counts, out=tmp_path / "e.zarr")
    first = counted(counts)
    with patch.object(predict._Runner, "__call__", side_effect=AssertionError("computed again")):
        embed(counts, out=tmp_path / "e.zarr")
    assert counted(counts) == first


def test_out_of_another_run_or_another_hand_is_refused(counts: ad.AnnData, tmp_path: Path):
    embed(counts, out=tmp_path / "e.zarr")
    other = counts.copy()
    other.X = sparse.csr_matrix(np.maximum(other.X.toarray(), 1))
    renamed = counts.copy()
    renamed.obs_names = [f"r{i}" for i in range(40)]
    for adata, options, named in (
        (counts, {"rng": 1}, "seed"),
        (counts, {"unit_norm": False}, "unit_norm"),
        (other, {}, "n_tokens"),
        (renamed, {}, "obs_names"),
        (counts[:, ::-1].copy(), {}, "genes_sha256"),
        (counts[:20].copy(), {}, "n_tokens, obs_names"),
    ):
        with pytest.raises(FileExistsError, match=rf"holds another run \(different: .*{named}"):
            embed(adata, out=tmp_path / "e.zarr", **options)
    embed(counts, out=tmp_path / "e.zarr", rng=1, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("keep")
    with pytest.raises(FileExistsError, match="is no embedding of ours: give another path"):
        embed(counts, out=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "x").read_text() == "keep"


@pytest.mark.parametrize("done", [1, 5])
def test_out_of_other_values_is_refused(counts: ad.AnnData, tmp_path: Path, done: int):
    """Names, genes, arguments and numbers of tokens are those of the run before, finished or cut off."""
    with blocks_of(8):
        with interrupted(done) if done < 5 else nullcontext(), suppress(KeyboardInterrupt):
            embed(counts, out=tmp_path / "e.zarr", max_length=8)
        before = zarr.open_array(tmp_path / "e.zarr", mode="r")[:]
        for x in (counts.X[::-1], counts.X[:, ::-1], counts.X + counts.X.multiply(counts.X)):
            other = counts.copy()
            other.X = sparse.csr_matrix(x)
            with pytest.raises(FileExistsError, match=r"holds another run \(different: .*values_sha256\)"):
                embed(other, out=tmp_path / "e.zarr", max_length=8)
        np.testing.assert_array_equal(zarr.open_array(tmp_path / "e.zarr", mode="r")[:], before)
    dense = counts.copy()
    dense.X = counts.X.toarray().astype(np.int64)
    embed(dense, out=tmp_path / "e.zarr", max_length=8)  # the same values


def test_a_layer_called_x_is_not_x(counts: ad.AnnData, tmp_path: Path):
    counts.layers["X"] = counts.X.copy()
    embed(counts, out=tmp_path / "e.zarr")
    with pytest.raises(FileExistsError, match=r"different: layer\)"):
        embed(counts, out=tmp_path / "e.zarr", layer="X")


def test_the_matrix_is_read_twice_with_out_too(counts: ad.AnnData, tmp_path: Path):
    read: list[int] = []
    inner = Matrix.blocks
    with patch.object(Matrix, "blocks", lambda self, rows: read.append(rows) or inner(self, rows)):
        embed(counts, out=tmp_path / "e.zarr")
    assert len(read) == 2


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning", "ignore::anndata.ImplicitModificationWarning")
@pytest.mark.parametrize(("place", "how"), [("x.zarr", "is"), ("", "holds"), ("x.zarr/e.zarr", "lies in")])
@pytest.mark.parametrize("layer", [None, "raw"])
def test_out_is_not_what_is_read(counts: ad.AnnData, tmp_path: Path, place: str, how: str, layer: str | None):
    embed(counts, out=tmp_path / "data" / "x.zarr")  # even of our own making
    held = zarr.open_array(tmp_path / "data" / "x.zarr", mode="r+")
    held[:] = np.abs(held[:])
    var = pd.DataFrame(index=list(MODEL.vocab.genes[:64]))
    cells = ad.AnnData(held, var=var) if layer is None else ad.AnnData(var=var, obs=counts.obs, layers={"raw": held})
    before = held[:]
    with pytest.raises(ValueError, match=f"^out .* {how} what is read"):
        embed(cells, out=tmp_path / "data" / place, layer=layer, overwrite=True)
    np.testing.assert_array_equal(held[:], before)


@pytest.mark.parametrize("names", [range(40), [np.nan, *range(39)]])
def test_names_that_are_no_text(counts: ad.AnnData, tmp_path: Path, names: Any):
    counts.obs.index = pd.Index(names)
    embed(counts, out=tmp_path / "e.zarr")
    embed(counts, out=tmp_path / "e.zarr")
    assert counts.uns["scgpt"]["n_cells"] == 40


def test_numbers_of_numpy_go_into_the_mark(counts: ad.AnnData, tmp_path: Path):
    embed(counts, out=tmp_path / "e.zarr", max_length=np.int64(9), unit_norm=np.bool_(True))
    embed(counts, out=tmp_path / "e.zarr", max_length=9, unit_norm=True)
    held = zarr.open_array(tmp_path / "e.zarr", mode="r").attrs["run"]
    assert (held["max_length"], held["unit_norm"], held["layer"]) == (9, True, None)


def test_out_in_the_home_folder(counts: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    embed(counts, out="~/e.zarr")
    assert counts.uns["scgpt"]["params"]["out"] == str(tmp_path / "e.zarr")
    assert zarr.open_array(tmp_path / "e.zarr", mode="r").shape == (40, 64)


def test_ctrl_c_leaves_everything_as_it_was(counts: ad.AnnData):
    before = snapshot(counts)
    with patch.object(predict._Runner, "__call__", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        embed(counts, groupby="batch")
    assert_unchanged(counts, before)


def test_out_cannot_be_written(counts: ad.AnnData, tmp_path: Path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(OSError, match="file"):
        embed(counts, out=tmp_path / "file" / "e.zarr")
    assert dict(counts.uns) == {}
    with pytest.raises(FileExistsError):
        embed(counts, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep"


def test_warnings_are_logged_not_printed(counts: ad.AnnData, caplog, capsys):
    counts.var_names = [*counts.var_names[:25], *(f"X{i}" for i in range(35))]
    with caplog.at_level(logging.WARNING):
        embed(counts)
    assert ["only 41.7% of the genes" in r.message for r in caplog.records] == [True]
    assert capsys.readouterr().out == ""


def test_a_model_that_normalises_by_batch_has_its_own_function(counts: ad.AnnData):
    tuned = replace(MODEL, config=replace(MODEL.config, input_norm="domain", n_batches=2))
    assert isinstance(tuned, Model)
    with pytest.raises(ValueError, match=r"'ckpt' was fine-tuned to integrate.*: use tl\.scgpt_integrate"):
        embed(counts, tuned)

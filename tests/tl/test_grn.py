"""`tl.scgpt_grn`: what each method writes, the same in any order, and what is refused before any work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
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
from scipy.stats import spearmanr

from scgpt_tl._slots import OWNER
from scgpt_tl.core.scgpt import Network
from scgpt_tl.engine.attention import attention_scores
from scgpt_tl.engine.knockout import knockout_scores
from scgpt_tl.engine.predict import Compute
from scgpt_tl.engine.shuffle import shuffled
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._logs import log_blocks
from scgpt_tl.tl import _features, _pairwise
from scgpt_tl.tl._embed import scgpt_embed
from scgpt_tl.tl._grn import scgpt_grn
from scgpt_tl.tl._programs import gene_graph
from scgpt_tl.tokens.tokenize import Tokenizer

MODEL = load_model(Path(__file__).parents[1] / "golden" / "tiny" / "ckpt")
PAIRWISE = ("attention", "knockout", "coexpression")


def grn(adata: ad.AnnData, **options: Any) -> Any:
    return scgpt_grn(adata, **({"model": MODEL, "progress": False, "device": "cpu"} | options))


def pairs(adata: ad.AnnData, method: str, **options: Any) -> Any:
    options = {"model": MODEL, "progress": False, "device": "cpu", "min_cells": 3} | options
    return scgpt_grn(adata, method=method, **options)


def refused(adata: ad.AnnData, match: str, error: type[Exception] = ValueError, **options: Any) -> None:
    """Nothing was written."""
    with pytest.raises(error, match=match):
        scgpt_grn(adata, **({"model": MODEL, "progress": False} | options))
    for slot in ("varp", "varm", "obsm", "uns"):
        assert not len(getattr(adata, slot))
    assert "scgpt_program" not in adata.var


def in_every_cell(adata: ad.AnnData, columns: np.ndarray) -> Tokenizer:
    """Every chosen gene a token of every cell."""
    ids = MODEL.vocab.ids(adata.var_names.tolist())
    kept = np.where(np.isin(np.arange(adata.n_vars), columns), ids, -1)
    config = MODEL.config
    how = {"n_bins": config.n_bins, "cls_value": config.cls_value, "spread": config.ties == "spread"}
    return Tokenizer(kept, MODEL.vocab.keys, config.cls_id, max_length=len(columns) + 1, zeros=True, **how)


# ---- programs


def test_what_embedding_writes(counts: ad.AnnData):
    before = counts.X.copy()
    assert grn(counts, groupby="cell_type", resolution=[1, 3]) is None
    network, run = counts.varp["scgpt_grn"], counts.uns["scgpt_grn"]
    assert isinstance(network, sparse.csr_matrix)
    assert (network.dtype, network.shape) == (np.float32, (60, 60))
    with torch.inference_mode():
        table = MODEL.backbone.genes(torch.from_numpy(MODEL.vocab.ids(counts.var_names.tolist()))).numpy()
    expected, _ = gene_graph(table, 15)
    np.testing.assert_allclose(network.toarray(), expected.toarray(), atol=1e-6)
    every, label = counts.varm["scgpt_program"], counts.var["scgpt_program"]
    assert (every.dtype, every.shape) == (np.int32, (60, 2))
    assert isinstance(label.dtype, pd.CategoricalDtype)
    best = run["resolutions"]["resolution"].tolist().index(run["resolution"])
    numbers = label.astype(object).fillna("0").astype(int).to_numpy() - 1
    np.testing.assert_array_equal(numbers, every[:, best])
    sizes = label.value_counts()[label.cat.categories].tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= 5
    activity = counts.obsm["scgpt_program"]
    assert (activity.dtype, activity.shape) == (np.float32, (40, len(sizes)))
    assert run["groups"].tolist() == ["B", "NK", "T"]
    assert run["activity"].index.tolist() == ["B", "NK", "T"]
    assert run["activity"].columns.tolist() == label.cat.categories.tolist()
    mean = activity[(counts.obs["cell_type"] == "NK").to_numpy()].mean(axis=0)
    np.testing.assert_allclose(run["activity"].loc["NK"], mean, atol=1e-6)
    assert run["resolutions"].columns.tolist() == ["resolution", "n_programs", "n_genes", "modularity"]
    assert run["resolutions"]["n_programs"].tolist() == (every.max(axis=0) + 1).tolist()
    assert abs(counts.X - before).nnz == 0


def test_what_a_run_says_of_itself(counts: ad.AnnData):
    grn(counts, rng=7)
    run = counts.uns["scgpt_grn"]
    assert (run[OWNER], run["method"], run["control"]) == ("tl.scgpt_grn", "embedding", "")
    assert (run["groups"].tolist(), run["n_cells"].tolist()) == (["all"], [40])
    assert run["genes"].tolist() == counts.var_names.tolist()
    assert (run["regulators"].size, "activity" in run) == (0, False)
    said = {"model": "ckpt", "weights_sha256": MODEL.sha256, "seed": 7, "layer": "X", "genes": "all 60 genes"}
    said |= {"n_neighbors": 15, "flavor": "igraph", "min_genes": 5, "context": False, "shuffled": False}
    assert {key: run["params"][key] for key in said} == said


@pytest.mark.parametrize("context", [True, "NK"])
def test_contextual_embeddings_are_those_of_scgpt_embed(counts: ad.AnnData, context: bool | str, caplog):
    counts.X[:, 7] *= 0
    with caplog.at_level(logging.WARNING):
        grn(counts, context=context, groupby="cell_type", n_neighbors=5)
    assert "1 of 60 genes are expressed in no cell of context= and left out" in caplog.text
    other = counts.copy()
    other.obs["of"] = "all"
    scgpt_embed(other, model=MODEL, groupby="of" if context is True else "cell_type", progress=False, key_added="e")
    group = 0 if context is True else other.uns["e"]["groups"].tolist().index("NK")
    features = other.varm["e_context"][:, group]
    kept = np.setdiff1d(np.arange(60), 7)
    expected, _ = gene_graph(features[kept], 5)
    np.testing.assert_allclose(counts.varp["scgpt_grn"].toarray()[np.ix_(kept, kept)], expected.toarray(), atol=1e-5)
    assert counts.uns["scgpt_grn"]["genes"].tolist() == counts.var_names[kept].tolist()
    assert counts.varp["scgpt_grn"][7].nnz == 0
    assert counts.varm["scgpt_program"][7].tolist() == [-1]


def test_contexts_that_cannot_be(counts: ad.AnnData):
    refused(counts, "context='NKs' is no group of groupby=.*did you mean 'NK'", context="NKs", groupby="cell_type")
    refused(counts, "context='NK' is no group", context="NK")
    counts.X = sparse.csr_matrix((40, 60), dtype=np.float32)
    refused(counts, "0 of 60 genes are expressed in the cells of context=: 3 are needed", context=True)


def test_shuffled_weights_are_another_network(counts: ad.AnnData):
    grn(counts)
    grn(counts, shuffled=True, key_added="shuffled")
    table = shuffled(MODEL.network, 0).backbone.genes
    with torch.inference_mode():
        features = table(torch.from_numpy(MODEL.vocab.ids(counts.var_names.tolist()))).numpy()
    expected, _ = gene_graph(features, 15)
    np.testing.assert_allclose(counts.varp["shuffled"].toarray(), expected.toarray(), atol=1e-6)
    assert abs(counts.varp["shuffled"] - counts.varp["scgpt_grn"]).max() > 0.1
    assert counts.uns["shuffled"]["params"]["shuffled"]
    assert counts.uns["shuffled"]["params"]["weights_sha256"] == MODEL.sha256


def test_no_program_says_the_resolution_to_try(counts: ad.AnnData):
    refused(counts, r"resolution=1000: no program of min_genes=5.*there are some at resolution=", resolution=1000)
    with pytest.raises(ValueError, match="no program") as error:
        grn(counts, resolution=1000)
    grn(counts, resolution=float(str(error.value).rpartition("=")[2]))


def test_fewer_genes_than_a_program_needs(counts: ad.AnnData):
    refused(counts, "no program of min_genes=5 genes or more; 4 genes are too few", genes=counts.var_names[:4])
    grn(counts, genes=counts.var_names[:4], min_genes=2)
    assert counts.varp["scgpt_grn"].nnz


# ---- pairs


def test_attention_is_the_engines(counts: ad.AnnData):
    names = counts.var_names
    chosen = names[[30, 4, 12, 50, 21, 7]]
    pairs(counts, "attention", genes=chosen, groupby="cell_type", attention_layer=0)
    codes = counts.obs["cell_type"].cat.codes.to_numpy(np.int64)
    rows = iter([(0, counts.X)])
    columns = np.array([4, 7, 12, 21, 30, 50])
    how = {"groups": codes, "n_groups": 3, "layer": 0, "compute": Compute(progress=False), "total": 40}
    expected = attention_scores(MODEL.backbone, rows, in_every_cell(counts, columns), **how)
    assert sorted(counts.varp) == ["scgpt_grn_0", "scgpt_grn_1", "scgpt_grn_2"]
    for group in range(3):
        found = counts.varp[f"scgpt_grn_{group}"]
        assert (found.dtype, found.nnz, type(found)) == (np.float32, 36, sparse.csr_matrix)
        np.testing.assert_allclose(found.toarray()[np.ix_(columns, columns)], expected[group], atol=1e-3)
    assert counts.uns["scgpt_grn"]["genes"].tolist() == names[columns].tolist()
    assert counts.uns["scgpt_grn"]["n_cells"].tolist() == np.bincount(codes).tolist()


@pytest.mark.parametrize("effect", ["prediction", "embedding"])
def test_knockouts_are_the_engines(counts: ad.AnnData, effect: str):
    names, columns = counts.var_names, np.array([4, 7, 12, 21])
    pairs(counts, "knockout", genes=names[columns[:2]], regulators=names[[21, 12]], effect=effect)
    how = {"groups": np.zeros(40, np.int64), "n_groups": 1, "effect": effect, "total": 40}
    rows, compute = iter([(0, counts.X)]), Compute(progress=False)
    tokenizer = in_every_cell(counts, columns)
    expected, _ = knockout_scores(MODEL.network, rows, tokenizer, regulators=np.array([3, 2]), compute=compute, **how)
    found = counts.varm["scgpt_grn"]
    assert (found.dtype, found.shape) == (np.float32, (60, 1, 2))
    np.testing.assert_allclose(found[columns, 0], expected[0], atol=1e-5)
    assert np.isnan(np.delete(found, columns, axis=0)).all()
    assert counts.uns["scgpt_grn"]["regulators"].tolist() == names[[21, 12]].tolist()
    assert len(counts.varp) == 0


def test_coexpression_is_spearmans_of_normalised_counts(counts: ad.AnnData):
    pairs(counts, "coexpression", groupby="cell_type", control="NK", regulators=counts.var_names[[5, 2]])
    logs = sparse.vstack([block for _, block in log_blocks(counts)]).toarray()
    found = counts.varm["scgpt_grn"]
    assert found.shape == (60, 3, 2)
    for group, name in enumerate(["B", "NK", "T"]):
        expected = np.abs(spearmanr(logs[(counts.obs["cell_type"] == name).to_numpy()]).statistic[:, [5, 2]])
        np.testing.assert_allclose(found[:, group], expected, atol=1e-6)
    assert counts.uns["scgpt_grn"]["control"] == "NK"


def test_every_gene_may_be_knocked_out(counts: ad.AnnData):
    names = counts.var_names[:4]
    pairs(counts, "knockout", genes=names)
    pairs(counts, "knockout", genes=names, regulators=names, key_added="named")
    np.testing.assert_allclose(counts.varp["scgpt_grn"].toarray()[:4, :4], counts.varm["named"][:4, 0], atol=1e-6)


def test_a_network_of_every_gene_must_be_chosen(counts: ad.AnnData):
    with patch.object(_pairwise, "MOST_GENES", 50):
        for method in PAIRWISE:
            refused(counts, rf"method='{method}' on all 60 genes .*GB.*pp\.select_genes\(adata", method=method)
        every = {"method": "coexpression", "genes": counts.var_names.tolist()}
        refused(counts, "on all 60 genes .*above 50 genes they must be chosen", **every)
        counts.var["highly_variable"] = True  # says no more
        refused(counts, "on all 60 genes .*above 50 genes they must be chosen", method="coexpression")
        pairs(counts, "coexpression", genes=counts.var_names[1:])


def test_a_network_that_does_not_fit_is_refused_whoever_chose(counts: ad.AnnData):
    with patch.object(_pairwise, "memory", lambda: 1e4):
        for method in PAIRWISE:
            refused(counts, "on 50 genes in 1 groups .* this machine has", method=method, genes=counts.var_names[:50])


def test_the_memory_that_is_told():
    with pytest.raises(ValueError, match=r"all 20,000 genes would need about 14\.4 GB"):
        _pairwise.check_size("attention", 20_000, 2, None, chosen=False)
    with pytest.raises(ValueError, match=r"about 4\.8 GB"):
        _pairwise.check_size("coexpression", 20_000, 2, 5, chosen=False)
    with patch.object(_pairwise, "memory", lambda: 14.5e9):
        _pairwise.check_size("attention", 20_000, 2, None, chosen=True)
        said = r"on 20,000 genes in 3 groups would need about 19\.2 GB, and this machine has 14\.5 GB: .*select_genes"
        with pytest.raises(ValueError, match=said):
            _pairwise.check_size("attention", 20_000, 3, None, chosen=True)
    assert 1e8 < _pairwise.memory() < 1e15 or _pairwise.memory() == np.inf


def test_many_passes_are_said_before_they_are_made(counts: ad.AnnData, caplog):
    with caplog.at_level(logging.WARNING), patch.object(_pairwise, "_MANY_PASSES", 100):
        pairs(counts, "knockout", genes=counts.var_names[:3])
    assert "120 passes of the network (regulators x cells)" in caplog.text


@pytest.mark.parametrize("named", [True, False])
def test_a_knockout_needs_cells_that_express_the_regulator(counts: ad.AnnData, named: bool, caplog):
    x = counts.X.toarray()
    x[:, 7], x[:, [3, 12]] = 0, 1
    x[np.flatnonzero(counts.obs["cell_type"] == "NK")[:2], 7] = 3
    counts.X = sparse.csr_matrix(x)
    names, chosen = counts.var_names, np.array([12, 7, 3])
    genes = {"regulators": names[chosen], "genes": names[:9]} if named else {"genes": names[[3, 7, 12]]}
    with caplog.at_level(logging.WARNING):
        pairs(counts, "knockout", groupby="cell_type", **genes)
    few = "fewer than min_cells=3 cells express are left out"
    assert f"{few}: {names[7]} in 'NK' (2), {names[7]} in 'B' (0), {names[7]} in 'T' (0)" in caplog.text
    places = chosen if named else np.sort(chosen)
    types = ["B", "NK", "T"]
    expected = [(x[np.ix_(counts.obs["cell_type"] == name, places)] > 0).sum(axis=0) for name in types]
    np.testing.assert_array_equal(counts.uns["scgpt_grn"]["n_expressing"], expected)
    for group in range(3):
        by_pair = (
            counts.varm["scgpt_grn"][3, group] if named else counts.varp[f"scgpt_grn_{group}"].toarray()[3, places]
        )
        np.testing.assert_array_equal(np.isnan(by_pair), places == 7)


def test_a_knockout_that_no_cells_bear_out(counts: ad.AnnData):
    x = counts.X.toarray()
    x[:, 7], x[3, 7] = 0, 2
    counts.X = sparse.csr_matrix(x)
    name = counts.var_names[7]
    said = rf"no regulator is expressed in min_cells=10 cells of a group: {name} in 'all' \(1\); name others with"
    refused(counts, said, method="knockout", regulators=[name], genes=counts.var_names[:4])


def test_names_in_the_vocabulary_are_kept_beside(counts: ad.AnnData):
    symbols = np.array(counts.var_names)
    counts.var["gene_symbols"], counts.var_names = symbols, [f"ENSG{i:011d}" for i in range(60)][::-1]
    chosen = np.array([4, 9, 2, 30])
    pairs(counts, "coexpression", genes=symbols[chosen], regulators=symbols[[9, 2]])
    run = counts.uns["scgpt_grn"]
    assert run["genes"].tolist() == counts.var_names[np.sort(chosen)].tolist()
    assert run["gene_symbols"].tolist() == symbols[np.sort(chosen)].tolist()
    assert run["regulators"].tolist() == counts.var_names[[9, 2]].tolist()
    assert run["regulator_symbols"].tolist() == symbols[[9, 2]].tolist()
    grn(counts, key_added="e")
    assert counts.uns["e"]["gene_symbols"].tolist() == symbols.tolist()
    assert counts.uns["e"]["regulator_symbols"].size == 0


def in_two_columns(counts: ad.AnnData) -> ad.AnnData:
    """Half of a gene's counts in another column."""
    x = counts.X.toarray()
    more = np.concatenate([x, np.floor(x[:, [5]] / 2)], axis=1)
    more[:, 5] -= more[:, 60]
    var = pd.DataFrame({"gene_symbols": [*counts.var_names, counts.var_names[5]]}, index=[*counts.var_names, "half"])
    return ad.AnnData(sparse.csr_matrix(more), obs=counts.obs, var=var)


def test_activity_is_that_of_genes_and_not_of_columns(counts: ad.AnnData):
    twice = in_two_columns(counts)
    for adata in (counts, twice):
        grn(adata)
    np.testing.assert_allclose(twice.obsm["scgpt_program"], counts.obsm["scgpt_program"], atol=1e-6)


def test_columns_of_one_gene_are_summed(counts: ad.AnnData):
    """The same network, at the column of its name."""
    twice = in_two_columns(counts)
    genes = counts.var_names[:8].tolist()
    for method in PAIRWISE:
        for adata in (counts, twice):
            pairs(adata, method, genes=genes, key_added=method)
        single, double = counts.varp[method].toarray(), twice.varp[method].toarray()
        np.testing.assert_allclose(double[:60, :60], single, atol=1e-5)
        assert not double[60].any()


# ---- the same answer every time

STORAGES = ("csc", "dense", "backed", "view", "int")


def stored(adata: ad.AnnData, storage: str, folder: Path) -> ad.AnnData:
    if storage == "view":
        return ad.concat([adata, adata[:5]], merge="same", index_unique="-")[: adata.n_obs]
    other = adata.copy()
    if storage == "backed":
        other.write_h5ad(folder / "a.h5ad")
        return ad.read_h5ad(folder / "a.h5ad", backed="r")
    made = {"csc": lambda x: x.tocsc(), "dense": lambda x: x.toarray(), "int": lambda x: x.astype(np.int32)}
    other.X = made[storage](other.X)
    return other


@pytest.mark.parametrize("storage", STORAGES)
def test_storage_order_and_blocks_change_nothing(counts: ad.AnnData, tmp_path: Path, storage: str):
    """Rows and columns in another order, another storage, other blocks."""
    rng = np.random.default_rng(3)
    rows, columns = rng.permutation(40), rng.permutation(60)
    other = stored(counts[rows, columns].copy(), storage, tmp_path)
    genes, context = counts.var_names[:12].tolist(), {"context": "T", "n_neighbors": 5}
    with patch.object(_pairwise, "ROWS", 9), patch.object(_features, "ROWS", 7):
        for adata in (counts, other):
            copied = {}
            for name, options in {"static": {}, "context": context}.items():
                how = {"key_added": name, "groupby": "cell_type", "max_tokens": 99, "copy": True}
                copied[name] = grn(adata, **how, **options)
            for method in PAIRWISE:
                how = {"genes": genes, "groupby": "cell_type", "max_tokens": 70, "copy": True}
                copied[method] = pairs(adata, method, key_added=method, **how)
            if adata is counts:
                expected = copied
    for name in ("static", "context"):
        ours, theirs = expected[name], copied[name]
        np.testing.assert_array_equal(theirs.varm[f"{name}_program"], ours.varm[f"{name}_program"][columns])
        network = ours.varp[name].toarray()[np.ix_(columns, columns)]
        np.testing.assert_allclose(theirs.varp[name].toarray(), network, atol=1e-5)
        activity = ours.obsm[f"{name}_program"][rows]
        np.testing.assert_allclose(theirs.obsm[f"{name}_program"], activity, atol=1e-5)
    for method in PAIRWISE:
        for group in range(3):
            ours = expected[method].varp[f"{method}_{group}"].toarray()[np.ix_(columns, columns)]
            # the last bit of q k' may decide between two ranks of one cell
            tolerance = {"attention": 0.01, "knockout": 1e-5, "coexpression": 0}[method]
            np.testing.assert_allclose(copied[method].varp[f"{method}_{group}"].toarray(), ours, atol=tolerance)


def test_the_seed(counts: ad.AnnData):
    grn(counts, resolution=3)
    first = counts.uns["scgpt_grn"]["resolutions"]
    grn(counts, resolution=3)
    pd.testing.assert_frame_equal(counts.uns["scgpt_grn"]["resolutions"], first)
    refused(ad.AnnData(counts.X, var=counts.var.iloc[:, :0]), "rng=-1 is negative", rng=-1)


# ---- slots


@pytest.mark.parametrize("method", ["embedding", *PAIRWISE])
@pytest.mark.parametrize("with_regulators", [False, True])
def test_results_go_through_h5ad(counts: ad.AnnData, tmp_path: Path, method: str, with_regulators: bool):
    counts.obs["of"] = counts.obs["cell_type"].astype(str).map({"B": "B/plasma", "NK": "NK", "T": "T cell (CD4+)"})
    options = {} if method == "embedding" else {"genes": counts.var_names[:6]}
    if with_regulators and method != "embedding":
        options["regulators"] = [counts.var_names[3]]
    pairs(counts, method, groupby="of", **options)
    counts.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    for slot in ("varp", "varm", "obsm"):
        assert list(getattr(back, slot)) == list(getattr(counts, slot))
        for name, value in getattr(counts, slot).items():
            kept = getattr(back, slot)[name]
            if sparse.issparse(value):
                for part in ("data", "indices", "indptr"):  # NaN where too few cells express a regulator
                    np.testing.assert_array_equal(getattr(kept, part), getattr(value, part))
            else:
                np.testing.assert_array_equal(kept, value)
    ours, theirs = counts.uns["scgpt_grn"], back.uns["scgpt_grn"]
    assert set(ours) == set(theirs)
    assert theirs["groups"].tolist() == ["B/plasma", "NK", "T cell (CD4+)"]
    for name in ("genes", "regulators", "n_cells"):
        assert theirs[name].tolist() == ours[name].tolist()
    if method == "embedding":
        pd.testing.assert_frame_equal(theirs["activity"], ours["activity"], check_index_type=False)
        assert back.var["scgpt_program"].tolist() == counts.var["scgpt_program"].tolist()
    pairs(back, method, groupby="of", **options)


def test_a_later_run_leaves_nothing_of_an_earlier_one(counts: ad.AnnData):
    genes = counts.var_names[:5]
    grn(counts)
    pairs(counts, "coexpression", genes=genes, groupby="cell_type")
    assert (len(counts.varp), len(counts.varm), len(counts.obsm)) == (3, 0, 0)
    assert "scgpt_program" not in counts.var
    pairs(counts, "coexpression", genes=genes, regulators=genes[0])
    assert (list(counts.varp), list(counts.varm)) == ([], ["scgpt_grn"])
    grn(counts)
    assert (list(counts.varp), list(counts.varm), list(counts.obsm)) == (["scgpt_grn"], *[["scgpt_program"]] * 2)


def test_key_added_writes_everything_under_it(counts: ad.AnnData):
    grn(counts, key_added="mine")
    assert (list(counts.varp), list(counts.uns)) == (["mine"], ["mine"])
    assert [list(counts.varm), list(counts.obsm)] == [["mine_program"]] * 2
    assert "mine_program" in counts.var


@pytest.mark.parametrize(
    ("slot", "name", "method"),
    [
        ("varp", "scgpt_grn", "embedding"),
        ("varm", "scgpt_program", "embedding"),
        ("obsm", "scgpt_program", "embedding"),
        ("var", "scgpt_program", "embedding"),
        ("uns", "scgpt_grn", "attention"),
        ("varp", "scgpt_grn_1", "coexpression"),
    ],
)
def test_what_another_wrote_is_not_overwritten(counts: ad.AnnData, slot: str, name: str, method: str):
    shape = {"varp": (60, 60), "varm": (60, 2), "obsm": (40, 2), "var": 60, "uns": 1}[slot]
    getattr(counts, slot)[name] = np.zeros(shape)
    options = {"groupby": "cell_type", "genes": counts.var_names[:6]}
    with pytest.raises(ValueError, match=rf"\.{slot}\['{name}'\] was not written by tl\.scgpt_grn: give another"):
        pairs(counts, method, **options)
    pairs(counts, method, **options, overwrite=True)
    assert counts.uns["scgpt_grn"][OWNER] == "tl.scgpt_grn"


def test_what_lies_where_an_earlier_run_wrote_nothing_is_not_overwritten(counts: ad.AnnData):
    genes = counts.var_names[:6]
    pairs(counts, "coexpression", genes=genes, regulators=genes[:1])
    counts.var["scgpt_program"] = "mine"
    with pytest.raises(ValueError, match=r"^\.var\['scgpt_program'\] was not written by tl\.scgpt_grn"):
        grn(counts)
    assert set(counts.var["scgpt_program"]) == {"mine"}
    del counts.var["scgpt_program"]
    grn(counts)
    grn(counts)
    pairs(counts, "coexpression", genes=genes, key_added="x")
    pairs(counts, "coexpression", genes=genes, key_added="x_0")
    with pytest.raises(ValueError, match=r"^\.varp\['x_0'\] was not written by"):
        pairs(counts, "coexpression", genes=genes, groupby="cell_type", key_added="x")


def test_copy_view_and_backed(counts: ad.AnnData, tmp_path: Path):
    done = grn(counts, copy=True)
    assert not len(counts.uns)
    assert "scgpt_grn" in done.varp
    view = counts[:20]
    with pytest.warns(ImplicitModificationWarning, match="view"):
        grn(view)
    assert not len(counts.uns)
    counts.write_h5ad(tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    grn(backed)
    assert backed.isbacked
    np.testing.assert_allclose(backed.obsm["scgpt_program"], done.obsm["scgpt_program"], atol=1e-6)
    with pytest.raises(ValueError, match="view of a backed object, which takes no results"):
        grn(backed[:20])
    backed.file.close()
    assert (tmp_path / "a.h5ad").read_bytes() == before


def test_a_layer_is_read_in_place_of_x(counts: ad.AnnData):
    names = counts.var_names[:6]
    expected = pairs(counts, "coexpression", genes=names, copy=True).varp["scgpt_grn"]
    counts.layers["counts"], counts.X = counts.X, -counts.X
    pairs(counts, "coexpression", genes=names, layer="counts")
    assert (counts.varp["scgpt_grn"] != expected).nnz == 0
    assert counts.uns["scgpt_grn"]["params"]["layer"] == "counts"


# ---- bad input


def test_arguments_that_cannot_be(counts: ad.AnnData):
    names = counts.var_names
    refused(counts, "method='atention' is unknown; did you mean 'attention'", method="atention")
    refused(counts, "regulators: method='embedding' looks at genes, not at pairs", regulators=[names[0]])
    refused(counts, "control and regulators: method='embedding'", control="T", regulators=[names[0]])
    refused(counts, "control='t' is no group", method="attention", groupby="cell_type", control="t")
    refused(counts, "2 genes are left", genes=names[:2])
    refused(counts, "model 'ckpt' has 2 layers; give -2 to 1", method="attention", attention_layer=2)
    refused(counts, "batch_key out", method="attention", batch_key="batch")
    refused(counts, "min_cells=1000 is the least", method="attention", min_cells=1000)
    refused(counts, "'no-such' is neither", FileNotFoundError, model="no-such")
    refused(counts, "layer 'raw' is not in .layers", layer="raw")
    refused(counts, "key_added='scgpt' is where tl.scgpt_embed keeps", key_added="scgpt")
    refused(counts, "'a/b'.*cannot be kept", key_added="a/b")
    refused(counts, "did you mean 'regulators'", TypeError, regulater=["x"])


def test_values_that_cannot_be_read(counts: ad.AnnData):
    refused(ad.AnnData(-counts.X, var=counts.var), "negative values")
    with pytest.raises(TypeError, match="of a MuData, one modality"):
        scgpt_grn(counts.to_df(), model=MODEL)
    empty = counts[:0].copy()
    refused(empty, "the data set is empty")


def test_nothing_is_written_when_the_work_fails(counts: ad.AnnData):
    with patch.object(_pairwise, "attention_scores", side_effect=RuntimeError("stop")):
        refused(counts, "stop", RuntimeError, method="attention")


# ---- models that normalise each batch apart


@pytest.fixture(scope="module")
def per_batch(toy_cells: Callable[..., ad.AnnData], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Cells of two batches, and the model of preset "paper" that has learned them."""
    from scgpt_tl import TrainConfig
    from scgpt_tl.tl import scgpt_integrate, scgpt_pretrain

    quick = {"epochs": 1, "cells": 24, "max_length": 60, "device": "cpu", "progress": False}
    adata = toy_cells(48)
    adata.obs["lab"] = np.array(["x", "y"])[np.arange(48) % 2]
    base = scgpt_pretrain(adata, out=tmp_path_factory.mktemp("base") / "b", size="nano", train=TrainConfig(**quick))
    train = TrainConfig(**quick, zeros=True)
    return adata, scgpt_integrate(adata, batch_key="lab", model=base, preset="paper", train=train, return_model=True)


def test_a_model_that_normalises_each_batch_apart(per_batch, caplog):
    adata, model = per_batch
    genes = adata.var_names[:6]
    with pytest.raises(ValueError, match="normalises each batch apart: batch_key= must name the column"):
        pairs(adata, "attention", model=model, genes=genes, copy=True)
    grn(adata, model=model, key_added="static")  # the table of genes knows no batch
    for method in ("attention", "knockout"):
        pairs(adata, method, model=model, genes=genes, batch_key="lab", key_added=method)
        assert np.isfinite(adata.varp[method].data).all()
    grn(adata, model=model, context=True, batch_key="lab", key_added="context", n_neighbors=5)
    assert abs(adata.varp["context"] - adata.varp["static"]).max() > 1e-3
    late = np.arange(48) >= 25  # begins in the other batch than the data do
    adata.obs["when"] = np.where(late, "late", "early")
    how = {"model": model, "batch_key": "lab", "key_added": "late", "n_neighbors": 5}
    grn(adata, context="late", groupby="when", **how)
    alone = grn(adata[late].copy(), context=True, **how, copy=True)
    np.testing.assert_allclose(adata.varp["late"].toarray(), alone.varp["late"].toarray(), atol=1e-5)
    other = adata.copy()
    other.obs["lab"] = "new"
    with caplog.at_level(logging.WARNING):
        pairs(other, "attention", model=model, genes=genes, batch_key="lab", key_added="attention")
    assert "take the mean of those that it has: ('new',)" in caplog.text


def test_shuffled_weights_of_a_model_that_has_learned_to_integrate(per_batch):
    adata, model = per_batch
    how = {"model": model, "batch_key": "lab", "copy": True}
    for method in ("attention", "knockout"):
        found = [
            pairs(adata, method, genes=adata.var_names[:6], shuffled=x, key_added="s", **how) for x in (False, True)
        ]
        assert abs(found[1].varp["s"] - found[0].varp["s"]).max() > 1e-3
    found = [grn(adata, context=True, shuffled=x, key_added="s", n_neighbors=5, **how) for x in (False, True)]
    assert abs(found[1].varp["s"] - found[0].varp["s"]).max() > 1e-3


def test_genes_that_an_integrating_model_was_not_fine_tuned_on(counts: ad.AnnData, caplog):
    from scgpt_tl.engine.integrate import Integrator

    learned, never = counts.var_names[:40].tolist(), counts.var_names[40:].tolist()
    torch.manual_seed(0)
    config = replace(MODEL.config, n_batches=2)
    base = replace(MODEL, config=config, network=Network(config).eval(), batches=("a", "b"))
    integrator = Integrator(base, "auto", tuple(learned), zeros=False, seed=0)
    how = {"model": integrator.bundle(), "copy": True}
    counts.X[:, 3] *= 0
    with caplog.at_level(logging.WARNING):
        done = grn(counts, context=True, n_neighbors=5, **how)
        assert "20 of 60 genes are none of those on which model 'ckpt' was fine-tuned; it is shown no" in caplog.text
        assert "leave context= out, or let tl.scgpt_integrate(n_genes=) learn from more" in caplog.text
        assert "1 of 60 genes are expressed in no cell of context= and left out" in caplog.text
        assert set(done.uns["scgpt_grn"]["genes"]) == set(learned) - {learned[3]}
        caplog.clear()
        pairs(counts, "attention", genes=[*never[:2], *learned[:4]], **how)
        assert "2 of 6 genes are not among the 40 on which model 'ckpt' was fine-tuned" in caplog.text
        caplog.clear()
        pairs(counts, "attention", genes=learned[:4], **how)
        grn(counts, **how)  # the table of genes knows them all
        assert "fine-tuned" not in caplog.text
    refused(counts, "4 of 4 genes are none of those on which model", genes=never[:4], context=True, **how)
    said = "2 of 5 genes are expressed in the cells of context=: 3 are needed, and 2 of 5 genes are none of those on"
    refused(counts, said, genes=[*never[:2], *learned[1:4]], context=True, **how)


@pytest.mark.parametrize(("method", "tuned"), [("lora", True), ("finetune", True), ("head", False), ("knn", False)])
def test_genes_that_an_annotating_model_was_not_fine_tuned_on(counts: ad.AnnData, method: str, tuned: bool, caplog):
    ids = MODEL.vocab.ids(counts.var_names.tolist())
    model = replace(MODEL, provenance={"annotation": {"method": method}}, arrays={"genes": np.sort(ids[3:])})
    with caplog.at_level(logging.WARNING):
        pairs(counts, "attention", model=model, genes=counts.var_names[:5])
        assert ("3 of 5 genes are not among the 57 on which model 'ckpt' was fine-tuned" in caplog.text) == tuned
        caplog.clear()
        grn(counts, model=model, context=True, key_added="c")
        assert ("3 of 60 genes are not among the 57" in caplog.text) == tuned
        caplog.clear()
        pairs(counts, "coexpression", model=model, genes=counts.var_names[:5], key_added="s")
        assert "fine-tuned" not in caplog.text

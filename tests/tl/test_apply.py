"""Cells of batches that a model has not learned."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scgpt_tl
from scgpt_tl.engine import integrate
from scgpt_tl.engine.integrate import Integrator
from scgpt_tl.tl import scgpt_integrate, scgpt_pretrain

HOW = {"cells": 24, "max_length": 60, "device": "cpu", "progress": False}
QUIET = scgpt_tl.TrainConfig(device="cpu", progress=False)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, toy_cells) -> tuple[ad.AnnData, scgpt_tl.models.Model]:
    """Integrated cells of batches that differ in which genes are seen, and the model of preset "paper"."""
    train = scgpt_tl.TrainConfig(epochs=1, **HOW)
    base = scgpt_pretrain(toy_cells(48), out=tmp_path_factory.mktemp("base") / "base", size="nano", train=train)
    adata = toy_cells(72, seed=3)
    adata.obs["lab"] = np.array(["x", "y", "z"])[np.arange(72) % 3]
    deep = scgpt_tl.TrainConfig(epochs=2, zeros=True, **HOW)
    model = scgpt_integrate(adata, batch_key="lab", model=base, preset="paper", train=deep, return_model=True)
    return adata, model


def test_new_batches_by_each_policy(learned, toy_cells):
    _, model = learned
    new = toy_cells(30, seed=8)
    new.obs["lab"] = np.array(["x", "new"])[np.arange(30) % 2]
    options = {"batch_key": "lab", "model": model, "train": QUIET}
    with pytest.raises(ValueError, match=r"batches 'new' are not among those .* \('x', 'y', 'z'\): new_batches='mean'"):
        scgpt_integrate(new, **options, new_batches="refuse")
    assert not new.obsm
    assert not new.uns
    found = {}
    for policy in ("mean", "adapt"):
        shown = scgpt_integrate(new, **options, new_batches=policy, copy=True)
        found[policy] = shown.obsm["X_scGPT_integrated"]
        assert shown.uns["scgpt_integrated"]["params"]["policy"] == policy
        assert shown.uns["scgpt_integrated"]["params"]["new_batches"].tolist() == ["new"]
    known = (new.obs["lab"] == "x").to_numpy()
    np.testing.assert_allclose(found["mean"][known], found["adapt"][known], atol=1e-6)
    assert np.abs(found["mean"] - found["adapt"])[~known].max() > 1e-4
    # the mean of the statistics, by hand
    norms = model.backbone.input_norm.norms
    extended = Integrator.of(model).extended(["new"]).model.backbone.input_norm.norms
    assert (len(norms), len(extended)) == (3, 4)
    mean = sum(norm.running_mean.numpy() for norm in norms) / 3
    np.testing.assert_allclose(extended[3].running_mean.numpy(), mean, atol=1e-6)


def test_statistics_are_those_of_the_tokens(learned):
    """Of the batches learned, nothing hidden; and of any that are measured anew."""
    adata, model = learned
    integrator = Integrator.of(model)
    ids = model.vocab.ids(adata.var_names.tolist())
    codes = np.searchsorted(["x", "y", "z"], adata.obs["lab"]).astype(np.int64)
    batch = integrator.tokenizer(ids)(adata.X).batch(np.arange(72))
    tokens = (model.backbone.genes(batch.gene_ids) + model.backbone.values(batch.values)).detach().numpy()
    norms = model.backbone.input_norm.norms
    for i, norm in enumerate(norms):
        mine = tokens[codes[batch.cell_index.numpy()] == i]
        np.testing.assert_allclose(norm.running_mean.numpy(), mine.mean(0), atol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), mine.var(0), atol=1e-4)
    half = np.where(np.arange(72) < 36, codes, -1)
    half[codes == 2] = -1
    found = integrator.measured(iter([(0, adata.X)]), ids, half).model.backbone.input_norm.norms
    mine = tokens[half[batch.cell_index.numpy()] == 1]
    np.testing.assert_allclose(found[1].running_mean.numpy(), mine.mean(0), atol=1e-5)
    np.testing.assert_array_equal(found[2].running_mean.numpy(), norms[2].running_mean.numpy())


def test_a_known_batch_that_is_taken_for_a_new_one_lies_where_it_lay(learned):
    adata, model = learned
    other = adata.copy()
    other.obs["lab"] = other.obs["lab"].replace("z", "new")
    scgpt_integrate(other, batch_key="lab", model=model, new_batches="adapt", train=QUIET)
    cosine = (other.obsm["X_scGPT_integrated"] * adata.obsm["X_scGPT_integrated"]).sum(1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("tokens", [32_768, 1])
def test_a_view_of_a_file_adapts(learned, tmp_path, monkeypatch, tokens):
    """In minibatches of any size: some have no cell of a new batch."""
    adata, model = learned
    monkeypatch.setattr(integrate, "_TOKENS", tokens)
    adata = adata.copy()
    adata.obs["lab"] = adata.obs["lab"].replace("z", "new")
    options = {"batch_key": "lab", "model": model, "new_batches": "adapt", "train": QUIET, "copy": True}
    expected = scgpt_integrate(adata[9:60].copy(), **options).obsm["X_scGPT_integrated"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = scgpt_integrate(backed[9:60], **options).obsm["X_scGPT_integrated"]
    np.testing.assert_allclose(found, expected, atol=1e-6)

"""A reference with labels: names of types, genes in common, cells held out, files seen through a view."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.core.scgpt import Network
from scgpt_tl.genes.vocab import GeneVocab
from scgpt_tl.models.model import Model
from scgpt_tl.tl._reference import lesson_of, read_labels, shared_genes, types_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scgpt_tl.engine.annotate import Lesson


@pytest.fixture(scope="module")
def model() -> Model:
    vocab = GeneVocab([f"G{i}" for i in range(50)])
    torch.manual_seed(0)
    config = ModelConfig(len(vocab), vocab.pad_id, vocab.cls_id, d_model=16, n_heads=2, n_layers=1, d_ff=16)
    return Model(config, vocab, Network(config), name="base")


@pytest.fixture
def reference(toy_cells) -> AnnData:
    cells = toy_cells(60)
    cells.obs["type"] = np.where(np.arange(60) % 2, "odd", "even")
    return cells


def learned(reference: AnnData, query: AnnData, model: Model, **options: Any) -> Lesson:
    labels = read_labels(reference, "type")
    return lesson_of(reference, query, labels, model, **({"layer": None, "seed": 0} | options))


def rows(source: Any) -> list[tuple[float, ...]]:
    return sorted(map(tuple, source.matrix.take(np.arange(source.n_cells)).toarray()))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([" B", "B ", "T cell"], ["B", "B", "T cell"]),
        (["B", "nan", "<NA>", "None", "Unknown", " ", None, np.nan, pd.NA], ["B", *[""] * 8]),
        (pd.array([1, None, 2], dtype="Int64"), ["1", "", "2"]),
        (np.array([1.0, np.nan, 2.0]), ["1", "", "2"]),
        ([1, 2.0], ["1", "2"]),
        ([True, False], ["True", "False"]),
        (pd.Categorical(["B", None]), ["B", ""]),
        (pd.Categorical([1.0, None]), ["1", ""]),
    ],
)
def test_names_of_types(values: Any, names: list[str]):
    text, missing = types_of(values, "type")
    assert np.where(missing, "", text).tolist() == names


@pytest.mark.parametrize("values", [[0.5, 1.0], [1.0, np.inf], [1, 2.5]])
def test_measurements_are_no_types(values: list[float]):
    with pytest.raises(ValueError, match="numbers with fractions"):
        types_of(values, "type")


def test_labels_that_cannot_be_learned(reference: AnnData):
    reference.obs["one"] = "same"
    reference.obs["none"] = None
    reference.obs["score"] = np.linspace(0, 1, 60)
    for key, error, said in (
        (None, ValueError, "labels_key= must name the column"),
        ("typ", KeyError, "is not in reference.obs .there: 'type'.*did you mean 'type'"),
        ("one", ValueError, "one type, 'same'"),
        ("none", ValueError, "no type at all"),
        ("score", ValueError, "numbers with fractions"),
    ):
        with pytest.raises(error, match=said):
            read_labels(reference, key)


def test_labels_that_are_mended_and_said(reference: AnnData, caplog: pytest.LogCaptureFixture):
    reference.obs["number"] = np.arange(60) % 2
    reference.obs["some"] = [None, "unknown", " ", "rare", *reference.obs["type"][4:]]
    with caplog.at_level(logging.WARNING):
        assert read_labels(reference, "number").names == ("0", "1")
        assert "they are taken as names" in caplog.text
        labels = read_labels(reference, "some")
    assert "3 of 60 cells have no label" in caplog.text
    assert "types of a single cell" in caplog.text
    assert (labels.names, labels.counts, labels.n_cells) == (("even", "odd", "rare"), [28, 28, 1], 57)


def test_genes_in_common(caplog: pytest.LogCaptureFixture):
    with pytest.raises(ValueError, match=r"share 19 genes.*at least 20% of the smaller number, and 20, are needed"):
        shared_genes(np.arange(19), np.arange(50), what="reference")
    with pytest.raises(ValueError, match="share 20 genes"):
        shared_genes(np.arange(120), np.arange(100, 300), what="reference")
    with caplog.at_level(logging.WARNING):
        assert shared_genes(np.array([-1, *range(20)]), np.arange(30), what="reference").tolist() == list(range(20))
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        shared_genes(np.arange(20), np.arange(50), what="reference")
    assert "share 20 genes" in caplog.text


def test_the_order_of_the_reference_does_not_move_the_split(model: Model, reference: AnnData, toy_cells):
    order = np.random.default_rng(0).permutation(60)
    both = reference, reference[order].copy()
    one, other = (learned(cells, toy_cells(10, seed=2), model, seed=3).held_out for cells in both)
    assert rows(one) == rows(other)


def test_a_view_of_a_file_is_a_reference(model: Model, reference: AnnData, toy_cells, tmp_path: Path):
    reference.write_h5ad(tmp_path / "cells.h5ad")
    opened = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    views = (part[np.arange(50, 5, -1), np.arange(50) % 9 > 0] for part in (reference, opened))
    plain, backed = (learned(view, toy_cells(10, seed=1), model) for view in views)
    for name in ("train", "held_out"):
        one, other = getattr(plain, name), getattr(backed, name)
        assert rows(one) == rows(other)
        assert one.genes == other.genes
        assert one.labels.tolist() == other.labels.tolist()
    opened.file.close()


def test_cells_of_few_genes_are_held_out_whatever_their_order(model: Model, reference: AnnData, toy_cells):
    counts = np.zeros((60, 50), np.float32)
    for i, row in enumerate(counts):
        row[np.random.default_rng(i).choice(50, 6, replace=False)] = i + 1
    reference.X = sparse.csr_matrix(counts)
    order = np.random.default_rng(0).permutation(60)
    lessons = [learned(cells, toy_cells(10, seed=1), model) for cells in (reference, reference[order].copy())]
    assert rows(lessons[0].held_out) == rows(lessons[1].held_out)


def test_cells_of_few_genes_are_no_twins(model: Model, reference: AnnData, toy_cells, caplog: pytest.LogCaptureFixture):
    query, few = toy_cells(10, seed=1), np.arange(50) < 5
    for cells in (query, reference):
        cells.X = sparse.csr_matrix(np.vstack([np.where(few, 1, 0), cells.X.toarray()[1:]]).astype(np.float32))
    with caplog.at_level(logging.WARNING):
        learned(reference, query, model)
    assert "very counts" not in caplog.text


def test_a_query_that_shares_cells_is_told(
    model: Model, reference: AnnData, toy_cells, caplog: pytest.LogCaptureFixture
):
    mixed = ad.concat([toy_cells(20, seed=2), reference[:7]], index_unique="-")
    with caplog.at_level(logging.WARNING):
        learned(reference, reference, model)
        learned(reference, mixed, model)
    assert "the query is the reference itself" in caplog.text
    assert "7 of 27 cells of the query have the very counts" in caplog.text


def test_the_share_held_out(model: Model, reference: AnnData, toy_cells):
    told = learned(reference, toy_cells(10, seed=1), model, share=0.5).told
    assert (told["cells"], told["held_out"], told["labels_key"]) == (60, 30, "type")


def test_the_same_values_are_the_same_reference(model: Model, reference: AnnData, toy_cells, tmp_path: Path):
    """However they are stored: a run that is repeated with them is known again."""
    reference.write_h5ad(tmp_path / "cells.h5ad")
    opened, wide = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"), reference.copy()
    wide.X = wide.X.astype(np.float64).tocsc()
    query = toy_cells(10, seed=1)
    expected = learned(reference, query, model).train.manifest
    assert learned(opened, query, model).train.manifest == learned(wide, query, model).train.manifest == expected
    wide.X[3, 4] += 1
    assert learned(wide, query, model).train.manifest != expected
    opened.file.close()

"""`CellBatch`: lengths, places and shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scgpt_tl.tokens.batch import CellBatch, cumulative

PAD = 9


@pytest.fixture
def batch() -> CellBatch:
    """Three cells of 3, 1 and 2 tokens."""
    return CellBatch(
        torch.tensor([7, 1, 2, 7, 7, 3]), torch.tensor([-2.0, 5, 6, -2, -2, 8]), torch.tensor([0, 3, 4, 6])
    )


def test_sizes_and_places(batch: CellBatch):
    assert (batch.n_cells, batch.n_tokens) == (3, 6)
    assert batch.lengths.tolist() == [3, 1, 2]
    assert batch.cls_index.tolist() == [0, 3, 4]
    assert batch.cell_index.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.gene_ids[batch.cls_index].tolist() == [7, 7, 7]


def test_known_tokens_are_counted_by_cell(batch: CellBatch):
    assert batch.n_known.tolist() == [3, 1, 2]
    some = replace(batch, known=torch.tensor([True, True, False, True, True, False]))
    assert some.n_known.tolist() == [2, 1, 1]


def test_from_padded_drops_padding_wherever_it_lies():
    ids = torch.tensor([[7, 1, PAD, 2], [7, PAD, PAD, PAD]])
    values = torch.tensor([[-2, 5, 0, 6], [-2, 0, 0, 0]])
    packed = CellBatch.from_padded(ids, values, pad_id=PAD, batch=torch.tensor([1, 0]))
    assert packed.gene_ids.tolist() == [7, 1, 2, 7]
    assert packed.values.tolist() == [-2, 5, 6, -2]
    assert packed.values.dtype == torch.float32
    assert packed.cu_seqlens.tolist() == [0, 3, 4]
    assert packed.batch is not None


def test_cumulative():
    assert cumulative(torch.tensor([3, 1, 2])).tolist() == [0, 3, 4, 6]
    assert cumulative(torch.tensor([], dtype=torch.int64)).tolist() == [0]


@pytest.mark.parametrize("name", ["values", "known", "modality", "condition"])
def test_a_tensor_of_tokens_has_their_number(batch: CellBatch, name: str):
    with pytest.raises(ValueError, match=rf"CellBatch\.{name} has shape \(5,\), expected \(6,\)"):
        replace(batch, **{name: torch.zeros(5)})


@pytest.mark.parametrize("name", ["batch", "label", "depth"])
def test_a_tensor_of_cells_has_theirs(batch: CellBatch, name: str):
    with pytest.raises(ValueError, match=rf"CellBatch\.{name} has shape \(3, 1\), expected \(3,\)"):
        replace(batch, **{name: torch.zeros(3, 1)})


def test_to_moves_every_tensor(batch: CellBatch):
    whole = replace(batch, known=torch.ones(6, dtype=torch.bool), label=torch.arange(3))
    moved = whole.to("meta")
    assert {t.device.type for t in (moved.gene_ids, moved.values, moved.cu_seqlens, moved.known, moved.label)} == {
        "meta"
    }
    assert moved.depth is None

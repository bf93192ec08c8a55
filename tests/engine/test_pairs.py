"""Which cells and genes the scorers of pairs are asked about, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from scgpt_tl._random import name_keys
from scgpt_tl.engine.pairs import Pairs
from scgpt_tl.tokens.tokenize import Tokenizer

COLUMNS = np.array([7, 3, -1, 5, 3])
GROUPS = np.array([1, -1, 0, 1])


@pytest.fixture
def asked() -> Pairs:
    keys = name_keys(f"G{i}" for i in range(10))
    return Pairs(Tokenizer(COLUMNS, keys, 9, zeros=True, max_length=4), GROUPS, 2, None, 4, np.array([2, 0, 1, 0]))


def test_cells_of_a_group_and_all_genes(asked, toy_rows):
    assert (asked.n_genes, asked.n_cells) == (3, 3)
    assert asked.places.tolist() == [0, 1, 2]
    assert replace(asked, regulators=np.array([2, 0])).places.tolist() == [2, 0]
    block = asked.tokenizer(toy_rows(3, 5))
    assert asked.chosen(block, 1).tolist() == [1, 2]  # rows 1 to 3 of the data
    batch = asked.batch(block, np.array([2, 0]), 1)
    assert batch.gene_ids.tolist() == [9, 3, 5, 7] * 2
    assert batch.batch.tolist() == [0, 0]
    assert torch.equal(batch.values[:4], torch.from_numpy(block.values[8:]))
    assert replace(asked, batches=None).batch(block, np.array([0]), 1).batch is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"groups": GROUPS[:3]}, r"groups int64 \(3,\); 4 int64 from -1 to 1"),
        ({"groups": GROUPS.astype(np.int32)}, "groups int32"),
        ({"n_groups": 1}, "4 int64 from -1 to 0"),
        ({"groups": GROUPS - 1}, "from -1 to 1"),
        ({"regulators": np.array([0, 3])}, "places from 0 to 2 among the genes"),
        ({"regulators": np.array([-1])}, r"regulators \[-1\]"),
        ({"regulators": np.array([], int)}, "one or more places"),
    ],
)
def test_what_cannot_be_is_refused(asked, wrong: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        replace(asked, **wrong)


@pytest.mark.parametrize("wrong", [{"zeros": False}, {"max_length": 3}, {"column_ids": np.full(5, -1)}])
def test_a_tokenizer_that_leaves_genes_out_is_refused(asked, wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="every cell must show every gene, with zeros=True and a max_length of"):
        replace(asked, tokenizer=replace(asked.tokenizer, **wrong))

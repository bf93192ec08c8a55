"""The generative split: what is known, what is not, and that a cell's minibatch does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scgpt_tl._random import name_keys
from scgpt_tl.tokens.corrupt import Minibatch, generative_split, mask_values
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer

if TYPE_CHECKING:
    from scgpt_tl.tokens.batch import CellBatch

GENE_KEYS = name_keys(f"gene{i}" for i in range(61))


@pytest.fixture(scope="module")
def block(toy_rows: Callable[..., object]) -> TokenBlock:
    rows = toy_rows(12, 60, density=0.5, seed=1).tolil()
    rows[4] = 0  # <cls> alone
    rows[5, 1:] = 0
    return Tokenizer(np.arange(60), GENE_KEYS, 60)(rows.tocsr())


def split(block: TokenBlock, chosen: list[int] | None = None, **options) -> CellBatch:
    cells = np.arange(len(block.keys)) if chosen is None else np.array(chosen)
    options = {"ratio": 0.5} | options
    made = generative_split(block.batch(cells), block.keys[cells], GENE_KEYS, **options)
    assert torch.equal(made.hidden, ~made.cells.known)
    assert torch.equal(made.target, made.cells.values)
    return made.cells


def by_cell(batch: CellBatch) -> list[list[tuple[int, float, bool]]]:
    tokens = list(zip(batch.gene_ids.tolist(), batch.values.tolist(), batch.known.tolist(), strict=True))
    return [tokens[a:b] for a, b in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True)]


def genes(cell: list[tuple[int, float, bool]], known: bool) -> set[int]:
    return {gene for gene, _, k in cell[1:] if k == known}


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_known_first_and_as_many_as_the_ratio_says(block: TokenBlock, ratio: float):
    before, after = block.batch(np.arange(12)), split(block, ratio=ratio)
    assert after.cu_seqlens.tolist() == before.cu_seqlens.tolist()
    for i, cell in enumerate(by_cell(after)):
        n = len(cell) - 1
        assert cell[0] == (60, -2.0, True)
        known = [k for _, _, k in cell]
        assert known == sorted(known, reverse=True)
        assert len(genes(cell, known=False)) == int(n * ratio)
        a, b = before.cu_seqlens[i], before.cu_seqlens[i + 1]
        pairs = list(zip(before.gene_ids[a:b].tolist(), before.values[a:b].tolist(), strict=True))
        assert sorted((g, v) for g, v, _ in cell) == sorted(pairs)


def test_the_complement_knows_the_other_genes(block: TokenBlock):
    for ratio in (0.25, 0.5, 0.75):
        both = split(block, ratio=ratio, complement=True)
        assert both.n_cells == 24
        cells = by_cell(both)
        for first, second in zip(cells[:12], cells[12:], strict=True):
            assert genes(first, known=True) == genes(second, known=False)
            assert genes(first, known=False) == genes(second, known=True)
            assert second[0] == (60, -2.0, True)
            assert [k for _, _, k in second] == sorted((k for _, _, k in second), reverse=True)
        assert cells[:12] == by_cell(split(block, ratio=ratio))


def test_a_cell_is_split_alike_in_any_minibatch(block: TokenBlock):
    whole = by_cell(split(block, seed=3, epoch=2))
    for chosen in ([7], [11, 0, 5, 4], [3, 2, 1]):
        assert by_cell(split(block, chosen, seed=3, epoch=2)) == [whole[i] for i in chosen]


def test_a_larger_ratio_hides_more_of_the_same(block: TokenBlock):
    for few, many in zip(by_cell(split(block, ratio=0.25)), by_cell(split(block, ratio=0.75)), strict=True):
        assert genes(few, known=False) <= genes(many, known=False)


def test_seeds_and_epochs_draw_anew(block: TokenBlock):
    same, seed, epoch = split(block), split(block, seed=1), split(block, epoch=1)
    assert torch.equal(same.gene_ids, split(block).gene_ids)
    assert not torch.equal(same.gene_ids, seed.gene_ids)
    assert not torch.equal(same.gene_ids, epoch.gene_ids)


def test_every_gene_is_hidden_equally_often(block: TokenBlock):
    """Half of a cell's genes, 400 epochs: each is unknown 200 times on average."""
    cell = int(np.argmax(block.lengths))
    ids = block.batch(np.array([cell])).gene_ids[1:].tolist()
    hidden = dict.fromkeys(ids, 0)
    for epoch in range(400):
        for gene in genes(by_cell(split(block, [cell], epoch=epoch))[0], known=False):
            hidden[gene] += 1
    n = len(ids)
    share = int(n / 2) / n
    chi2 = sum((times - 400 * share) ** 2 for times in hidden.values()) / (400 * share * (1 - share))
    assert chi2 < n + 4 * np.sqrt(2 * n)


def test_the_batch_is_left_as_it_was(block: TokenBlock):
    batch = block.batch(np.arange(12))
    ids, values = batch.gene_ids.clone(), batch.values.clone()
    generative_split(batch, block.keys, GENE_KEYS, ratio=0.5, complement=True)
    assert torch.equal(batch.gene_ids, ids)
    assert torch.equal(batch.values, values)
    assert batch.known is None


# ---- masked values


def masked(block: TokenBlock, chosen: list[int] | None = None, **options) -> Minibatch:
    cells = np.arange(len(block.keys)) if chosen is None else np.array(chosen)
    options = {"ratio": 0.4, "mask_value": -1.0} | options
    return mask_values(block.batch(cells), block.keys[cells], GENE_KEYS, **options)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 1.0])
def test_a_share_of_each_cells_genes_is_masked(block: TokenBlock, ratio: float):
    made = masked(block, ratio=ratio)
    assert torch.equal(made.cells.gene_ids, torch.from_numpy(block.gene_ids))
    assert torch.equal(made.target, torch.from_numpy(block.values))
    assert (made.cells.values[made.hidden] == -1).all()
    assert torch.equal(made.cells.values[~made.hidden], made.target[~made.hidden])
    assert made.cells.known is None
    for a, b in zip(block.offsets[:-1], block.offsets[1:], strict=True):
        assert not made.hidden[a]  # <cls>
        assert int(made.hidden[a:b].sum()) == int((b - a - 1) * ratio)


def test_masks_follow_cell_gene_seed_and_epoch_alone(block: TokenBlock):
    whole = masked(block)
    some = masked(block, [7, 2, 5])
    parts = [whole.hidden[block.offsets[c] : block.offsets[c + 1]] for c in (7, 2, 5)]
    assert torch.equal(some.hidden, torch.cat(parts))
    assert torch.equal(masked(block).hidden, whole.hidden)
    assert not torch.equal(masked(block, epoch=1).hidden, whole.hidden)
    assert not torch.equal(masked(block, seed=1).hidden, whole.hidden)


# ---- parts of a minibatch


@pytest.mark.parametrize("two_views", [False, True])
def test_taking_cells_is_making_them_alone(block: TokenBlock, two_views: bool):
    chosen = [3, 0, 8]
    options = {"ratio": 0.5, "complement": two_views}
    whole = generative_split(block.batch(np.arange(12)), block.keys, GENE_KEYS, **options)
    alone = generative_split(block.batch(np.array(chosen)), block.keys[chosen], GENE_KEYS, **options)
    some = whole.take(torch.tensor(chosen))
    assert (whole.n_cells, some.n_cells) == (12, 3)
    for name in ("gene_ids", "values", "cu_seqlens", "known"):
        assert torch.equal(getattr(some.cells, name), getattr(alone.cells, name)), name
    assert torch.equal(some.target, alone.target)
    assert torch.equal(some.hidden, alone.hidden)


def test_a_muted_minibatch_asks_for_nothing(block: TokenBlock):
    labelled = replace(block.batch(np.arange(12)), label=torch.arange(12))
    made = generative_split(labelled, block.keys, GENE_KEYS, ratio=0.5, complement=True)
    assert made.cells.label.tolist() == [*range(12), *range(12)]
    quiet = made.mute()
    assert not quiet.hidden.any()
    assert quiet.muted
    assert torch.equal(quiet.cells.values, made.cells.values)

"""The plan of an epoch and its minibatches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from scgpt_tl._random import name_keys
from scgpt_tl.engine.data import Draw, Minibatches, Plan, Study
from scgpt_tl.engine.recipes import GENERATIVE, GENERATIVE_CONTRAST
from scgpt_tl.tokens.tokenize import Tokenizer

KEYS = name_keys(f"gene{i}" for i in range(61))


@pytest.fixture(scope="module")
def study(toy_rows: Callable[..., object]) -> Callable[..., Study]:
    def make(name: str, n: int, **options) -> Study:
        return Study(name, toy_rows(max(n, 1), 60, seed=n)[:n], Tokenizer(np.arange(60), KEYS, 60, **options))

    return make


def plan(studies: list[Study], *, cells: int = 8, seed: int = 0, held_out: float = 0.2, training: bool = True) -> Plan:
    return Plan(studies, cells=cells, recipe=GENERATIVE, seed=seed, held_out=held_out, training=training)


def rows_of(draws: list[Draw], n_studies: int) -> list[list[int]]:
    return [sorted(int(r) for d in draws if d.study == s for r in d.rows) for s in range(n_studies)]


@pytest.mark.parametrize("cells", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("sizes", [(50, 17), (1,), (9, 1, 0), (64,), (65,)])
def test_every_training_cell_comes_once_an_epoch(study, cells: int, sizes: tuple[int, ...]):
    studies = [study(f"s{i}", n) for i, n in enumerate(sizes)]
    found, held = plan(studies, cells=cells), plan(studies, cells=cells, training=False)
    for epoch in range(2):
        found.set_epoch(epoch)
        draws, kept = list(found), list(held)
        assert len(draws) == len(found)
        assert len(kept) == len(held)
        assert all(1 <= len(d.rows) <= cells for d in draws)
        together = [a + b for a, b in zip(rows_of(draws, len(sizes)), rows_of(kept, len(sizes)), strict=True)]
        assert [sorted(rows) for rows in together] == [list(range(n)) for n in sizes]


def test_held_out_cells_never_train_and_are_the_share_asked_for(study):
    studies = [study("a", 400), study("b", 300)]
    found, held = plan(studies), plan(studies, training=False)
    kept = rows_of(list(held), 2)
    assert 100 < sum(map(len, kept)) < 180  # of 700 a fifth
    for epoch in range(3):
        found.set_epoch(epoch)
        for train, out in zip(rows_of(list(found), 2), kept, strict=True):
            assert not set(train) & set(out)
    assert len(plan(studies, held_out=0.0, training=False)) == 0
    assert list(plan(studies, held_out=0.0, training=False)) == []


def same(first: Draw, second: Draw) -> bool:
    return (first.study, first.ratio, first.epoch) == (second.study, second.ratio, second.epoch) and np.array_equal(
        first.rows, second.rows
    )


def test_the_plan_is_a_function_of_seed_and_epoch(study):
    studies = [study("a", 50), study("b", 40)]
    one, two = plan(studies), plan(studies)
    two.set_epoch(5)
    list(two)
    two.set_epoch(0)  # what was planned before does not matter
    assert all(map(same, one, two))
    for other in (plan(studies, seed=1), two):
        other.set_epoch(1)
        assert not all(map(same, one, other))
    order = [d.study for d in one]
    assert order != sorted(order)  # studies come mixed


def test_validation_is_the_same_in_all_epochs(study):
    held = plan([study("a", 60)], training=False)
    first = list(held)
    held.set_epoch(3)
    assert all(map(same, first, held))


def test_ratios_are_those_of_the_recipe_and_all_come(study):
    found = plan([study("a", 300)], cells=4)
    assert {d.ratio for d in found} == {0.25, 0.5, 0.75}


def test_rows_of_all_studies_have_keys_of_their_own(study):
    keys = np.concatenate([study("a", 50).keys, study("b", 50).keys])
    assert len(np.unique(keys)) == 100


def test_a_cell_is_split_alike_in_any_minibatch(study):
    one = study("a", 20, max_length=9)
    data = Minibatches([one], GENERATIVE, seed=2)
    whole = data[Draw(0, np.arange(20), 0.5, 3)]
    part = data[Draw(0, np.array([7]), 0.5, 3)]
    a, b = whole.cu_seqlens[7], whole.cu_seqlens[8]
    for name in ("gene_ids", "values", "known"):
        assert torch.equal(getattr(whole, name)[a:b], getattr(part, name))
    assert whole.lengths.max() == 9
    other = data[Draw(0, np.array([7]), 0.5, 4)]
    assert not torch.equal(other.gene_ids, part.gene_ids)  # another sample, another split


def test_equal_cells_are_told_apart(study):
    one = study("a", 5, max_length=9)
    twins = Study("t", one.rows[[2, 2]], one.tokenizer)
    batch = Minibatches([twins], GENERATIVE, seed=0)[Draw(0, np.arange(2), 0.5, 0)]
    first, second = (batch.gene_ids[a:b] for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True))
    assert not torch.equal(first, second)


def test_a_contrast_shows_each_cell_twice(study):
    one = study("a", 6)
    draw = Draw(0, np.arange(6), 0.5, 0)
    assert Minibatches([one], GENERATIVE, seed=0)[draw].n_cells == 6
    assert Minibatches([one], GENERATIVE_CONTRAST, seed=0)[draw].n_cells == 12

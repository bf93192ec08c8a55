"""The plan of an epoch and the feed of its minibatches."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scgpt_tl._random import name_keys
from scgpt_tl.engine import data
from scgpt_tl.engine.data import Draw, Plan, feed
from scgpt_tl.engine.study import LazyMatrix, Study
from scgpt_tl.pp._blocks import Matrix, open_matrix
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer

KEYS = name_keys(f"gene{i}" for i in range(61))
TOKENS = Tokenizer(np.arange(60), KEYS, 60, max_length=9)
SIZES = st.lists(st.integers(0, 90), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def study(toy_rows: Callable[..., object]) -> Callable[..., Study]:
    def make(name: str, n: int, **options) -> Study:
        return Study(name, toy_rows(max(n, 1), 60, seed=n)[:n], TOKENS, **options)

    return make


def many(sizes: list[int], **options) -> list[Study]:
    """Studies whose cells can be planned; their counts are of no interest."""
    return [
        Study(f"s{i}", sparse.csr_matrix((n, 60), dtype=np.float32), TOKENS, **options) for i, n in enumerate(sizes)
    ]


def plan(studies: list[Study], **options) -> Plan:
    given = {"cells": 8, "ratios": (0.25, 0.5, 0.75), "seed": 0, "held_out": 0.2, "training": True}
    return Plan(studies, **(given | options))


def rows_of(draws: list[Draw], n_studies: int) -> list[list[int]]:
    return [sorted(int(r) for d in draws if d.study == s for r in d.rows) for s in range(n_studies)]


def same(first: Draw, second: Draw) -> bool:
    return (first.study, first.ratio, first.epoch) == (second.study, second.ratio, second.epoch) and np.array_equal(
        first.rows, second.rows
    )


def tokens(_study: Study, block: TokenBlock, draw: Draw) -> tuple[np.ndarray, ...]:
    assert len(block.keys) == len(draw.rows)
    return block.gene_ids, block.values, block.offsets, block.keys


def assert_equal(first: list, second: list) -> None:
    assert len(first) == len(second)
    for (a, x), (b, y) in zip(first, second, strict=True):
        assert same(a, b)
        for u, v in zip(x, y, strict=True):
            np.testing.assert_array_equal(u, v)


# ---- the plan


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES, cells=st.integers(1, 70), pool=st.integers(1, 200), epoch=st.integers(0, 3), world=st.integers(1, 9)
)
def test_every_cell_comes_once_an_epoch_over_all_processes(
    sizes: list[int], cells: int, pool: int, epoch: int, world: int
):
    studies = many(sizes)
    found = plan(studies, cells=cells, pool=pool).epoch(epoch)
    held = plan(studies, cells=cells, pool=pool, training=False).epoch(epoch)
    assert (len(found.draws), len(held.draws)) == (len(found), len(held))
    assert found.n_cells == sum(len(d.rows) for d in found.draws)
    assert all(1 <= len(d.rows) <= cells for d in found.draws)
    shared = [data._share(draw, rank, world) for draw in found.draws for rank in range(world)]
    assert all(len(d.rows) for d in shared)
    together = [
        a + b
        for a, b in zip(
            rows_of([d for d in shared if d.weight], len(sizes)), rows_of(held.draws, len(sizes)), strict=True
        )
    ]
    assert [sorted(rows) for rows in together] == [list(range(n)) for n in sizes]


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, cells=st.integers(1, 70), pool=st.integers(1, 200), start=st.integers(0, 60))
def test_pools_are_as_small_as_asked_for_and_begin_anywhere(sizes: list[int], cells: int, pool: int, start: int):
    epoch = plan(many(sizes), cells=cells, pool=pool).epoch(1)
    pools = list(epoch.pools())
    assert all(sum(len(d.rows) for d in draws) <= pool for draws in pools)
    assert len(pools) <= 1 or epoch.n_cells > pool
    tail = [draw for draws in epoch.pools(start) for draw in draws]
    assert len(tail) == max(0, len(epoch) - start)
    assert all(map(same, tail, epoch.draws[start:]))


def test_pools_are_of_about_one_size():
    epoch = plan(many([5000, 4000]), cells=16, pool=2000, held_out=0).epoch(0)
    sizes = [sum(len(d.rows) for d in draws) for draws in epoch.pools()]
    assert len(sizes) == 5
    assert max(sizes) - min(sizes) <= 256  # two runs
    within = [np.mean([len(d.rows) for d in draws]) for draws in epoch.pools()]
    assert min(within) > 14  # and few minibatches are small


def test_held_out_cells_never_train_and_are_the_share_asked_for():
    studies = many([400, 300])
    kept = rows_of(plan(studies, training=False).epoch(0).draws, 2)
    assert 100 < sum(map(len, kept)) < 180  # of 700 a fifth
    for epoch in range(3):
        for train, out in zip(rows_of(plan(studies).epoch(epoch).draws, 2), kept, strict=True):
            assert not set(train) & set(out)
    none = plan(studies, held_out=0.0, training=False).epoch(0)
    assert (len(none), none.draws, none.n_cells) == (0, [], 0)
    assert plan(studies, held_out=1.0, training=False).epoch(0).n_cells == 700


@pytest.mark.parametrize("pool", [16_384, 40])
def test_the_plan_is_a_function_of_seed_and_epoch(pool: int):
    studies = many([50, 40])
    one = plan(studies, pool=pool).epoch(0).draws
    assert all(map(same, one, plan(studies, pool=pool).epoch(0).draws))
    for other in (plan(studies, seed=1, pool=pool).epoch(0), plan(studies, pool=pool).epoch(1)):
        assert not all(map(same, one, other.draws))
    order = [d.study for d in one]
    assert order != sorted(order)  # studies come mixed
    assert {d.epoch for d in plan(studies).epoch(4).draws} == {4}


def test_validation_is_the_same_in_all_epochs():
    held = plan(many([60]), training=False)
    assert all(map(same, held.epoch(0).draws, held.epoch(3).draws))


def test_ratios_are_those_asked_for_and_all_come():
    ratios = Counter(d.ratio for d in plan(many([2000]), cells=4).epoch(0).draws)
    assert set(ratios) == {0.25, 0.5, 0.75}
    assert max(ratios.values()) < 1.3 * min(ratios.values())
    assert {d.ratio for d in plan(many([30]), ratios=()).epoch(0).draws} == {0.0}


# ---- the shuffle


def correlation(draws: list[Draw]) -> float:
    """Of place in the epoch with place in the file."""
    order = np.concatenate([d.rows for d in draws]).astype(float)
    return float(np.corrcoef(order, np.arange(len(order)))[0, 1])


@pytest.mark.parametrize("pool", [16_384, 2048])
def test_cells_are_shown_in_no_order_of_the_file(pool: int):
    epoch = plan(many([8000]), cells=32, pool=pool, held_out=0).epoch(2)
    assert len(list(epoch.pools())) == (1 if pool > 8000 else 5)
    assert abs(correlation(epoch.draws)) < 0.12 if pool > 8000 else abs(correlation(epoch.draws)) < 0.4
    for draws in epoch.pools():
        assert abs(correlation(draws)) < 0.12
        assert np.mean([np.ptp(d.rows) for d in draws]) > 3500  # a minibatch spans the file


def test_neighbours_in_the_file_part():
    """Of two neighbours 1 in 250 share a minibatch when a pool is the corpus; a bit more when it is an eighth."""
    for pool, most in ((16_384, 0.02), (1024, 0.12)):
        epoch = plan(many([8000]), cells=32, pool=pool, held_out=0).epoch(0)
        home = np.empty(8000, int)
        for i, draw in enumerate(epoch.draws):
            home[draw.rows] = i
        assert (home[1:] == home[:-1]).mean() < most


def test_a_pool_mixes_its_rows_evenly():
    """In a corpus of one pool each quarter of the file is spread over each quarter of the epoch."""
    epoch = plan(many([4000]), cells=20, held_out=0).epoch(0)
    order = np.concatenate([d.rows for d in epoch.draws])
    table = np.histogram2d(order, np.arange(4000), bins=4)[0]
    assert ((table - 250) ** 2 / 250).sum() < 27.9  # chi square, 9 degrees of freedom, 99.9 %


def test_another_epoch_pairs_other_cells():
    found = plan(many([400]), cells=8, held_out=0)
    first, second = ({frozenset(d.rows.tolist()) for d in found.epoch(e).draws} for e in (0, 1))
    assert not first & second


# ---- weights


@settings(max_examples=30, deadline=None)
@given(weight=st.floats(0.0, 3.5), pool=st.sampled_from([64, 16_384]))
def test_a_weight_says_how_often_cells_come(weight: float, pool: int):
    studies = [*many([300]), Study("other", sparse.csr_matrix((40, 60), dtype=np.float32), TOKENS)]
    studies[0] = Study("s0", studies[0].matrix, TOKENS, weight=weight)
    found = plan(studies, pool=pool, held_out=0.1)
    times = Counter(rows_of(found.epoch(1).draws, 2)[0])
    kept = rows_of(found.epoch(1).draws, 2)[1]
    n = 300 - len(set(rows_of(plan(studies, held_out=0.1, training=False).epoch(0).draws, 2)[0])) if weight else 0
    assert set(times.values()) <= {int(weight), int(weight) + 1}
    assert len(kept) == len(set(kept)) > 20
    extra = times.total() - int(weight) * n
    assert abs(extra - (weight % 1) * n) <= 4 * np.sqrt(n / 4) + 1
    assert not weight or found.epoch(1).n_cells == times.total() + len(kept)


@pytest.mark.parametrize("weight", [0.3, 2.5])
def test_held_out_cells_come_once_whatever_the_weight(weight: float):
    held = [plan(many([200], weight=w), training=False).epoch(0).draws for w in (1.0, weight)]
    assert all(map(same, *held))


def test_fractions_are_drawn_anew_each_epoch():
    studies = many([400], weight=0.25)
    epochs = [set(rows_of(plan(studies, held_out=0).epoch(e).draws, 1)[0]) for e in range(30)]
    assert all(60 < len(rows) < 145 for rows in epochs)
    assert len(set.union(*epochs)) > 395


def test_a_cell_shown_twice_is_seldom_twice_in_a_minibatch():
    epoch = plan(many([512], weight=2.0), cells=16, held_out=0).epoch(0)
    twins = sum(len(d.rows) - len(set(d.rows.tolist())) for d in epoch.draws)
    assert epoch.n_cells == 1024
    assert twins <= 2


def test_weight_0_leaves_a_study_out():
    studies = [*many([50], weight=0.0), Study("b", sparse.csr_matrix((30, 60), dtype=np.float32), TOKENS)]
    for training in (True, False):
        assert {d.study for d in plan(studies, held_out=0.3, training=training).epoch(0).draws} == {1}


# ---- the feed


def fed(studies: list[Study], found: Plan, number: int = 0, **options) -> list:
    return list(feed(found.epoch(number), studies, tokens, **options))


def test_the_feed_gives_the_plan_with_its_tokens(study):
    studies = [study("a", 50), study("b", 33)]
    found = plan(studies, pool=24)
    given = fed(studies, found, 3)
    assert all(map(same, [draw for draw, _ in given], found.epoch(3).draws))
    for draw, (ids, values, _, keys) in given:
        one = studies[draw.study]
        block = TOKENS(one.take(draw.rows), epoch=3, sources=one.keys[draw.rows])
        for u, v in ((ids, block.gene_ids), (values, block.values), (keys, block.keys)):
            np.testing.assert_array_equal(u, v)


def test_equal_cells_are_told_apart(study):
    """Two cells of one content: other genes of them are shown, each epoch others again."""
    rows = study("a", 5).take(np.arange(5))
    one = [Study("t", rows[[2, 2]], TOKENS)]
    shown = [fed(one, plan(one, held_out=0), epoch)[0][1][0].tolist() for epoch in (0, 1)]
    assert len({tuple(cell) for ids in shown for cell in (ids[:9], ids[9:])}) == 4


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 30), world=st.integers(1, 5), pool=st.sampled_from([20, 64, 16_384]))
def test_any_start_and_any_number_of_processes_give_the_same_cells(study, start: int, world: int, pool: int):
    studies = [study("a", 50), study("b", 33), study("c", 1)]
    found = plan(studies, pool=pool)
    whole = fed(studies, found)
    assert_equal(fed(studies, found, start=start), whole[start:])
    ranks = [fed(studies, found, start=start, rank=rank, world=world) for rank in range(world)]
    for step, (draw, (*_, keys)) in enumerate(whole[start:]):
        parts = [rank[step] for rank in ranks]
        rows = [r for part, _ in parts if part.weight for r in part.rows.tolist()]
        assert sorted(rows) == sorted(draw.rows.tolist())
        assert sorted(k for part, (*_, x) in parts if part.weight for k in x.tolist()) == sorted(keys.tolist())
        assert {(part.study, part.ratio, part.epoch) for part, _ in parts} == {(draw.study, draw.ratio, draw.epoch)}
        assert all(part.rows.tolist() == draw.rows[:1].tolist() for part, _ in parts if not part.weight)


def write(folder: Path, storage: str, rows: sparse.csr_matrix) -> Callable[[], Matrix]:
    """Counts in a file of some kind, and how to open it."""
    path = folder / f"x.{storage}"
    root = h5py.File(path, "w") if storage != "zarr" else zarr.open_group(path, mode="w")
    if storage == "dense":
        root["X"] = rows.toarray()
    else:
        other = rows.tocsc() if storage == "csc" else rows
        group = root.create_group("X")
        group.attrs.update({"encoding-type": f"{other.format}_matrix", "shape": rows.shape})
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(other, name)
    if storage != "zarr":
        root.close()
    return Opener(path, storage)


class Opener:
    def __init__(self, path: Path, storage: str):
        self.path, self.storage = path, storage

    def __call__(self) -> Matrix:
        root = zarr.open_group(self.path, mode="r") if self.storage == "zarr" else h5py.File(self.path)
        return open_matrix(root["X"])


@pytest.mark.parametrize("storage", ["h5ad", "zarr", "csc", "dense"])
def test_any_storage_gives_the_same_minibatches(study, tmp_path: Path, storage: str):
    held = [study("a", 150), study("b", 70)]
    studies = []
    for one in held:
        (tmp_path / one.name).mkdir()
        open_ = write(tmp_path / one.name, storage, one.take(np.arange(one.n_cells)))
        studies.append(Study(one.name, LazyMatrix(open_, (one.n_cells, 60), "x"), TOKENS))
    studies = pickle.loads(pickle.dumps(studies))
    for pool in (32, 16_384):
        assert_equal(fed(studies, plan(studies, pool=pool), 1), fed(held, plan(held, pool=pool), 1))
    sent = pickle.loads(pickle.dumps(studies))  # after reading: no open file travels along
    assert_equal(fed(sent, plan(sent), 1), fed(held, plan(held), 1))


# ---- threads


class Slow:
    """Counts rows as they are read, and fails where asked to."""

    def __init__(self, rows: sparse.csr_matrix, fails: int | None = None):
        self.rows, self.shape, self.reads, self.fails = rows, rows.shape, [], fails

    def take(self, rows: np.ndarray) -> sparse.csr_matrix:
        if len(self.reads) == self.fails:
            msg = "the disk is gone"
            raise OSError(msg)
        self.reads.append(len(rows))
        return self.rows[rows]


def threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")}


def test_two_pools_are_in_memory_and_no_more(study, monkeypatch):
    monkeypatch.setattr(data, "_AHEAD", 1)
    slow = Slow(study("a", 90).take(np.arange(90)))
    studies = [Study("a", LazyMatrix(lambda: slow, slow.shape), TOKENS)]
    found = plan(studies, cells=4, pool=20, held_out=0)
    stream = feed(found.epoch(0), studies, tokens)
    for done in range(len(found.epoch(0))):
        draw, _ = next(stream)
        time.sleep(0.01)
        ahead = sum(slow.reads) - 4 * done
        assert ahead <= 20 + 20 + 2 * 4, draw  # the pool in use, the next, and two minibatches made
    assert sum(slow.reads) == 90
    assert max(slow.reads) <= 20


@pytest.mark.parametrize("taken", [0, 1, 9])
def test_closing_stops_the_threads(study, taken: int):
    before = threads()
    slow = Slow(study("a", 90).take(np.arange(90)))
    studies = [Study("a", LazyMatrix(lambda: slow, slow.shape), TOKENS)]
    stream = feed(plan(studies, cells=2, pool=16, held_out=0).epoch(0), studies, tokens)
    for _ in range(taken):
        next(stream)
    assert len(threads() - before) == (2 if taken else 0)
    stream.close()
    assert threads() == before
    assert sum(slow.reads) < 90
    assert list(stream) == []


def test_nothing_is_made_after_closing(study):
    made, go = [], threading.Event()

    def prepare(*_: object) -> None:
        made.append(1)
        if len(made) == 2:
            go.wait(5)

    studies = [study("a", 90)]
    stream = feed(plan(studies, cells=2, held_out=0).epoch(0), studies, prepare)
    next(stream)
    threading.Timer(0.1, go.set).start()
    stream.close()
    assert len(made) == 2  # the one under way; six more were waiting


def test_what_goes_wrong_reaches_the_caller_with_study_and_file(study):
    before = threads()
    slow = Slow(study("a", 90).take(np.arange(90)), fails=3)
    studies = [Study("a", LazyMatrix(lambda: slow, slow.shape, "a.h5ad"), TOKENS)]
    stream = feed(plan(studies, cells=4, pool=20, held_out=0).epoch(0), studies, tokens)
    given = []
    with pytest.raises(OSError, match=r"study 'a' \(a\.h5ad\) cannot be read: the disk is gone\. Is the file where"):
        given.extend(stream)
    assert len(given) == -(-slow.reads[0] // 4) + -(-slow.reads[1] // 4) + -(-slow.reads[2] // 4)
    assert threads() == before


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, -np.inf])
def test_values_that_are_no_counts_are_refused_when_they_are_read(study, value: float):
    rows = study("a", 60).take(np.arange(60)).copy()
    rows.data[400] = value
    studies = [study("b", 20), Study("a", LazyMatrix(lambda: open_matrix(rows), rows.shape, "a.h5ad"), TOKENS)]
    stream = feed(plan(studies, pool=20, held_out=0).epoch(0), studies, tokens)
    with pytest.raises(ValueError, match=r"study 'a' \(a\.h5ad\) holds negative or non-finite values: give counts"):
        list(stream)


def test_a_fault_of_the_caller_is_handed_on_as_it_is(study):
    def prepare(*_: object) -> None:
        msg = "mine"
        raise KeyError(msg)

    before = threads()
    studies = [study("a", 40)]
    with pytest.raises(KeyError, match="mine"):
        next(feed(plan(studies).epoch(0), studies, prepare))
    assert threads() == before


def test_a_corpus_of_many_files_does_not_keep_them_open(study, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(data, "_MOST_OPEN", 2)
    studies = []
    for name in "abc":
        (tmp_path / name).mkdir()
        open_ = write(tmp_path / name, "h5ad", study(name, 30).take(np.arange(30)))
        studies.append(Study(name, LazyMatrix(open_, (30, 60), "x"), TOKENS))
    fed(studies, plan(studies, pool=16))
    assert all(one.matrix._opened is None for one in studies)
    fed(studies[:2], plan(studies[:2], pool=16))
    assert all(one.matrix._opened is not None for one in studies[:2])

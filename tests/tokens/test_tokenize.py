"""The tokeniser beside the same thing in plain Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scgpt_tl._random import Purpose, cell_key, draw, name_keys, stream_key
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer, _limit, ahead

N_TOKENS = 80
CLS = 79
KEYS = name_keys(f"gene{i}" for i in range(N_TOKENS))


def make(columns: np.ndarray, **options) -> Tokenizer:
    return Tokenizer(np.asarray(columns, np.int64), KEYS, CLS, **options)


def plainly(t: Tokenizer, row: np.ndarray, *, epoch: int = 0, source: int = 0) -> tuple[list[int], list[float], int]:
    """Ids, values and number of genes of one dense row: a dictionary, `np.quantile`, sorting, smallest draws."""
    cell: dict[int, float] = {}
    for column, value in enumerate(row.tolist()):
        if value != 0 and t.column_ids[column] >= 0:
            cell[int(t.column_ids[column])] = cell.get(int(t.column_ids[column]), 0.0) + value
    ids = sorted(cell)
    values = np.array([cell[g] for g in ids])
    key = np.uint64(cell_key(t.gene_keys[np.array(ids, int)], values))  # numba hands words back as Python integers
    ties = stream_key(t.seed, Purpose.TIES, 0)
    bins = []
    edges = np.quantile(values, np.linspace(0, 1, t.n_bins - 1)) if ids else np.empty(0)
    for gene, value in zip(ids, values, strict=True):
        upper, lower = int((edges <= value).sum()), int((edges < value).sum())
        if t.spread and upper > lower:
            upper = lower + 1 + int(draw(ties, key, t.gene_keys[gene]) * (upper - lower))
        bins.append(upper)
    n_genes = len(ids)
    if t.zeros:
        found = dict(zip(ids, bins, strict=True))
        ids = sorted({g for g in t.column_ids.tolist() if g >= 0})
        bins = [found.get(g, 0) for g in ids]
    kept = range(len(ids))
    if len(ids) > t.max_length - 1:
        stream = stream_key(t.seed, Purpose.TRUNCATE, epoch)
        mine = np.uint64((int(key) + source) % 2**64)
        draws = [float(draw(stream, mine, t.gene_keys[g])) for g in ids]
        kept = sorted(sorted(kept, key=draws.__getitem__)[: t.max_length - 1])
    return [CLS, *(ids[i] for i in kept)], [t.cls_value, *(bins[i] for i in kept)], n_genes


def cells(block: TokenBlock) -> list[tuple[list[int], list[float]]]:
    spans = zip(block.offsets[:-1], block.offsets[1:], strict=True)
    return [(block.gene_ids[a:b].tolist(), block.values[a:b].tolist()) for a, b in spans]


@pytest.fixture(scope="module")
def rows(toy_rows: Callable[..., sparse.csr_matrix]) -> sparse.csr_matrix:
    return toy_rows(30, 60, density=0.4, seed=3)


@pytest.fixture(scope="module")
def columns() -> np.ndarray:
    """60 columns: some outside the vocabulary, some twice or thrice, in no order."""
    ids = np.random.default_rng(5).permutation(70)[:60]
    ids[[3, 17, 40]] = -1
    ids[[8, 50]] = ids[20]
    ids[33] = ids[1]
    return ids


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("max_length", [2, 9, 1200])
@pytest.mark.parametrize("n_bins", [2, 5, 51])
def test_tokens_are_those_of_plain_python(rows, columns, spread: bool, max_length: int, n_bins: int):
    t = make(columns, spread=spread, max_length=max_length, n_bins=n_bins, seed=4, cls_value=-3.0)
    block = t(rows)
    expected = [plainly(t, row) for row in rows.toarray().astype(np.float64)]
    assert cells(block) == [(ids, values) for ids, values, _ in expected]
    assert block.n_genes.tolist() == [n for _, _, n in expected]
    assert block.lengths.max() <= max_length
    assert (block.gene_ids.dtype, block.values.dtype) == (np.int64, np.float32)


@st.composite
def matrices(draw) -> tuple[np.ndarray, np.ndarray, int]:
    """A few cells, the ids of their columns (outside the vocabulary, repeated, in any order), a seed."""
    n_vars = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    columns = rng.integers(-1, draw(st.integers(1, N_TOKENS - 1)), n_vars)
    counts = rng.poisson(draw(st.sampled_from([0.05, 0.7, 30.0])), (draw(st.integers(0, 5)), n_vars))
    return counts.astype(np.float64), columns, draw(st.integers(0, 99))


@settings(max_examples=150, deadline=None)
@given(matrices(), st.booleans(), st.booleans(), st.sampled_from([2, 3, 12, 40, 1200]), st.sampled_from([2, 7, 51]))
def test_any_matrix_gives_the_tokens_of_plain_python(
    made: tuple[np.ndarray, np.ndarray, int], zeros: bool, spread: bool, max_length: int, n_bins: int
):
    counts, columns, seed = made
    t = make(columns, zeros=zeros, spread=spread, max_length=max_length, n_bins=n_bins, seed=seed)
    block = t(sparse.csr_matrix(counts), epoch=seed, sources=np.full(len(counts), seed, np.uint64))
    expected = [plainly(t, row, epoch=seed, source=seed) for row in counts]
    assert cells(block) == [(ids, values) for ids, values, _ in expected]
    assert block.n_genes.tolist() == [n for _, _, n in expected]


def test_zeros_show_every_gene_of_the_matrix(rows, columns):
    """The expressed genes keep their bins; the others come in bin 0, `<cls>` alone before them."""
    plain, full = make(columns)(rows), make(columns, zeros=True)(rows)
    genes = sorted(set(columns[columns >= 0].tolist()))
    for (some, bins), (ids, values) in zip(cells(plain), cells(full), strict=True):
        assert ids == [CLS, *genes]
        found = dict(zip(ids, values, strict=True))
        assert [found.pop(gene) for gene in some] == bins
        assert set(found.values()) == {0.0}
    np.testing.assert_array_equal(full.keys, plain.keys)
    np.testing.assert_array_equal(full.n_genes, plain.n_genes)


@pytest.mark.parametrize("zeros", [False, True])
def test_the_genes_of_a_matrix_are_its_columns_once_and_sorted(rows, columns, zeros: bool):
    t = make(columns, zeros=zeros)
    assert t.genes.tolist() == sorted({gene for gene in columns.tolist() if gene >= 0})
    assert all((ids == [CLS, *t.genes]) == zeros for ids, _ in cells(t(rows)))


def test_a_sample_with_zeros_is_of_all_genes_alike(columns):
    """An empty cell's and a full cell's sample are of one size; expressed genes are not preferred."""
    t = make(np.arange(60), zeros=True, max_length=21)
    x = np.zeros((200, 60))
    x[:, :30] = np.random.default_rng(0).integers(1, 99, (200, 30))
    block = t(sparse.csr_matrix(x))
    assert block.lengths.tolist() == [21] * 200
    assert abs((block.gene_ids < 30).mean() * 21 / 20 - 0.5) < 0.04
    assert (block.values[block.gene_ids < 30] > 0).all()
    assert (block.values[(block.gene_ids >= 30) & (block.gene_ids != CLS)] == 0).all()
    assert t(sparse.csr_matrix((1, 60))).lengths.tolist() == [21]


def test_zeros_without_a_gene_of_the_vocabulary():
    assert cells(make([-1, -1], zeros=True)(sparse.csr_matrix(np.ones((2, 2))))) == [([CLS], [-2.0])] * 2


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 10**6), st.sampled_from([1.0, 1e-3, 1e-300]))
def test_the_limit_is_an_order_statistic(n: int, seed: int, scale: float):
    rng = np.random.default_rng(seed)
    draws = rng.random(n) * scale
    draws[rng.random(n) < 0.1] = draws[0]
    most = int(rng.integers(0, n))
    assert _limit(draws, most) == np.sort(draws)[most]


def test_large_vocabularies_in_any_order():
    """Ids in every word of the marks and at both ends of one."""
    ids = np.concatenate([np.arange(0, 130), [4095, 4096, 8191, 60_000, 60_063, 60_064, 60_690]])
    keys = name_keys(f"g{i}" for i in range(60_697))
    order = np.random.default_rng(0).permutation(len(ids))
    x = sparse.csr_matrix((1.0 + ids)[None, order])
    one, other = (
        Tokenizer(c, keys, 60_695)(r) for c, r in ((ids[order], x), (ids, sparse.csr_matrix(1.0 + ids[None])))
    )
    assert one.gene_ids.tolist() == [60_695, *ids.tolist()]
    assert cells(one) == cells(other)


def test_a_row_of_repeated_genes_leaves_no_trace():
    x = sparse.csr_matrix(np.array([[1, 2, 4, 0, 0], [0, 0, 0, 3, 5]], np.float32))
    assert cells(make([7, 5, 7, 9, 8], n_bins=3, spread=False)(x)) == [
        ([CLS, 5, 7], [-2, 1, 2]),
        ([CLS, 8, 9], [-2, 2, 1]),
    ]


def test_floats_too(columns):
    x = sparse.random(20, 60, 0.5, format="csr", rng=np.random.default_rng(1), dtype=np.float64)
    t = make(columns, max_length=15)
    assert cells(t(x)) == [plainly(t, row)[:2] for row in x.toarray()]


def test_epochs_and_sources_change_the_sample_alone(rows, columns):
    t = make(columns, max_length=8)
    sources = np.arange(30, dtype=np.uint64) + np.uint64(2**64 - 5)
    found = t(rows, epoch=2, sources=sources)
    dense = rows.toarray().astype(np.float64)
    expected = [plainly(t, row, epoch=2, source=int(s))[:2] for row, s in zip(dense, sources, strict=True)]
    assert cells(found) == expected
    assert cells(found) != cells(t(rows))
    assert found.n_genes.tolist() == t(rows).n_genes.tolist()
    np.testing.assert_array_equal(found.keys, t(rows).keys + sources)


def test_columns_of_one_gene_are_summed():
    x = sparse.csr_matrix(np.array([[1, 2, 4, 0], [0, 0, 3, 3]], np.float32))
    block = make([5, 6, 5, -1], n_bins=3, spread=False)(x)
    # cell 0 holds gene 5 with 1 + 4 and gene 6 with 2; the last column is no gene of the model
    assert cells(block) == [([CLS, 5, 6], [-2, 2, 1]), ([CLS, 5], [-2, 2])]
    assert block.n_genes.tolist() == [2, 1]


def test_the_order_of_summands_does_not_show():
    values = np.array([[1e16, 1.0, 1.0, 3.0]])
    one, other = (make([5, 5, 5, 6])(sparse.csr_matrix(values[:, order])) for order in ([0, 1, 2, 3], [1, 2, 0, 3]))
    assert one.keys == other.keys


def test_a_cell_without_genes_is_cls_alone():
    x = sparse.csr_matrix(np.array([[0, 0, 0], [0, 0, 7], [1, 0, 0]], np.float32))
    block = make([1, 2, -1], spread=False)(x)
    assert cells(block) == [([CLS], [-2.0]), ([CLS], [-2.0]), ([CLS, 1], [-2.0, 50.0])]
    assert block.n_genes.tolist() == [0, 0, 1]
    assert make([1, 2, -1])(x[:0]).offsets.tolist() == [0]


@pytest.mark.parametrize("change", ["rows", "columns", "alone", "int64", "unsorted"])
def test_tokens_depend_on_the_cell_alone(rows, columns, change: str):
    t = make(columns, max_length=9)
    expected = cells(t(rows))
    rng = np.random.default_rng(0)
    if change == "rows":
        order = rng.permutation(rows.shape[0])
        assert cells(t(rows[order])) == [expected[i] for i in order]
    elif change == "columns":
        order = rng.permutation(rows.shape[1])
        assert cells(make(columns[order], max_length=9)(rows[:, order])) == expected
    elif change == "alone":
        assert [cells(t(rows[i]))[0] for i in range(rows.shape[0])] == expected
    elif change == "int64":
        assert cells(t(rows.astype(np.int64))) == expected
    else:
        mixed = rows.copy()
        for a, b in zip(mixed.indptr[:-1], mixed.indptr[1:], strict=True):
            order = a + rng.permutation(b - a)
            mixed.indices[a:b], mixed.data[a:b] = mixed.indices[order], mixed.data[order]
        assert cells(t(mixed)) == expected


def test_input_is_not_changed(rows, columns):
    before = rows.copy()
    make(columns)(rows)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(before, name))


def test_samples_are_uniform_over_genes():
    """20 of 60 genes, 600 seeds: each gene is kept 200 times on average, whatever its value."""
    x = sparse.csr_matrix(np.arange(1, 61, dtype=np.float32)[None])
    kept = np.zeros(60)
    for seed in range(600):
        ids = make(np.arange(60), max_length=21, seed=seed)(x).gene_ids[1:]
        assert len(ids) == 20
        kept[ids] += 1
    chi2 = ((kept - 200) ** 2 / (200 * (1 - 20 / 60))).sum()
    assert chi2 < 98.3  # its 99.9 % point at 59 degrees of freedom


def test_batch_takes_cells_in_the_order_asked_for(rows, columns):
    block = make(columns, max_length=12)(rows)
    chosen = np.array([4, 0, 29])
    batch = block.batch(chosen)
    assert batch.lengths.tolist() == block.lengths[chosen].tolist()
    expected = [cells(block)[i] for i in chosen]
    assert batch.gene_ids.tolist() == [gene for ids, _ in expected for gene in ids]
    assert batch.values.tolist() == [value for _, values in expected for value in values]


def test_room_for_a_gene():
    with pytest.raises(ValueError, match="max_length=1 leaves no room for a gene beside <cls>; give 2 or more"):
        make([0], max_length=1)


def test_ahead_gives_every_block_in_order(rows, columns):
    t = make(columns)
    blocks = [(start, rows[start : start + 7]) for start in range(0, 30, 7)]
    found = list(ahead(blocks, t))
    assert [start for start, _ in found] == [0, 7, 14, 21, 28]
    assert [cell for _, block in found for cell in cells(block)] == cells(t(rows))
    assert list(ahead([], t)) == []


def test_ahead_reads_one_block_ahead_and_no_more(rows, columns):
    read = []

    def blocks() -> Iterator[tuple[int, sparse.csr_matrix]]:
        for start in range(0, 30, 5):
            read.append(start)
            yield start, rows[start : start + 5]

    stream = ahead(blocks(), make(columns))
    next(stream)
    time.sleep(0.2)
    assert read == [0, 5]
    stream.close()
    assert read == [0, 5]


def test_ahead_hands_on_what_goes_wrong(rows, columns):
    def blocks() -> Iterator[tuple[int, sparse.csr_matrix]]:
        yield 0, rows
        msg = "the disk is gone"
        raise OSError(msg)

    stream = ahead(blocks(), make(columns))
    assert next(stream)[0] == 0
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)

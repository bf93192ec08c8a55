from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from scgpt_tl._random import Purpose, as_seed, cell_key, draw, mix64, name_keys, stream_key

PINNED = {
    "names": [5523304108508656964, 14492927693331039171, 5756750150420522607],
    "stream": 4964578127960768432,
    "cell": 6501813993401394223,
    "draw": 0.5361945018116682,
}


def u64(values):
    return np.asarray(values, np.uint64)


def key_of(names, values):
    return int(cell_key(name_keys(names), np.asarray(values, float)))


def test_mix64_is_splitmix64():
    # outputs of the published splitmix64 generator for the seed 1234567, one step of the golden ratio each
    golden, state, found = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        found.append(int(mix64(np.uint64(state))))
        state = (state + golden) % 2**64
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_known_values_are_pinned():
    """A change here breaks the promise that the same call gives the same result in every version."""
    keys = name_keys(["CD3D", "<cls>", "ENSG00000141510"])
    assert keys.tolist() == PINNED["names"]
    stream = stream_key(np.uint64(0), np.uint64(Purpose.TIES), np.uint64(0))
    assert int(stream) == PINNED["stream"]
    cell = cell_key(keys, np.array([1.0, 2.5, 3.0]))
    assert int(cell) == PINNED["cell"]
    assert float(draw(np.uint64(stream), np.uint64(cell), keys[0])) == PINNED["draw"]
    assert [p.value for p in Purpose] == list(range(1, len(Purpose) + 1))
    assert [p.name for p in Purpose][:7] == ["TIES", "TRUNCATE", "MASK", "SPLIT", "VIEW", "SHUFFLE", "DEPTH"]


def draws(streams, cells, genes):
    return np.array([draw(s, c, g) for s in streams for c in cells for g in genes])


@pytest.mark.parametrize("axis", ["stream", "cell", "gene"])
def test_draws_are_uniform_along_every_axis(axis):
    """Counted in 50 boxes; hashed inputs along one axis, and neighbouring integers too."""
    one = u64([7])
    for many in (name_keys(map(str, range(20_000))), np.arange(20_000, dtype=np.uint64)):
        args = {"stream": one, "cell": one, "gene": one} | {axis: many}
        u = draws(args["stream"], args["cell"], args["gene"])
        assert (u >= 0).all()
        assert (u < 1).all()
        assert stats.chisquare(np.bincount((u * 50).astype(int), minlength=50)).pvalue > 1e-3
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


def test_draws_of_streams_cells_and_genes_are_unrelated():
    genes = name_keys(map(str, range(5_000)))
    streams = u64(
        [stream_key(np.uint64(s), np.uint64(p), np.uint64(e)) for s in (0, 1) for p in (1, 2) for e in (0, 1)]
    )
    assert len(np.unique(streams)) == 8
    table = np.array([draws([s], u64([c]), genes) for s in streams for c in (0, 1)])
    off = np.corrcoef(table)[~np.eye(len(table), dtype=bool)]
    assert np.abs(off).max() < 0.06


def test_cell_key_forgets_order_and_nothing_else():
    names, values = ["A", "B", "C", "D"], [1.0, 2.0, 2.0, 5.0]
    key = key_of(names, values)
    for order in ([3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]):
        assert key_of([names[i] for i in order], [values[i] for i in order]) == key
    others = [
        (["A", "B", "C", "E"], values),  # another gene
        (names, [1.0, 2.0, 2.0, 5.5]),  # another value
        (names, [2.0, 1.0, 2.0, 5.0]),  # values of two genes changed places
        (names[:3], values[:3]),
        (["A", "A", *names], [1.0, 1.0, *values]),  # a pair, twice: no cancelling out
    ]
    assert len({key, *(key_of(*other) for other in others)}) == 6


def test_no_two_of_many_cells_share_a_key():
    genes = name_keys(map(str, range(30)))
    rng = np.random.default_rng(0)
    cells = {tuple(row) for row in rng.integers(1, 3, size=(20_000, 30))}
    assert len({int(cell_key(genes, np.array(cell, float))) for cell in cells}) == len(cells)


def test_name_keys_are_the_same_in_every_process():
    code = "from scgpt_tl._random import name_keys; print(name_keys(['CD3D', 'α'])[0])"
    out = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert out[0].stdout == out[1].stdout
    assert int(out[0].stdout) == PINNED["names"][0]


def test_name_keys_of_many_names_differ():
    keys = name_keys(f"G{i}" for i in range(60_697))
    assert len(np.unique(keys)) == 60_697
    assert name_keys([]).shape == (0,)
    assert name_keys([]).dtype == np.uint64


def test_as_seed():
    assert as_seed(0) == 0
    assert as_seed(np.int64(5)) == 5
    generator = np.random.default_rng(3)
    first = as_seed(generator)
    assert 0 <= first < 2**63
    assert as_seed(generator) != first
    assert as_seed(np.random.default_rng(3)) == first
    assert as_seed(None) != as_seed(None)
    with pytest.raises(ValueError, match=r"rng=-1 is negative"):
        as_seed(-1)
    for wrong in (True, 1.0, "0"):
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
            as_seed(wrong)


@pytest.mark.parametrize("rng", [2**63, np.uint64(2**63), 2**70])
def test_a_seed_that_files_cannot_hold_is_refused(rng):
    with pytest.raises(ValueError, match=rf"^rng={rng} is too large; give an integer from 0 to 2\*\*63 - 1"):
        as_seed(rng)
    assert as_seed(2**63 - 1) == 2**63 - 1

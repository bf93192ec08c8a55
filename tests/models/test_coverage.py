"""The table behind strict loading."""

from __future__ import annotations

from scgpt_tl.models._coverage import compare


def test_the_table_reads():
    found = {"heads.gep.bias": (4,), "backbone.genes.weight": (3, 2), "heads.gepc.weight": (1,)}
    expected = {"heads.gep.bias": (3,), "backbone.genes.weight": (3, 2), "backbone.genes.bias": (2,)}
    coverage = compare(found, expected, unexpected=("odd.one (3,)",), left_out=("sim.temp",), absent_heads=("cls",))
    assert not coverage.complete
    assert str(coverage).splitlines() == [
        "part               loaded    missing unexpected  misshapen   left out",
        "backbone.genes          1          1          .          .          .",
        "odd                     .          .          1          .          .",
        "heads.gepc              .          .          1          .          .",
        "heads.gep               .          .          .          1          .",
        "sim                     .          .          .          .          1",
        "missing     backbone.genes.bias",
        "unexpected  odd.one (3,)",
        "unexpected  heads.gepc.weight",
        "misshapen   heads.gep.bias has shape (4,), expected (3,)",
        "left out    sim.temp",
        "no weights in the file for the heads cls: not built",
    ]


def test_names_are_spelled_as_in_the_file():
    coverage = compare({"a": (1,)}, {"a": (1,), "b": (2,)}, spell=str.upper)
    assert (coverage.loaded, coverage.missing) == (("A",), ("B",))


def test_complete():
    assert compare({"a": (1,)}, {"a": (1,)}, left_out=("x",), absent_heads=("cls",)).complete
    for amiss in (compare({}, {"a": (1,)}), compare({"a": (1,)}, {}), compare({"a": (1,)}, {"a": ()})):
        assert not amiss.complete

"""Options from text: what a field takes, what it means, what was meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from scgpt_tl.engine._fields import convert, docs, expected, hints, parse_bytes

Word = Literal["a", "b"]


@dataclass
class Options:
    """Of a toy."""

    one: int = 1
    """The first,
    on two lines."""
    two: float = 2.0
    three: str = ""
    """The third."""


def test_docs_are_the_strings_after_the_fields():
    assert docs(Options) == {"one": "The first, on two lines.", "three": "The third."}
    assert hints(Options) == {"one": int, "two": float, "three": str}


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (3, int, 3),
        (np.int64(3), int, 3),
        (1e3, int, 1000),
        ("1e3", int, 1000),  # YAML: text
        ("1e-3", float, 0.001),
        (np.float32(0.5), float, 0.5),
        (1, float, 1.0),
        (False, bool, False),
        ("a", Word, "a"),
        (["x", " y "], tuple[str, ...], ("x", "y")),
        ("x,y", tuple[str, ...], ("x", "y")),
        ("x", tuple[str, ...], ("x",)),
        ("", tuple[str, ...], ()),
        (None, int | None, None),
        (5, int | None, 5),
        ("8GB", int | str | None, "8GB"),
        (8e9, int | str | None, 8_000_000_000),
    ],
)
def test_values_become_what_the_field_is(value, hint, found):
    got = convert(value, hint)
    assert (got, type(got)) == (found, type(found))


@pytest.mark.parametrize(
    ("value", "hint", "says"),
    [
        ("ten", int, "a whole number"),
        (2.5, int, "a whole number"),
        (True, int, "a whole number"),
        (None, int, "a whole number"),
        (True, float, "a number"),
        ([1.0], float, "a number"),
        (1, bool, "true or false"),
        ("yes", bool, "true or false"),
        (32, str, "text"),
        (None, str, "text"),
        (3, Word, "text"),
        (3, tuple[str, ...], "a list of names"),
        ([3], tuple[str, ...], "a list of names"),
        (True, int | str | None, "a number of bytes, or text like '8GB',"),
    ],
)
def test_values_that_are_none_of_it(value, hint, says):
    with pytest.raises((TypeError, ValueError)):
        convert(value, hint)
    assert expected(hint) == says


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (5, 5),
        ("7", 7),
        ("2kb", 2000),
        ("1.5 GB", 1_500_000_000),
        ("4GiB", 4 * 2**30),
        ("3 mi", 3 * 2**20),
        ("1T", 10**12),
    ],
)
def test_parse_bytes(text: int | str, expected: int):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1", 0, "4 GBs", "1e9", "0kb", None])
def test_parse_bytes_refuses(text: object):
    with pytest.raises(ValueError, match="give a positive number of bytes, or text like '4GB'"):
        parse_bytes(text)

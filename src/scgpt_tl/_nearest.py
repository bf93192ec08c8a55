"""Names that are not there: refused, with what somebody may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

_T = TypeVar("_T")


def nearest(name: object, names: Iterable[str]) -> str:
    """For a message: the name that was meant, as far as can be told, else all of them."""
    names = list(names)
    near = get_close_matches(str(name), names, 1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"


def check_choice(name: str, value: _T, among: Iterable[_T]) -> _T:
    """The value of an argument, if it is one of these.

    Raises
    ------
    ValueError
        It is none; the message has the nearest.
    """
    known = tuple(among)
    if value not in known:
        msg = f"{name}={value!r} is unknown; {nearest(value, map(str, known))}"
        raise ValueError(msg)
    return value


def refuse_unknown(given: Iterable[str], names: Iterable[str], *, beside: Iterable[str] = ()) -> None:
    """Refuse keywords that are none of the names.

    Raises
    ------
    TypeError
        The message has the nearest, of the names or of those `beside` them.
    """
    names = list(names)
    for key in given:
        if key not in names:
            msg = f"unexpected argument {key!r}; {nearest(key, [*names, *beside])}"
            raise TypeError(msg)

"""Fields of a dataclass of options: what they mean, and their values from text, YAML or a notebook."""

from __future__ import annotations

import ast
import inspect
import operator
import re
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@cache
def hints(cls: type) -> dict[str, Any]:
    """Field -> type."""
    return get_type_hints(cls)


def docs(cls: type) -> dict[str, str]:
    """Field -> the docstring that follows it in the source, on one line."""
    (body,) = ast.parse(inspect.getsource(cls)).body
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in pairwise(getattr(body, "body", []))
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def convert(value: Any, hint: Any) -> Any:
    """`value` as a field of this type: YAML reads 1e-3 as text, a notebook gives numpy's numbers, a shell commas.

    Raises
    ------
    TypeError, ValueError
        It is none.
    """
    if get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        return tuple(text for item in items if (text := convert(item, str).strip()))
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, str):
        if str in kinds or get_origin(hint) is Literal:
            return value
        value = float(value)
    if isinstance(value, bool) and bool not in kinds:
        raise TypeError
    if bool in kinds:
        return _switch(value)
    if int in kinds:
        return _whole(value)
    if float in kinds:
        return float(value)
    raise TypeError


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _whole(number: Any) -> int:
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return operator.index(number)


def expected(hint: Any) -> str:
    """What `convert` takes, in words."""
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is tuple:
        return "a list of names"
    if bool in kinds:
        return "true or false"
    if str in kinds and int in kinds:
        return "a number of bytes, or text like '8GB',"
    return "a whole number" if int in kinds else "a number" if float in kinds else "text"


def parse_bytes(size: int | str) -> int:
    """Bytes of 2_000_000, "512MB", "4GiB".

    Raises
    ------
    ValueError
        It is no size; the message names `max_memory`, the option that takes one.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", str(size).lower())
    if found is None or float(found[1]) <= 0:
        msg = f"max_memory={size!r}; give a positive number of bytes, or text like '4GB'"
        raise ValueError(msg)
    return int(float(found[1]) * _UNITS[found[2] or ""])

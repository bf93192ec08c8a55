"""What tells two runs apart, in a few words."""

from __future__ import annotations

from typing import Any

_SHOWN = 5


def differences(held: dict[str, Any], run: dict[str, Any], keys: list[str]) -> str:
    """The first few values of these keys that differ, theirs and ours; of studies, which and in what."""
    found = []
    for key in keys:
        theirs, ours = held.get(key), run[key]
        if isinstance(theirs, dict) and isinstance(ours, dict):
            found += [f"{key}.{each}" for each in _fields(theirs, ours)]
        elif isinstance(theirs or [], list) and isinstance(ours or [], list):
            found += _in_lists(key, _named(key, theirs or [], held), _named(key, ours or [], run))
        elif isinstance(theirs, (str, int, float)):
            found.append(f"{key} was {theirs!r} and is {ours!r}")
    return "; ".join(found[:_SHOWN]) or "see its run.json"


def _named(key: str, items: list[Any], run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Studies by their names, with what is told of each; other values by themselves."""
    if key == "columns":  # a digest for each study
        names = [name for kind in ("data", "validate") for name in _named(kind, run.get(kind, []), run)]
        return {name: {"labels, batches or genes": x} for name, x in zip(names, items, strict=False)}
    mark = " (validate)" if key == "validate" else ""  # a study of the same name may train
    studies = [x if isinstance(x, dict) else {"name": x} for x in items]
    return {f"{study.get('name')}{mark}": study for study in studies}


def _in_lists(key: str, theirs: dict[str, dict[str, Any]], ours: dict[str, dict[str, Any]]) -> list[str]:
    found = [f"{key}: {name!r} is new" for name in ours if name not in theirs]
    found += [f"{key}: {name!r} is missing" for name in theirs if name not in ours]
    both = [name for name in ours if name in theirs]
    found += [f"{key}: {name!r}: {each}" for name in both for each in _fields(theirs[name], ours[name])]
    return found or [f"{key}: the order is another"]


def _fields(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    differ = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [f"{name} was {_short(theirs.get(name))} and is {_short(ours.get(name))}" for name in differ]


def _short(value: Any) -> str:
    """A value; of a hash the beginning."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)

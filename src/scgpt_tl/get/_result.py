"""A result in `.uns`: found by its name, read as flat parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import MAKERS, OWNER, SLOTS

if TYPE_CHECKING:
    from anndata import AnnData


def result(adata: AnnData, key: str, *, default: str = SLOTS.run) -> Mapping[str, Any]:
    """`.uns[key]`, or an error that names the call that makes it: `default`'s where the key is the user's own."""
    found = adata.uns.get(key)
    if not isinstance(found, Mapping):
        ours = [name for name, value in adata.uns.items() if isinstance(value, Mapping) and OWNER in value]
        maker = MAKERS.get(key, MAKERS[default])
        msg = f"adata.uns has no result {key!r}; {maker} makes one. Results there: {ours}"
        raise KeyError(msg)
    return found


def strings(values: Any) -> list[str]:
    """Names as they come back from a file: an array, a list, or one string."""
    return [str(value) for value in np.atleast_1d(np.asarray(values, dtype=object))]


def flat(values: Mapping[str, Any], prefix: str = "", *, joint: str = ".") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, names joined; histories are left to `history_df`."""
    for name, value in values.items():
        if name == "history":
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}{joint}", joint=joint)
        else:
            yield f"{prefix}{name}", value

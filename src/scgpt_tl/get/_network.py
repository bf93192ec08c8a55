"""A gene network in its slots: what was written, by which method, and its scores as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scgpt_tl._nearest import nearest
from scgpt_tl._slots import MAKERS, OWNER, SLOTS
from scgpt_tl.get._result import result

if TYPE_CHECKING:
    from anndata import AnnData

Setting = Literal["control", "perturbed", "difference"]
SETTINGS: tuple[Setting, ...] = ("control", "perturbed", "difference")
MAKER = "tl.scgpt_grn"


def network(adata: AnnData, key: str) -> Mapping[str, Any]:
    """`.uns[key]` of `tl.scgpt_grn`."""
    run = result(adata, key, default=SLOTS.network)
    if run.get(OWNER) != MAKER:
        ours = [name for name, found in adata.uns.items() if isinstance(found, Mapping) and found.get(OWNER) == MAKER]
        msg = f"adata.uns[{key!r}] is no gene network; {MAKERS[SLOTS.network]} makes one. Networks there: {ours}"
        raise KeyError(msg)
    return run


def strings(values: Any) -> list[str]:
    """Names as they come back from a file: an array, a list, or one string."""
    return [str(value) for value in np.atleast_1d(np.asarray(values, dtype=object))]


def pairs(adata: AnnData, key: str) -> sparse.coo_array:
    """Each pair of an undirected network once, as rows and columns of `.var`."""
    return sparse.coo_array(sparse.triu(sparse.csr_array(_held(adata, "varp", key)), k=1))


def scores(adata: AnnData, key: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets `(M,)`, regulators `(R,)` and scores `(M, R)` of one group; genes that were not chosen are left out."""
    run = network(adata, key)
    chosen = np.flatnonzero(np.isin(adata.var_names.astype(str), strings(run["genes"])))
    targets = adata.var_names.astype(str).to_numpy(dtype=object)[chosen]
    regulators = np.asarray(strings(run["regulators"]), dtype=object)
    if len(regulators) and key in adata.varm:
        return targets, regulators, np.asarray(adata.varm[key])[chosen, number]
    many = len(strings(run["groups"])) > 1
    held = sparse.csr_array(_held(adata, "varp", f"{key}_{number}" if many else key))
    return targets, targets, held[chosen][:, chosen].toarray()


def settings(
    run: Mapping[str, Any], key: str, group: str | None, setting: Setting | None
) -> list[tuple[str, str, int, int | None]]:
    """What to read: group, setting, its number, and the number of what is subtracted from it."""
    groups, control = strings(run["groups"]), str(run.get("control", ""))
    if setting is not None and setting not in SETTINGS:
        msg = f"setting is {setting!r}; {nearest(setting, SETTINGS)}"
        raise ValueError(msg)
    if setting is not None and not control:
        msg = f"{key!r} was made without a control, so it has no {setting!r} setting: "
        msg += f"{MAKERS[SLOTS.network].removesuffix(')')}, method=..., groupby=..., control=...), or setting=None"
        raise ValueError(msg)
    if group is not None and group not in groups:
        msg = f"{key!r} has no group {group!r}; {nearest(group, groups)}"
        raise KeyError(msg)
    wanted = [control] if setting == "control" else [name for name in groups if setting is None or name != control]
    if group is not None and group not in wanted:
        mend = "leave group= out" if setting == "control" else f"take one of {wanted}, or setting='control'"
        msg = f"group {group!r} has no {setting!r} setting, for the control is {control!r}: {mend}"
        raise ValueError(msg)
    base = groups.index(control) if setting == "difference" else None
    return [
        (name, setting or _named(name, control), groups.index(name), base) for name in wanted if group in (None, name)
    ]


def perturbed(adata: AnnData, key: str, group: str | None) -> str:
    """The perturbed group that is meant: the one named, or the only one."""
    found = settings(network(adata, key), key, group, "perturbed")
    if len(found) > 1:
        msg = f"{key!r} has the perturbed groups {', '.join(name for name, *_ in found)}: give group="
        raise ValueError(msg)
    return found[0][0]


def known(asked: Iterable[str], names: Iterable[str], key: str, what: str) -> list[str]:
    """`asked`, each once, or an error that names what `key` lacks."""
    asked, there = list(dict.fromkeys(asked)), set(names)
    missing = [name for name in asked if name not in there]
    if missing:
        near = dict.fromkeys(match for name in missing[:5] for match in get_close_matches(name, sorted(there), 1))
        said = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        meant = f" (did you mean {', '.join(near)}?)" if near else ""
        msg = f"{key!r} has no {what} {said}{meant}; it was made with {len(there):,}"
        raise KeyError(msg)
    return asked


def _named(group: str, control: str) -> str:
    return "" if not control else "control" if group == control else "perturbed"


def _held(adata: AnnData, slot: str, name: str) -> Any:
    held = getattr(adata, slot)
    if name not in held:
        msg = f"adata.{slot} has no {name!r}; {MAKERS[SLOTS.network]} makes it. There are {list(held.keys())}"
        raise KeyError(msg)
    return held[name]

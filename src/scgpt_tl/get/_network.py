"""A gene network in its slots: what was written, by which method, and its scores as arrays."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from scgpt_tl._nearest import nearest
from scgpt_tl._slots import MAKERS, NETWORK_MAKER, OWNER, SLOTS, is_ours
from scgpt_tl.get._result import result, strings

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

Setting = Literal["control", "perturbed", "difference"]
SETTINGS: tuple[Setting, ...] = ("control", "perturbed", "difference")
_FEW = 10  # names that a message lists


def network(adata: AnnData, key: str) -> Mapping[str, Any]:
    """`.uns[key]` of `tl.scgpt_grn`."""
    run = result(adata, key, default=SLOTS.network)
    if run.get(OWNER) != NETWORK_MAKER:
        ours = [name for name in adata.uns if is_ours(adata, key=name, maker=NETWORK_MAKER)]
        msg = f"adata.uns[{key!r}] is no gene network; {MAKERS[SLOTS.network]} makes one. Networks there: {ours}"
        raise KeyError(msg)
    return run


def pairs(adata: AnnData, key: str) -> sparse.coo_array:
    """Each pair of an undirected network once, as rows and columns of `.var`."""
    return sparse.coo_array(sparse.triu(sparse.csr_array(_held(adata, "varp", key)), k=1))


def scores(adata: AnnData, key: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets `(M,)` by name, regulators `(R,)` and scores `(M, R)` of one group; genes not chosen are left out.

    Regulators are in the order in which they were asked for; where all genes are regulators, by name.
    """
    run = network(adata, key)
    regulators = np.asarray(strings(run["regulators"]), dtype=object)
    if len(regulators) and key in adata.varm:
        wide = np.asarray(adata.varm[key])
        targets, chosen = _columns(adata, run, ~np.isnan(wide).all(axis=(1, 2)))
        first = np.sort(np.unique(regulators.astype(str), return_index=True)[1])
        return targets, regulators[first], wide[chosen, number][:, first]
    many = len(strings(run["groups"])) > 1
    held = sparse.csr_array(_held(adata, "varp", f"{key}_{number}" if many else key))
    targets, chosen = _columns(adata, run, np.diff(held.indptr) > 0)
    return targets, targets, held[chosen][:, chosen].toarray()


def names_there(adata: AnnData, key: str) -> list[str]:
    """Genes of a network that the data still have, told where that is not all of them.

    Raises
    ------
    KeyError
        None is there.
    """
    genes, there = strings(network(adata, key)["genes"]), set(adata.var_names.astype(str))
    absent = [name for name in genes if name not in there]
    if absent:
        msg = f"{len(absent):,} of the {len(genes):,} genes of {key!r} are not in adata.var_names ({_some(absent)}): "
        msg += "variables were renamed or left out after the run. Run scgpt_tl.tl.scgpt_grn again, or rename before it"
        if len(absent) == len(genes):
            raise KeyError(msg)
        logger.warning("%s", msg)
    return [name for name in genes if name in there]


def symbols(adata: AnnData, key: str) -> dict[str, str]:
    """What the model calls a gene -> its name in the data, where the two differ."""
    run = network(adata, key)
    found: dict[str, str] = {}
    for of, spelled in (("genes", "gene_symbols"), ("regulators", "regulator_symbols")):
        if spelled in run:
            found |= dict(zip(strings(run[spelled]), strings(run[of]), strict=True))
    return {symbol: name for symbol, name in found.items() if symbol and symbol != name}


def settings(
    run: Mapping[str, Any], key: str, group: object, setting: Setting | None
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
    group = None if group is None else str(group)  # names are text, as scgpt_grn keeps them
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


def perturbed(adata: AnnData, key: str, group: object) -> str:
    """The perturbed group that is meant: the one named, or the only one."""
    found = settings(network(adata, key), key, group, "perturbed")
    if len(found) > 1:
        msg = f"{key!r} has the perturbed groups {', '.join(name for name, *_ in found)}: give group="
        raise ValueError(msg)
    return found[0][0]


def known(
    asked: Iterable[str], names: Iterable[str], key: str, what: str, *, symbols: Mapping[str, str] | None = None
) -> list[str]:
    """`asked`, each once, or an error that names what `key` lacks; `symbols` are other spellings of the names."""
    names = list(dict.fromkeys(names))
    there = set(names)
    other = {symbol: name for symbol, name in (symbols or {}).items() if name in there}
    asked = named(asked, there, other)
    missing = [name for name in asked if name not in there]
    if missing:
        every = sorted({*there, *other})
        near = dict.fromkeys(match for name in missing[:5] for match in get_close_matches(name, every, 1))
        meant = f" (did you mean {', '.join(near)}?)" if near else ""
        spelled = {name: f"{name} ({symbol})" for symbol, name in other.items()}
        few = f": {', '.join(spelled.get(name, name) for name in names)}" if len(names) <= _FEW else ""
        msg = f"{key!r} has no {what} {_some(missing)}{meant}; it was made with {len(there):,}{few}"
        raise KeyError(msg)
    return asked


def named(asked: Iterable[str], names: Iterable[str], symbols: Mapping[str, str]) -> list[str]:
    """`asked`, each once, by their own names: those that are none of the names may be symbols of one."""
    there = set(names)
    return list(dict.fromkeys(name if name in there else symbols.get(name, name) for name in asked))


def _columns(adata: AnnData, run: Mapping[str, Any], held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Chosen genes `(M,)`, sorted, and their columns `(M,)`: of one name the first that is `held` `(n_vars,)`."""
    names = adata.var_names.to_numpy(dtype=str)
    chosen = np.flatnonzero(np.isin(names, strings(run["genes"])))
    chosen = chosen[np.argsort(~held[chosen], kind="stable")]
    found, first = np.unique(names[chosen], return_index=True)
    return found.astype(object), chosen[first]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (" ..." if len(names) > _FEW else "")


def _named(group: str, control: str) -> str:
    return "" if not control else "control" if group == control else "perturbed"


def _held(adata: AnnData, slot: str, name: str) -> Any:
    held = getattr(adata, slot)
    if name not in held:
        msg = f"adata.{slot} has no {name!r}; {MAKERS[SLOTS.network]} makes it. There are {list(held.keys())}"
        raise KeyError(msg)
    return held[name]

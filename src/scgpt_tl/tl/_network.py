"""What all methods of `tl.scgpt_grn` need to know first: its options, the genes of the network, the groups of cells."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgpt_tl._nearest import check_choice, nearest
from scgpt_tl.engine.predict import Compute
from scgpt_tl.metrics._checks import names as names_of
from scgpt_tl.tl._batches import _column
from scgpt_tl.tl._embed import ComputeOptions

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from scgpt_tl.engine.knockout import Effect
    from scgpt_tl.genes.match import GeneMatch

logger = logging.getLogger(__name__)

ALL = "all"  # in place of names: every gene that the model knows
METHODS = ("embedding", "attention", "knockout", "coexpression")
LEAST_GENES = 3
_SHOWN = 20  # names in a message
#: Which methods hear an option; those not listed are heard by all.
_HEARD = {
    **dict.fromkeys(("n_neighbors", "resolution", "flavor", "min_genes", "context"), ("embedding",)),
    "attention_layer": ("attention",),
    "effect": ("knockout",),
    "shuffled": ("embedding", "attention", "knockout"),
    "batch_key": ("embedding", "attention", "knockout"),
}
_CHOICES = {"flavor": ("igraph", "leidenalg"), "effect": ("prediction", "embedding")}


class GrnOptions(ComputeOptions, total=False):
    """Options of the methods, see `scgpt_grn`, and where and how to compute."""

    n_neighbors: int
    resolution: float | Sequence[float] | None
    flavor: str
    min_genes: int
    context: bool | str
    attention_layer: int
    effect: Effect
    shuffled: bool
    batch_key: str | None
    min_cells: int


@dataclass(frozen=True)
class Options:
    """The same, checked."""

    compute: Compute = field(default_factory=Compute)
    n_neighbors: int = 15
    resolution: tuple[float, ...] | None = None
    flavor: str = "igraph"
    min_genes: int = 5
    context: bool | str = False
    attention_layer: int = -1
    effect: Effect = "prediction"
    shuffled: bool = False
    batch_key: str | None = None
    min_cells: int = 10

    def __post_init__(self) -> None:
        for name, least in (("n_neighbors", 2), ("min_genes", 2), ("min_cells", 1)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least:
                msg = f"{name}={value!r}; give a whole number, {least} or more"
                raise ValueError(msg)
        layer: Any = self.attention_layer
        if not isinstance(layer, (int, np.integer)) or isinstance(layer, bool):
            msg = f"attention_layer={layer!r}; give a whole number (-1: the last)"
            raise ValueError(msg)
        if self.batch_key is not None:
            check_key("batch_key", self.batch_key)
        for name, among in _CHOICES.items():
            check_choice(name, getattr(self, name), among)
        if self.resolution is not None and not (self.resolution and all(0 < r < np.inf for r in self.resolution)):
            msg = f"resolution={self.resolution}; give a number above 0, or several"
            raise ValueError(msg)

    @classmethod
    def of(cls, method: str, given: Mapping[str, Any], *, beside: Iterable[str]) -> Options:
        """Build from keywords; what the method would not hear is refused, and an unknown one with the nearest name."""
        defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        own = {name: value for name, value in given.items() if name in defaults}
        rest = {name: value for name, value in given.items() if name not in defaults}
        if own.get("resolution") is not None:
            own["resolution"] = _numbers(own["resolution"])
        for name, value in own.items():
            heard = _HEARD.get(name, METHODS)
            if method not in heard and value != defaults[name]:
                msg = f"{name}= is heard by {' and '.join(map(repr, heard))} alone: leave it out with method={method!r}"
                raise ValueError(msg)
        compute = Compute.of(rest, beside=(*beside, *defaults))
        made = cls(compute=compute, **own)
        if method == "embedding" and made.batch_key is not None and made.context is False:
            msg = "batch_key= says how cells are read, and static gene embeddings need no cells: leave it out"
            raise ValueError(msg)
        return made

    def dtype_told(self, method: str, device: torch.device) -> str:
        """Type of matrix products; a knock-out takes float32 where none is asked for."""
        if method == "knockout" and self.compute.dtype == "auto":
            return "float32"
        return str(self.compute.torch_dtype(device)).removeprefix("torch.")

    def told(self, method: str) -> dict[str, Any]:
        """Those that the method hears and that results do not hold, in types that h5ad takes."""
        names = [f.name for f in fields(self) if method in _HEARD.get(f.name, METHODS)]
        values = {name: getattr(self, name) for name in names if name not in ("compute", "resolution")}
        return {name: "" if value is None else value for name, value in values.items()}


@dataclass(frozen=True)
class Nodes:
    """Genes of a network, in the order of the model's vocabulary: no result depends on the order of `.var`."""

    ids: np.ndarray
    """(M,) int64 vocabulary ids, ascending."""
    columns: np.ndarray
    """(M,) int64 column of the data that stands for each."""
    column_ids: np.ndarray
    """(n_vars,) int64 id of every column of these genes, -1: of none."""
    regulators: np.ndarray | None
    """(R,) int64 places among the genes, in the order they were asked for; None: all are looked at."""

    @property
    def places(self) -> np.ndarray:
        """(n_vars,) int64 which of the genes each column is, -1: none."""
        return np.where(self.column_ids >= 0, np.searchsorted(self.ids, self.column_ids), -1)

    @property
    def stands(self) -> np.ndarray:
        """(n_vars,) int64 column that stands for each: that of its gene, or itself."""
        places = self.places
        return np.where(places >= 0, self.columns[places], np.arange(len(places)))

    def only(self, kept: np.ndarray) -> Nodes:
        """Some of them, (M,) bool; of a network without regulators."""
        ids = self.ids[kept]
        return replace(
            self,
            ids=ids,
            columns=self.columns[kept],
            column_ids=np.where(np.isin(self.column_ids, ids), self.column_ids, -1),
        )


def check_key(name: str, key: Any) -> None:
    """Refuse what names no column."""
    if not isinstance(key, str):
        msg = f"{name}={key!r}; give the name of one column of .obs"
        raise ValueError(msg)


def nodes_of(
    adata: AnnData, match: GeneMatch, *, genes: Iterable[str] | None, regulators: Iterable[str] | None
) -> tuple[Nodes, str]:
    """The genes of a network and, in words, how they were chosen.

    Raises
    ------
    ValueError
        Fewer than three are left, or no regulator.
    """
    chosen, how = _chosen(adata, match, genes)
    unknown = chosen[match.ids[chosen] < 0]
    if len(unknown) and not how.startswith("all"):
        names = listed(adata.var_names[unknown])
        logger.warning("%d genes are not in the model's vocabulary and are left out: %s", len(unknown), names)
    known, asked = chosen[match.ids[chosen] >= 0], None
    if regulators is not None:
        asked = _found(adata, match, regulators, "regulators")
        asked = asked[match.ids[asked] >= 0]
        known = np.union1d(known, asked)
    columns = _one_each(adata, match, known)
    ids = match.ids[columns]
    if len(ids) < LEAST_GENES:
        msg = (
            f"{len(ids)} genes are left of {how}; a network needs {LEAST_GENES} or more that the data and the model's "
            "vocabulary both have: name others with genes=, or mark them with scgpt_tl.pp.select_genes(adata)"
        )
        raise ValueError(msg)
    places = None
    if asked is not None:
        places = np.searchsorted(ids, list(dict.fromkeys(match.ids[asked].tolist())))
    column_ids = np.where(np.isin(match.ids, ids), match.ids, -1)
    return Nodes(ids, columns, column_ids, places), how


def _chosen(adata: AnnData, match: GeneMatch, genes: Iterable[str] | None) -> tuple[np.ndarray, str]:
    """Columns (n,) that were chosen, and how."""
    everything = isinstance(genes, str) and genes == ALL
    if genes is not None and not everything:
        found = _found(adata, match, genes, "genes")
        return found, f"the {len(found):,} of genes="
    if not everything and "highly_variable" in adata.var:
        marked = _marked(adata.var["highly_variable"])
        return marked, f'the {len(marked):,} of .var["highly_variable"]'
    return np.flatnonzero(match.ids >= 0), f"all {adata.n_vars:,} genes"


def _marked(column: pd.Series) -> np.ndarray:
    """Columns (n,) of the marked genes; a missing mark is none.

    Raises
    ------
    ValueError
        Text, or other numbers than 0 and 1.
    """
    held = column.astype(object)
    odd = [value for value in pd.unique(held.dropna()) if isinstance(value, str) or value not in (0, 1)]
    if odd:
        msg = (
            f'.var["highly_variable"] holds {listed(map(repr, odd[:3]))}, no marks: make it boolean, as in '
            'adata.var["highly_variable"].astype(str) == "True"'
        )
        raise ValueError(msg)
    return np.flatnonzero(held.where(held.notna(), other=False).to_numpy(dtype=bool))


def _found(adata: AnnData, match: GeneMatch, names: Iterable[str], argument: str) -> np.ndarray:
    """Columns (n,) of genes by name, of a variable or of the vocabulary; those not to be had are told.

    Raises
    ------
    ValueError
        None is to be had, or a mask.
    """
    given = [names] if isinstance(names, str) else list(names)
    if any(isinstance(name, (bool, np.bool_)) for name in given):
        msg = f"{argument}= is a mask of booleans, and takes names: give {argument}=adata.var_names[mask]"
        raise ValueError(msg)
    asked = list(dict.fromkeys(map(str, given)))
    place: dict[str, int] = {}
    for source in (adata.var_names, match.names):
        for column, name in enumerate(map(str, source)):
            if name:
                place.setdefault(name, column)
    absent = [name for name in asked if name not in place]
    outside = [name for name in asked if name in place and match.ids[place[name]] < 0]
    reasons = [
        f"{what}: {listed(lost)}"
        for what, lost in (("not in the data", absent), ("not in the model's vocabulary", outside))
        if lost
    ]
    if len(absent) + len(outside) == len(asked):
        near = f"; {nearest(absent[0], place)}" if len(absent) == 1 and len(place) > _SHOWN else ""
        why = "; ".join(reasons) or "none was named"
        msg = f"{argument}=: none of the {len(asked)} named can be used ({why}){near}"
        raise ValueError(msg)
    if reasons:
        logger.warning("%s= that are left out, %s", argument, "; ".join(reasons))
    return np.array([place[name] for name in asked if name not in {*absent, *outside}], dtype=np.int64)


def _one_each(adata: AnnData, match: GeneMatch, columns: np.ndarray) -> np.ndarray:
    """One column (M,) for each gene, by ascending id: the one of its very name, else the first by name."""
    names = adata.var_names.to_numpy(dtype=str)
    rank = sorted(columns.tolist(), key=lambda i: (match.ids[i], names[i] != match.names[i], names[i], i))
    order = np.array(rank, dtype=np.int64)
    first = np.diff(match.ids[order], prepend=-1) > 0
    if not first.all():
        twice = np.unique(match.ids[order[~first]])
        kept = [f"{match.names[i]} (by {str(names[i])!r})" for i in order[first] if match.ids[i] in twice]
        logger.warning(
            "%d genes stand in several columns: values are summed, and results lie at one of these: %s",
            len(kept), listed(kept),
        )  # fmt: skip
    return order[first]


def listed(names: Iterable[Any]) -> str:
    """The first of them."""
    names = list(map(str, names))
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")


def _numbers(given: Any) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(x) for x in np.atleast_1d(given)))
    except (TypeError, ValueError):
        msg = f"resolution={given!r}; give a number above 0, or several"
        raise ValueError(msg) from None


@dataclass(frozen=True)
class Groups:
    """Which group each cell is of."""

    names: tuple[str, ...]
    codes: np.ndarray
    """(n_obs,) int64 place among the names, -1: none."""
    control: str = ""
    """One of the names, or ""."""

    @property
    def counts(self) -> np.ndarray:
        """(n_groups,) int64 cells of each."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))


def groups_of(adata: AnnData, groupby: str | None, control: str | None, *, min_cells: int) -> Groups:
    """Groups of at least so many cells, in the order of their categories, else sorted.

    Raises
    ------
    KeyError
        No such column.
    ValueError
        Measurements, no such control, a control or all groups too small, no group beside the control.
    """
    if groupby is None:
        if control is not None:
            msg = f"control={control!r} names a group, and groupby= no column of .obs that holds it"
            raise ValueError(msg)
        _check_cells({"all": adata.n_obs}, "the data", min_cells)
        return Groups(("all",), np.zeros(adata.n_obs, np.int64))
    check_key("groupby", groupby)
    column = names_of(_column(adata, groupby, "groupby", "groups"))
    held = set(column) - {None}
    if n := int(pd.isna(column).sum()):
        logger.warning("%d of %d cells have no group in %r and are left out", n, adata.n_obs, groupby)
    order = getattr(adata.obs[groupby].dtype, "categories", None)
    names = sorted(held) if order is None else list(dict.fromkeys(name for name in names_of(order) if name in held))
    codes = pd.Categorical(column, categories=names).codes.astype(np.int64)
    sizes = dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))
    named = None if control is None else names_of([control])[0]
    if control is not None and named not in sizes:
        near = nearest(control, names[:_SHOWN])
        msg = f"control={control!r} is no group of .obs[{groupby!r}]; {near} (groups: {listed(names)})"
        raise ValueError(msg)
    _check_cells(sizes, f".obs[{groupby!r}]", min_cells, control=named)
    kept = [name for name in names if sizes[name] >= min_cells]
    place = np.array([kept.index(name) if name in kept else -1 for name in names] + [-1], np.int64)
    return Groups(tuple(kept), place[codes], named or "")


def _check_cells(sizes: Mapping[str, int], where: str, least: int, *, control: str | None = None) -> None:
    """Refuse groups that are too small to say anything, or tell which are left out."""
    small = {name: n for name, n in sizes.items() if n < least}
    said = ", ".join(f"{name!r} ({n})" for name, n in [*small.items()][:_SHOWN])
    mend = f"; min_cells={least} is the least: join groups, or give a smaller min_cells"
    if len(small) == len(sizes):
        msg = f"no group of {where} has enough cells: {said or 'no cell has one'}{mend}"
        raise ValueError(msg)
    if control is not None and control in small:
        msg = f"the control {control!r} has {sizes[control]} cells{mend}"
        raise ValueError(msg)
    if control is not None and len(sizes) - len(small) == 1:
        msg = f"beside the control {control!r} no group of {where} has enough cells: {said or 'there is none'}{mend}"
        raise ValueError(msg)
    if small:
        logger.warning("groups of fewer than min_cells=%d cells are left out: %s", least, said)

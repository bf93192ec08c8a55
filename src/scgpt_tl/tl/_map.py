"""`tl.scgpt_map`: cells among those of a labelled reference, without training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from scgpt_tl._random import as_seed
from scgpt_tl._slots import (
    OWNER,
    SLOTS,
    UNKNOWN,
    check_anndata,
    copied,
    is_ours,
    refuse_backed_view,
    refuse_embed_s,
    refuse_foreign,
)
from scgpt_tl.engine.mapping import KEPT, QUANTILE, Voting, distance
from scgpt_tl.engine.neighbors import label_votes
from scgpt_tl.engine.predict import Compute
from scgpt_tl.engine.reference import read
from scgpt_tl.engine.search import check_index, chosen, search
from scgpt_tl.engine.twins import as_groups, found_in, seen
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._build_reference import reference_of
from scgpt_tl.tl._columns import Columns
from scgpt_tl.tl._embed_slots import EMBED_MAKER, EmbedKeys
from scgpt_tl.tl._reference import shared_genes, whose
from scgpt_tl.tl._space import Space, as_embedded

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.engine.reference import Reference
    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._embed import ComputeOptions

logger = logging.getLogger(__name__)
_MAKER = "tl.scgpt_map"
_DECIDES = ("weights_sha256", "seed", "max_length", "unit_norm")  # whether two embeddings lie in one space
_K = 15


@dataclass(frozen=True)
class _Keys:
    """Where this call writes."""

    label: str
    probability: str
    distance: str
    neighbors: str
    cells: str

    @classmethod
    def of(cls, key_added: str | None) -> _Keys:
        """The default keys, or those made of one name."""
        if key_added is None:
            s = SLOTS
            return cls(s.mapped, s.mapped_probability, s.mapped_distance, s.mapped_neighbors, s.embedding)
        k = key_added
        return cls(k, f"{k}_probability", f"{k}_distance", f"{k}_neighbors", k)

    @property
    def obs(self) -> tuple[str, ...]:
        """Of `.obs`."""
        return self.label, self.probability, self.distance

    def earlier(self, query: AnnData) -> dict[str, tuple[str, ...]]:
        """What a run of ours has written here before, `tl.scgpt_embed`'s places apart."""
        if not is_ours(query, key=self.label, maker=_MAKER):
            return {}
        obs = self.obs if "n_unknown" in query.uns[self.label] else (self.distance,)
        obsm = (self.neighbors,) if self.as_embed else (self.neighbors, self.cells)
        return {"obs": obs, "obsm": obsm, "uns": (self.label,)}

    @property
    def as_embed(self) -> bool:
        """Whether the embedding is written as and where `tl.scgpt_embed` writes it."""
        return self.cells == SLOTS.embedding


def scgpt_map(  # noqa: PLR0913 (each is a choice of its own; how to compute is grouped)
    query: AnnData,
    reference: AnnData | str | Path,
    *,
    labels_key: str | None = None,
    batch_key: str | None = None,
    model: str | Path | Model | None = None,
    layer: str | None = None,
    k: int = _K,
    index: str = "auto",
    key_added: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
    rng: int | np.random.Generator = 0,
    **compute: Unpack[ComputeOptions],
) -> AnnData | None:
    """Place cells among those of a reference, and give them the labels of their neighbours; nothing is trained.

    Both are embedded by one model, zero-shot. The `k` nearest labelled cells of the reference (by cosine) vote, nearer
    ones louder: temperature and prior of the votes are those that make the labels of the reference's own cells
    likeliest, each asked about as if it were new. A cell that lies farther from its five nearest than 99 % of the
    reference's own cells of that label do is "unknown". That finds cells unlike all of the reference (another tissue,
    a lost type that stands apart); a missing type that resembles one that is there is given that one's name. A cell
    that is in the reference itself, under any name, does not vote for itself.

    Parameters
    ----------
    query
        Cells to place: counts or normalised values, in memory or backed.
    reference
        Folder of `tl.build_reference`, or an AnnData that is embedded here.
    labels_key
        Column of `reference.obs` with the labels; a folder has its own. Cells of the reference without a label do not
        vote. None, of an AnnData: places alone, no labels.
    batch_key
        Column of `reference.obs` with batches or donors, by which distances are judged, see `tl.build_reference`; a
        folder has its own.
    model
        Name, folder or loaded model. None: the folder's own, or `pbmc-mini`.
    layer
        Layer to read, in the query and in a reference that is an AnnData; None is `.X`.
    k
        Neighbours that vote, at most 50.
    index
        "exact" reads the reference in blocks; "approximate": faiss (extra `faiss`) or else pynndescent, built at each
        call, which pays beyond some million cells and holds all that vote in memory (0.5 GB for a million cells of 128
        numbers; pynndescent a graph besides); "auto": exact up to two million cells or without faiss, else faiss.
    key_added
        Write under this key instead of the defaults below.
    overwrite
        Write over slots that hold something else.
    copy
        Return a changed copy and leave `query` alone.
    rng
        Seed, where the reference is an AnnData; a folder has its own.
    **compute
        As for `tl.scgpt_embed`: `device`, `dtype` ("auto": as the cells of a folder were embedded), `max_memory`,
        `max_tokens`, `progress`.

    Returns
    -------
    None, or with `copy` the copy. Sets, when all is done:

    `.obs["scgpt_mapped"]` : category (n_obs,)
        The label with most votes, or "unknown": too far from the reference, or without any gene of the model. Its
        categories are the labels that occur, and "unknown".
    `.obs["scgpt_mapped_probability"]` : float32 (n_obs,)
        Of that label by the votes, called or not.
    `.obs["scgpt_mapped_distance"]` : float32 (n_obs,)
        Mean cosine distance of the five nearest cells that vote.
    `.obsm["scgpt_mapped_neighbors"]` : int64 (n_obs, k)
        Their rows in the reference (cells that were added count on), nearest first; -1 where fewer than k can vote for
        a cell, or an index found fewer.
    `.obsm["X_scGPT"]` : float32 (n_obs, D)
        The cells in the reference's space, as `tl.scgpt_embed` writes them, with `.varm["scGPT"]` and `.uns["scgpt"]`.
        Results of another model, seed or length are left, and a warning says so; `overwrite` replaces them.
    `.uns["scgpt_mapped"]` : dict
        `classes`, `threshold` (float64 (C,), of distances, by class; (1,) without labels), `temperature`, `prior`,
        `n_unknown`, `n_same` (cells that are in the reference themselves), `params`.

    Without labels the first two are not written. With `key_added=x`: `x`, `x_probability`, `x_distance`, `.obsm["x"]`
    (the embedding), `.obsm["x_neighbors"]`, `.uns["x"]`.

    Raises
    ------
    ValueError
        Cells that cannot be embedded, another model than the reference's, too few genes shared, k out of range, an
        unknown index, a reference that was changed, a slot that holds something else.
    KeyError
        No such column or layer.
    FileNotFoundError
        No such reference or model, or half of one.
    ImportError
        `index="approximate"` without a package that makes one.

    Examples
    --------
    >>> scgpt_tl.tl.scgpt_map(query, reference, labels_key="cell_type")
    >>> scgpt_tl.tl.scgpt_map(tomorrow, "atlas")
    """
    how, keys = Compute.of(compute, beside=_ARGUMENTS), _Keys.of(key_added)
    check_index(index)
    refuse_embed_s(key_added)
    _check_places(query, keys, overwrite=overwrite, copy=copy)
    columns = {"labels_key": labels_key, "batch_key": batch_key}
    opened = _opened(query, reference, columns, model, layer=layer, seed=as_seed(rng))
    space, search_by = opened.space, chosen(index, opened.n_cells)
    _check_k(k, opened.voters)
    shared_genes(genes_of(query, space.model.vocab).ids, opened.genes, what="reference")
    held = opened.make(how=how)
    how = as_embedded(how, held)
    cells = np.empty((query.n_obs, space.model.config.d_model), np.float32)
    made = space.embed(query, cells, layer=layer, compute=how)
    groups = as_groups(made.keys), seen(held.keys, held.codes)
    found = search(cells, held.embedding, k, index=index, groups=groups)
    voting = Voting.fit(held.sample, min(k, held.sample.distances.shape[1]), max(1, len(held.about.classes)))
    told = {"k": k, "index": search_by, "layer": "X" if layer is None else layer}
    told |= {"reference": "" if held.folder is None else str(held.folder), "n_reference": held.n_cells}
    slots = _slots(query, keys, held, voting, found, made.empty)
    slots["uns"][keys.label] |= {"n_same": _same(made.keys, held), "params": made.entry["params"] | told}
    slots["obsm"] |= {keys.neighbors: found[1]}
    if not keys.as_embed:
        slots["obsm"][keys.cells] = cells
    elif _may_write(query, made.entry, overwrite=overwrite):
        slots["obsm"][keys.cells] = cells
        slots["varm"] = {SLOTS.gene_embedding: space.gene_embeddings(made.match)}
        slots["uns"][SLOTS.run] = made.entry
    if copy:
        query = copied(query)
    _write(query, keys, slots)
    return query if copy else None


#: Names that a misspelt argument may have meant.
_ARGUMENTS = tuple(name for name in scgpt_map.__kwdefaults__ or ())


def _check_places(query: Any, keys: _Keys, *, overwrite: bool, copy: bool) -> None:
    """Refuse what could not be written at the end, or would write over something else."""
    check_anndata(query, "query")
    slots = {"obs": keys.obs, "obsm": (keys.neighbors,), "uns": (keys.label,)}
    how: dict[str, Any] = {"overwrite": overwrite, "argument": "key_added"}
    own = how | {"key": keys.label, "maker": _MAKER, "earlier": keys.earlier(query)}
    refuse_foreign(query, slots, **own)
    if keys.label == SLOTS.label:
        msg = f"key_added={keys.label!r} is where tl.scgpt_annotate writes: give another name"
        raise ValueError(msg)
    if keys.as_embed:
        embed = EmbedKeys.of()
        slots, earlier = embed.places(cells=True, context=False), embed.earlier(query)
        refuse_foreign(query, slots, key=embed.run, maker=EMBED_MAKER, earlier=earlier, **how)
    else:
        refuse_foreign(query, {"obsm": (keys.cells,)}, **own)
    refuse_backed_view(query, "query", copy=copy)


@dataclass(frozen=True)
class _Opened:
    """A reference as far as it is known before it is embedded."""

    space: Space
    n_cells: int
    voters: int
    """Cells that can vote."""
    genes: np.ndarray
    """Vocabulary ids, -1: none."""
    make: Callable[..., Reference]
    """Takes `how=`."""


def _opened(
    query: AnnData, reference: Any, columns: dict[str, str | None], model: Any, *, layer: str | None, seed: int
) -> _Opened:
    """Both sides, looked at before anything is embedded."""
    if isinstance(reference, (str, Path)):
        if Path(reference).is_file():
            msg = f"reference={str(reference)!r} is a file; read it: anndata.read_h5ad(path, backed='r')"
            raise ValueError(msg)
        held = read(reference)
        for name, given in columns.items():
            if given not in (None, kept := getattr(held.about, name)):
                msg = f"{name}={given!r}: the reference was built with {kept!r}; leave it out"
                raise ValueError(msg)
        space = Space.of_reference(held, model)
        space.check(query, layer)
        voters = held.n_cells if held.codes is None else int((held.codes >= 0).sum())
        return _Opened(space, held.n_cells, voters, space.model.vocab.ids(list(held.about.genes)), lambda **_: held)
    check_anndata(reference, "reference")
    space = Space.of("pbmc-mini" if model is None else model, seed=seed)
    for side, adata in (("query", query), ("reference", reference)):
        with whose(side):
            space.check(adata, layer)
    known = Columns.of(reference, columns["labels_key"], columns["batch_key"])
    make = partial(reference_of, reference, known, space, layer=layer)
    genes = genes_of(reference, space.model.vocab).ids
    return _Opened(space, reference.n_obs, int((known.voters >= 0).sum()), genes, make)


def _check_k(k: Any, voters: int) -> None:
    most = min(KEPT, voters)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= most:
        msg = f"k={k!r}: the reference has {voters:,} cells that can vote, and {KEPT} are the most; give 1 to {most}"
        raise ValueError(msg)


def _same(keys: np.ndarray, held: Reference) -> int:
    """How many of the cells are in the reference themselves."""
    n = int(found_in(keys, held.keys).sum())
    if n:
        logger.warning(
            "%s of %s cells of the query have the content of a cell of the reference, and are taken for the same: they "
            "do not vote for themselves",
            f"{n:,}",
            f"{len(keys):,}",
        )
    return n


def _slots(
    query: AnnData,
    keys: _Keys,
    held: Reference,
    voting: Voting,
    found: tuple[np.ndarray, np.ndarray],
    empty: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """What is to be written of the calls, slot by slot."""
    distances, rows = found
    classes = np.array(held.about.classes, dtype=str)
    obs: dict[str, Any] = {}
    uns = {OWNER: _MAKER, "classes": classes, "threshold": voting.thresholds, "quantile": QUANTILE}
    if held.codes is not None:
        probabilities = voting.probabilities(distances, label_votes(held.codes, rows))
        codes = voting.codes(probabilities, distances)
        codes[empty] = -1
        labels = pd.Categorical.from_codes(np.where(codes < 0, len(classes), codes), [*classes, UNKNOWN])
        absent = [name for name in labels.categories if name != UNKNOWN and name not in set(labels)]
        obs[keys.label] = pd.Series(labels.remove_categories(absent), index=query.obs_names)
        obs[keys.probability] = probabilities.max(axis=1)
        uns |= {"temperature": voting.temperature, "prior": voting.prior, "n_unknown": int((codes < 0).sum())}
    obs[keys.distance] = distance(distances)
    return {"obs": obs, "obsm": {}, "varm": {}, "uns": {keys.label: uns}}


def _may_write(query: AnnData, entry: dict[str, Any], *, overwrite: bool) -> bool:
    """Whether the embedding may take the place of one of ours: only of the same one, unless it may go."""
    if overwrite or not is_ours(query, key=SLOTS.run, maker=EMBED_MAKER):
        return True
    held = query.uns[SLOTS.run]["params"]
    differ = [name for name in _DECIDES if held.get(name) != entry["params"][name]]
    if differ:
        logger.warning(
            ".obsm[%r] has another %s than the reference's cells, and is left as it is: key_added=, or overwrite=True, "
            "writes the cells in the reference's space",
            SLOTS.embedding,
            ", ".join(differ),
        )
    elif "groups" in query.uns[SLOTS.run]:  # contextual embeddings of the same run stay
        entry["groups"] = query.uns[SLOTS.run]["groups"]
    return not differ


def _write(query: AnnData, keys: _Keys, slots: dict[str, dict[str, Any]]) -> None:
    """All that was made; nothing of an earlier run of ours may stand beside it."""
    for name in keys.earlier(query).get("obs", ()):
        if name in query.obs:
            del query.obs[name]
    if "groups" not in slots["uns"].get(SLOTS.run, {"groups": None}):
        EmbedKeys.of().drop_earlier(query)
    for slot, values in slots.items():
        for name, value in values.items():
            getattr(query, slot)[name] = value

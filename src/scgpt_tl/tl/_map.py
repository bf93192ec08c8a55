"""`tl.scgpt_map`: cells among those of a labelled reference, without training."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd

from scgpt_tl._random import as_seed, name_keys
from scgpt_tl._slots import OWNER, SLOTS, UNKNOWN, copied, is_ours, refuse_foreign
from scgpt_tl.engine.mapping import KEPT, QUANTILE, Voting, distance
from scgpt_tl.engine.neighbors import distances_to, label_votes
from scgpt_tl.engine.predict import Compute
from scgpt_tl.engine.reference import read
from scgpt_tl.engine.search import check_index, chosen, search
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._build_reference import reference_of
from scgpt_tl.tl._columns import check_data
from scgpt_tl.tl._reference import shared_genes
from scgpt_tl.tl._space import Space

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.engine.reference import Reference
    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._embed import ComputeOptions

logger = logging.getLogger(__name__)
_MAKER = "tl.scgpt_map"
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

    @property
    def as_embed(self) -> bool:
        """Whether the embedding is written as and where `tl.scgpt_embed` writes it."""
        return self.cells == SLOTS.embedding


def scgpt_map(  # noqa: PLR0913 (each is a choice of its own; how to compute is grouped)
    query: AnnData,
    reference: AnnData | str | Path,
    *,
    labels_key: str | None = None,
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
    a lost type that stands apart); a missing type that resembles one that is there is given that one's name.

    Parameters
    ----------
    query
        Cells to place: counts or normalised values, in memory or backed.
    reference
        Folder of `tl.build_reference`, or an AnnData that is embedded here.
    labels_key
        Column of `reference.obs` with the labels; a folder has its own. Cells of the reference without a label do not
        vote. None, of an AnnData: places alone, no labels.
    model
        Name, folder or loaded model. None: the folder's own, or `pbmc-mini`.
    layer
        Layer to read, in the query and in a reference that is an AnnData; None is `.X`.
    k
        Neighbours that vote, at most 50.
    index
        "exact"; "approximate": faiss (extra `faiss`) or pynndescent, built at each call, which pays beyond some million
        cells; "auto": exact up to two million cells of the reference.
    key_added
        Write under this key instead of the defaults below.
    overwrite
        Write over slots that hold something else.
    copy
        Return a changed copy and leave `query` alone.
    rng
        Seed, where the reference is an AnnData; a folder has its own.
    **compute
        As for `tl.scgpt_embed`: `device`, `dtype`, `max_memory`, `max_tokens`, `progress`.

    Returns
    -------
    None, or with `copy` the copy. Sets, when all is done:

    `.obs["scgpt_mapped"]` : category (n_obs,)
        The label with most votes, or "unknown": too far from the reference, or without any gene of the model.
    `.obs["scgpt_mapped_probability"]` : float32 (n_obs,)
        Of that label by the votes, called or not.
    `.obs["scgpt_mapped_distance"]` : float32 (n_obs,)
        Mean cosine distance of the five nearest cells that vote.
    `.obsm["scgpt_mapped_neighbors"]` : int64 (n_obs, k)
        Their rows in the reference (cells that were added count on), nearest first.
    `.obsm["X_scGPT"]` : float32 (n_obs, D)
        The cells in the reference's space, as `tl.scgpt_embed` writes them, with `.varm["scGPT"]` and `.uns["scgpt"]`.
    `.uns["scgpt_mapped"]` : dict
        `classes`, `threshold` (float64, one for each class), `temperature`, `prior`, `n_unknown`, `n_same`, `params`.

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
    _check_places(query, keys, overwrite=overwrite, copy=copy)
    held, space = _opened(query, reference, labels_key, model, layer=layer, how=how, seed=as_seed(rng))
    _check_k(k, held)
    vocab = space.model.vocab
    shared_genes(genes_of(query, vocab).ids, vocab.ids(list(held.about.genes)), what="reference")
    cells = np.empty((query.n_obs, space.model.config.d_model), np.float32)
    made = space.embed(query, cells, layer=layer, compute=how)
    own = _same_cells(query, cells, held, index)
    distances, rows = search(cells, held.embedding, k, index=index, own=own, labels=held.codes)
    voting = Voting.fit(held.sample, min(k, held.sample.distances.shape[1]), max(1, len(held.about.classes)))
    told = {"k": k, "index": chosen(index, held.n_cells), "layer": "X" if layer is None else layer}
    told |= {"reference": "" if held.folder is None else str(held.folder), "n_reference": held.n_cells}
    if copy:
        query = copied(query)
    _clear(query, keys)
    query.uns[keys.label] = _write_calls(query, keys, held, voting, (distances, rows), made.empty) | {
        "n_same": 0 if own is None else int((own >= 0).sum()),
        "params": made.entry["params"] | told,
    }
    query.obsm[keys.neighbors] = rows
    query.obsm[keys.cells] = cells
    if keys.as_embed:
        query.varm[SLOTS.gene_embedding] = space.gene_embeddings(made.match)
        query.uns[SLOTS.run] = made.entry
    return query if copy else None


#: Names that a misspelt argument may have meant.
_ARGUMENTS = tuple(name for name in scgpt_map.__kwdefaults__ or ())


def _check_places(query: Any, keys: _Keys, *, overwrite: bool, copy: bool) -> None:
    """Refuse what could not be written at the end, or would write over something else."""
    if not (hasattr(query, "obsm") and hasattr(query, "varm") and hasattr(query, "isbacked")):
        msg = f"query is {type(query).__name__}; AnnData is expected (of a MuData, one modality: mdata['rna'])"
        raise TypeError(msg)
    slots = {"obs": keys.obs, "obsm": (keys.neighbors,), "uns": (keys.label,)}
    refuse_foreign(query, slots, key=keys.label, maker=_MAKER, overwrite=overwrite, argument="key_added")
    if keys.as_embed:
        slots = {"obsm": (keys.cells,), "varm": (SLOTS.gene_embedding,), "uns": (SLOTS.run,)}
        key, maker = SLOTS.run, "tl.scgpt_embed"
    else:
        slots, key, maker = {"obsm": (keys.cells,)}, keys.label, _MAKER
    refuse_foreign(query, slots, key=key, maker=maker, overwrite=overwrite, argument="key_added")
    if query.is_view and query.isbacked and not copy:
        msg = "query is a view of a backed object, which takes no results: give copy=True, or query.to_memory()"
        raise ValueError(msg)


def _opened(
    query: AnnData, reference: Any, labels_key: str | None, model: Any, *, layer: str | None, how: Compute, seed: int
) -> tuple[Reference, Space]:
    """The reference and its space; the query is looked at before a reference is embedded."""
    if isinstance(reference, (str, Path)):
        if Path(reference).is_file():
            msg = f"reference={str(reference)!r} is a file; read it: anndata.read_h5ad(path, backed='r')"
            raise ValueError(msg)
        held = read(reference)
        if labels_key not in (None, held.about.labels_key):
            msg = f"labels_key={labels_key!r}: the reference was built with {held.about.labels_key!r}; leave it out"
            raise ValueError(msg)
        space = Space.of_reference(held, model)
        space.check(query, layer)
        return held, space
    check_data(reference)
    space = Space.of("pbmc-mini" if model is None else model, seed=seed)
    space.check(query, layer)
    return reference_of(reference, labels_key, space, layer=layer, how=how), space


def _check_k(k: Any, held: Reference) -> None:
    voters = held.n_cells if held.codes is None else int((held.codes >= 0).sum())
    most = min(KEPT, voters)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= most:
        msg = f"k={k!r}: the reference has {voters:,} cells that can vote, and {KEPT} are the most; give 1 to {most}"
        raise ValueError(msg)


def _same_cells(query: AnnData, cells: np.ndarray, held: Reference, index: str) -> np.ndarray | None:
    """(n_obs,) row of the reference that a cell itself is, -1 where it is none; None where there are none.

    The same name, and nearest of all: names are given twice by chance, and places move a little where values were
    divided by something, since ties are then drawn anew.
    """
    names = name_keys(query.obs_names)
    order = np.argsort(held.names, kind="stable")
    place = order[np.minimum(np.searchsorted(held.names, names, sorter=order), held.n_cells - 1)]
    rows = np.where(held.names[place] == names, place, -1)
    asked = np.flatnonzero(rows >= 0)
    if not len(asked):
        return None
    distances, first = search(cells[asked], held.embedding, 1, index=index)
    at_it = distances_to(cells[asked], held.embedding, rows[asked, None]) <= distances
    rows[asked[~(at_it | (first == rows[asked, None]))[:, 0]]] = -1
    n = int((rows >= 0).sum())
    if not n:
        return None
    logger.warning(
        "%s of %s cells of the query have the name of the cell of the reference that is nearest to them, and are taken "
        "for the same: they do not vote for themselves",
        f"{n:,}",
        f"{query.n_obs:,}",
    )
    return rows


def _clear(query: AnnData, keys: _Keys) -> None:
    """Take away what an earlier run of ours left: nothing of it may stand beside this one."""
    if is_ours(query, key=keys.label, maker=_MAKER):
        for name in keys.obs:
            if name in query.obs:
                del query.obs[name]
    if keys.as_embed and is_ours(query, key=SLOTS.run, maker="tl.scgpt_embed"):
        query.varm.pop(SLOTS.gene_context, None)


def _write_calls(
    query: AnnData,
    keys: _Keys,
    held: Reference,
    voting: Voting,
    found: tuple[np.ndarray, np.ndarray],
    empty: np.ndarray,
) -> dict[str, Any]:
    """Columns of `.obs`, and what `.uns` says of them."""
    distances, rows = found
    far = distance(distances)
    classes = list(held.about.classes)
    result: dict[str, Any] = {OWNER: _MAKER, "classes": np.array(classes, dtype=str)}
    result |= {"threshold": voting.thresholds, "quantile": QUANTILE}
    if held.codes is not None:
        probabilities = voting.probabilities(distances, label_votes(held.codes, rows))
        codes = voting.codes(probabilities, distances)
        codes[empty] = -1
        called = np.where(codes < 0, len(classes), codes)
        labels = pd.Categorical.from_codes(called, categories=[*classes, UNKNOWN])
        query.obs[keys.label] = pd.Series(labels, index=query.obs_names)
        query.obs[keys.probability] = probabilities.max(axis=1)
        result |= {"temperature": voting.temperature, "prior": voting.prior, "n_unknown": int((codes < 0).sum())}
    query.obs[keys.distance] = far
    return result

"""`tl.build_reference`: labelled cells as a folder to which others are mapped."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from scgpt_tl._files import clear_stale, replacing
from scgpt_tl._random import as_seed
from scgpt_tl._slots import check_anndata
from scgpt_tl.engine.mapping import Sample
from scgpt_tl.engine.predict import Compute
from scgpt_tl.engine.reference import (
    HEAD,
    MODEL,
    About,
    ArrayFile,
    Head,
    Reference,
    Shards,
    batches_of,
    merged,
    read,
    with_genes,
    write_sample,
    write_shard,
)
from scgpt_tl.engine.twins import found_in
from scgpt_tl.models._folder import check_place, locked, written_beside
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._columns import Columns
from scgpt_tl.tl._reference import shared_genes
from scgpt_tl.tl._space import Embedded, Space, as_embedded

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._embed import ComputeOptions

logger = logging.getLogger(__name__)
_NEARLY_ALL = 0.9  # of the cells to add: then the same were given again


def build_reference(
    data: AnnData,
    *,
    out: str | Path,
    labels_key: str | None = None,
    batch_key: str | None = None,
    model: str | Path | Model | None = None,
    layer: str | None = None,
    append: bool = False,
    overwrite: bool = False,
    rng: int | np.random.Generator = 0,
    **compute: Unpack[ComputeOptions],
) -> Path:
    """Embed labelled cells into a folder to which `tl.scgpt_map` maps others.

    Memory does not grow with the cells but for their `.obs`: a matrix on disk is read in blocks, and embeddings go to
    disk as they come. Up to 2,000 cells are then asked about as if they were new, which tells how far votes and
    distances can be believed; where batches are known, a cell is asked about without its whole batch.

    Parameters
    ----------
    data
        Counts or normalised values, in memory or backed. A file: `anndata.read_h5ad(path, backed="r")`.
    out
        Folder to make. It appears when it is whole.
    labels_key
        Column of `.obs` with cell types. Cells without one ("", NaN, "unknown") are kept and do not vote. None: a
        reference of places alone.
    batch_key
        Column of `.obs` with batches or donors: how new donors will differ is judged by those at hand.
    model
        Name, folder or loaded model; None is `pbmc-mini`. What everybody finds by its name is not copied into the
        folder.
    layer
        Layer to read; None is `.X`.
    append
        Add the cells to the reference that `out` holds, embedded as its own are. `labels_key` and `batch_key` may then
        name other columns than the first time. A process that dies leaves the reference as it was.
    overwrite
        Replace the reference that `out` holds.
    rng
        Seed of tied bins, of the samples of long cells and of the cells asked about.
    **compute
        As for `tl.scgpt_embed`: `device`, `dtype`, `max_memory`, `max_tokens`, `progress`.

    Returns
    -------
    The folder.

    Raises
    ------
    KeyError
        No such column or layer.
    ValueError
        Cells that cannot be embedded, labels that are measurements or all one, another model or seed than that of the
        cells to which these are added; an `out` without a name.
    FileExistsError
        `out` is a file, holds what is no reference, or holds one, and neither `append` nor `overwrite` is given.
    FileNotFoundError
        No such model; nothing to add to.
    OSError
        The folder cannot be written; another process is adding to it.

    Examples
    --------
    >>> scgpt_tl.tl.build_reference(atlas, out="atlas", labels_key="cell_type", batch_key="donor")
    >>> scgpt_tl.tl.scgpt_map(query, "atlas")
    """
    how, seed, target = Compute.of(compute, beside=_ARGUMENTS), as_seed(rng), Path(out).expanduser()
    check_anndata(data, "data")
    if append and overwrite:
        msg = "append=True keeps the reference and overwrite=True replaces it: give one of the two"
        raise ValueError(msg)
    if append:
        Head.read(target)  # says what is the matter
        with locked(target):
            _append(data, target, labels_key, batch_key, model=model, layer=layer, how=how, seed=seed)
        return target
    check_place(target, mark=HEAD, what="reference")
    space = Space.of("pbmc-mini" if model is None else model, seed=seed)
    with locked(target), written_beside(target, overwrite=overwrite, mark=HEAD, what="reference") as beside:
        columns = Columns.of(data, labels_key, batch_key)
        space.check(data, layer)
        about = _about(space, columns, how)
        made = _write_embedding(data, beside, 0, space, layer=layer, how=how)
        embedding = Shards([beside / "embedding-000.npy"])
        sample = Sample.take(embedding, columns.voters, columns.batches, keys=made.keys, seed=seed)
        del embedding  # it keeps the file open
        shard = write_shard(beside, 0, {"keys": made.keys} | columns.arrays)
        if not space.is_named:
            about = replace(about, model=about.model | {"copied": True})
            space.model.save(beside / MODEL)
        Head(with_genes(about, made.genes), (shard,), write_sample(beside, 0, sample)).write(beside)
    return target


#: Names that a misspelt argument may have meant.
_ARGUMENTS = tuple(name for name in build_reference.__kwdefaults__ or ())


def reference_of(data: AnnData, columns: Columns, space: Space, *, layer: str | None, how: Compute) -> Reference:
    """The same in memory, of an AnnData that `space.check` has seen and that is mapped to once."""
    embedding = np.empty((data.n_obs, space.model.config.d_model), np.float32)
    made = space.embed(data, embedding, layer=layer, compute=how)
    sample = Sample.take(embedding, columns.voters, columns.batches, keys=made.keys, seed=space.seed)
    about = with_genes(_about(space, columns, how), made.genes)
    return Reference(about, embedding, columns.codes, made.keys, sample)


def _append(
    data: AnnData,
    folder: Path,
    labels_key: str | None,
    batch_key: str | None,
    *,
    model: str | Path | Model | None,
    layer: str | None,
    how: Compute,
    seed: int,
) -> None:
    """Add cells: first the parts, then one replacement of what speaks of them."""
    head, held = Head.read(folder), read(folder)
    about, number = held.about, len(head.shards)
    columns = Columns.of(data, *_columns_to_add(about, labels_key, batch_key), least=0)
    space = Space.of_reference(held, model)
    if seed != space.seed:
        msg = f"rng={seed}: the cells of {folder} were embedded with rng={space.seed}; give the same to add to them"
        raise ValueError(msg)
    space.check(data, layer)
    how, vocab = as_embedded(how, held), space.model.vocab
    shared_genes(genes_of(data, vocab).ids, vocab.ids(list(about.genes)), what="reference")
    _refuse_known(space.keys(data, layer), held.keys, folder)
    clear_stale(folder)
    made = _write_embedding(data, folder, number, space, layer=layer, how=how)
    classes, codes = merged(about.classes, columns.classes, columns.voters)
    batches, places = merged(about.batches, columns.batch_names, _or_zeros(columns.batches, data.n_obs))
    columns = replace(columns, codes=None if columns.codes is None else codes)
    columns = replace(columns, batches=None if columns.batches is None else places)
    about = with_genes(replace(about, classes=classes, batches=batches), made.genes)
    parts = [folder / shard["embedding"]["file"] for shard in head.shards]
    embedding = Shards([*parts, folder / f"embedding-{number:03d}.npy"])
    voters = np.concatenate([np.zeros(held.n_cells, np.int32) if held.codes is None else held.codes, columns.voters])
    before = batches_of(folder, head)
    groups = None if before is None or columns.batches is None else np.concatenate([before, columns.batches])
    keys = np.concatenate([held.keys, made.keys])
    sample = Sample.take(embedding, voters, groups, keys=keys, seed=seed)
    shard = write_shard(folder, number, {"keys": made.keys} | columns.arrays)
    Head(about, (*head.shards, shard), write_sample(folder, number, sample)).write(folder)


def _columns_to_add(about: About, labels_key: str | None, batch_key: str | None) -> tuple[str | None, str | None]:
    """The columns of the first time where no others are named."""
    for name, given, held in (("labels_key", labels_key, about.labels_key), ("batch_key", batch_key, about.batch_key)):
        if given is not None and held is None:
            msg = f"{name}={given!r}: the reference was built without one, and its new cells have none; leave it out"
            raise ValueError(msg)
    return labels_key or about.labels_key, batch_key or about.batch_key


def _or_zeros(codes: np.ndarray | None, n: int) -> np.ndarray:
    return np.full(n, -1, np.int32) if codes is None else codes


def _refuse_known(keys: np.ndarray, held: np.ndarray, folder: Path) -> None:
    """Cells that are there already would vote twice."""
    n = int(found_in(keys, held).sum())
    if n >= _NEARLY_ALL * len(keys):
        msg = f"{n:,} of the {len(keys):,} cells are in {folder} already (under whatever name): nothing was added"
        raise ValueError(msg)
    if n:
        logger.warning(
            "%s of the %s cells are in the reference already, and will vote twice", f"{n:,}", f"{len(keys):,}"
        )


def _write_embedding(
    data: AnnData,
    folder: Path,
    number: int,
    space: Space,
    *,
    layer: str | None,
    how: Compute,
) -> Embedded:
    """Embed into a file of the folder."""
    with replacing(folder / f"embedding-{number:03d}.npy") as beside:
        sink = ArrayFile(beside, (data.n_obs, space.model.config.d_model))
        try:
            return space.embed(data, sink, layer=layer, compute=how)
        finally:
            sink.close()


def _about(space: Space, columns: Columns, how: Compute) -> About:
    dtype = str(how.torch_dtype(how.torch_device())).removeprefix("torch.")
    return About(
        model={"name": space.model.name, **space.digests, "copied": False},
        options={"seed": space.seed, "max_length": space.max_length, "dtype": dtype},
        genes=(),
        labels_key=columns.labels_key,
        classes=columns.classes,
        batch_key=columns.batch_key,
        batches=columns.batch_names,
    )

"""`tl.scgpt_embed`: cell and gene embeddings without training."""

from __future__ import annotations

import logging
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch

import scgpt_tl
from scgpt_tl._files import refuse_source
from scgpt_tl._random import as_seed
from scgpt_tl._slots import OWNER, check_anndata, copied, refuse_backed_view, refuse_foreign
from scgpt_tl.engine.predict import ROWS, Compute, Contexts, Seen, embed_rows
from scgpt_tl.engine.store import EmbeddingStore, check_store
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._blocks import Fingerprint, open_layer, sources
from scgpt_tl.pp._check import look
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._embed_slots import EMBED_MAKER, EmbedKeys

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from scgpt_tl.genes.match import GeneMatch
    from scgpt_tl.models.model import Model
    from scgpt_tl.pp._report import InputReport
    from scgpt_tl.tokens.tokenize import Tokenizer

logger = logging.getLogger(__name__)


class ComputeOptions(TypedDict, total=False):
    """Where and how to compute, see `engine.predict.Compute`."""

    device: str
    dtype: str
    max_memory: int | str | None
    max_tokens: int | None
    progress: bool


def scgpt_embed(  # noqa: PLR0913 (each is a choice of its own; how to compute is grouped)
    adata: AnnData,
    *,
    model: str | Path | Model = "pbmc-mini",
    layer: str | None = None,
    key_added: str | None = None,
    out: str | Path | None = None,
    groupby: str | None = None,
    max_length: int | None = None,
    unit_norm: bool = True,
    rng: int | np.random.Generator | None = 0,
    overwrite: bool = False,
    copy: bool = False,
    **compute: Unpack[ComputeOptions],
) -> AnnData | None:
    """Embed cells and genes with a pretrained scGPT, zero-shot (preprint, section 4.2).

    A cell's genes are binned (equation 2), a sample of them is taken where there are more than the model reads, and
    the transformer's output at `<cls>` is the cell's embedding. Counts, normalised and logarithmic values of a cell
    give the same bins but for ties: how these fall, and which genes of a long cell are read, is drawn by the values. A
    result depends on the cell, the model and `rng` alone: not on its name, its neighbours, the order of cells or genes,
    the storage, batches or threads.

    Parameters
    ----------
    adata
        Counts or normalised values, (n_obs, n_vars); in memory, backed, or with a zarr or dask matrix.
    model
        Name (see `models.available`), folder (native or official), or a loaded model.
    layer
        Layer to read; None is `.X`.
    key_added
        Write `.obsm`, `.varm` and `.uns` under this key instead of the defaults below.
    out
        Zarr folder to write the cell embeddings to instead of `.obsm`, as they come; new, empty, or an earlier run's.
        A run that was cut off goes on where it stopped when it is called again with the same cells and arguments.
    groupby
        Column of `.obs`: also average each gene's contextual embedding over the cells of each group that express it.
    max_length
        Most tokens per cell, `<cls>` included; None is the model's own. The sample of a longer cell is deterministic.
    unit_norm
        Scale cell embeddings to length 1, as published.
    rng
        Seed of tied bins and of the samples of long cells.
    overwrite
        Write over slots that hold something else, and start `out` anew where it holds another run. What is no
        embedding of this function is never replaced by `out`.
    copy
        Return a changed copy (in memory, for a matrix on disk) and leave `adata` alone.
    **compute
        `device` ("auto": CUDA where there is one), `dtype` ("auto": float32 on the CPU, bfloat16 autocast on CUDA),
        `max_memory` for activations (bytes or text like "4GB") or `max_tokens` per minibatch, `progress` (a bar with
        cells per second and time left).

    Returns
    -------
    None, or with `copy` the copy. Sets, when all is done:

    `.obsm["X_scGPT"]` : float32 (n_obs, D)
        Cell embeddings, unless `out` is given. A cell without any gene of the vocabulary embeds as `<cls>` alone.
    `.varm["scGPT"]` : float32 (n_vars, D)
        Gene embeddings as the transformer reads them; NaN for genes outside the vocabulary.
    `.varm["scGPT_context"]` : float32 (n_vars, n_groups, D)
        With `groupby`; NaN where no cell of the group expresses the gene. Groups are in `.uns["scgpt"]["groups"]`.
    `.uns["scgpt"]` : dict
        `params` (model and sha256 of its weights, seed, device, dtype, versions, genes matched) and counts: `n_empty`,
        `n_sampled`, `n_tokens`.

    Raises
    ------
    ValueError
        Input that cannot work (no such layer, negative, infinite or missing values, too few genes of the vocabulary, no
        cells), a slot that holds something else, a device that is not there, an `out` that is, holds or lies in the
        store that is read, or has no name of its own.
    TypeError
        `adata` is no AnnData; `max_length` is no whole number, `unit_norm` neither True nor False; no such argument.
    KeyError
        No such `.obs` column.
    FileNotFoundError
        No such model.
    FileExistsError
        `out` holds another run (and `overwrite` is off), or something else.

    Examples
    --------
    >>> import scanpy as sc, scgpt_tl
    >>> adata = scgpt_tl.datasets.pbmc68k_reduced()
    >>> scgpt_tl.tl.scgpt_embed(adata, progress=False)
    >>> adata.obsm["X_scGPT"].shape
    (700, 128)
    """
    how, keys, seed = Compute.of(compute, beside=_ARGUMENTS), EmbedKeys.of(key_added), as_seed(rng)
    device, unit_norm = how.torch_device(), _switch("unit_norm", unit_norm)
    _check_places(adata, keys, out=out, groupby=groupby, overwrite=overwrite, copy=copy)
    place = None if out is None else _check_out(adata, out)
    loaded, values = load_model(model), Fingerprint()
    report = _check_input(adata, loaded, layer, max_length, watch=None if place is None else values.add)
    match = genes_of(adata, loaded.vocab)
    tokenizer = loaded.tokenizer(match.ids, max_length=report.max_length, seed=seed)
    groups, contexts = _contexts(adata, groupby, match, loaded.config.d_model)
    params = _params(loaded, match, tokenizer, layer=layer, unit_norm=unit_norm)
    params |= {"dtype": str(how.torch_dtype(device)).removeprefix("torch.")}
    run = params | {"layer": layer, "n_tokens": report.n_tokens, "values_sha256": values.hexdigest(adata.shape)}
    sink, start, seen = _sink(adata, place, run, loaded, overwrite=overwrite)
    embed_rows(
        loaded.backbone,
        open_layer(adata, layer).after(start).blocks(ROWS),
        tokenizer,
        sink,
        compute=how,
        total=adata.n_obs - start,
        unit_norm=unit_norm,
        contexts=contexts,
        seen=seen,
    )
    varm = {keys.genes: _gene_embeddings(loaded, match)}
    if contexts is not None:
        varm[keys.context] = _spread(contexts, match)
    params |= {"device": str(device), "out": "" if place is None else str(place)}
    if copy:
        adata = copied(adata)
    keys.drop_earlier(adata)
    entry = {OWNER: EMBED_MAKER, "params": params, **asdict(seen)}
    adata.uns[keys.run] = entry | ({"groups": groups} if groupby else {})
    adata.varm.update(varm)
    if place is None:
        adata.obsm[keys.cells] = sink
    return adata if copy else None


#: Names that a misspelt argument may have meant.
_ARGUMENTS = tuple(name for name in scgpt_embed.__kwdefaults__ or ())


def _check_places(
    adata: AnnData, keys: EmbedKeys, *, out: str | Path | None, groupby: str | None, overwrite: bool, copy: bool
) -> None:
    """Refuse what could not be written at the end, or would write over something else."""
    check_anndata(adata, "adata")
    slots = keys.places(cells=out is None, context=groupby is not None)
    own: dict[str, Any] = {"maker": EMBED_MAKER, "argument": "key_added", "earlier": keys.earlier(adata)}
    refuse_foreign(adata, slots, key=keys.run, overwrite=overwrite, **own)
    refuse_backed_view(adata, "adata", copy=copy)
    if groupby is not None and groupby not in adata.obs:
        msg = f"groupby={groupby!r} is not in .obs (there: {', '.join(map(repr, adata.obs)) or 'none'})"
        raise KeyError(msg)
    if groupby is not None and out is not None:
        msg = "groupby= needs all cells in one run, and out= may go on with an earlier one: give one of the two"
        raise ValueError(msg)


def _check_out(adata: AnnData, out: str | Path) -> Path:
    """Refuse a store that holds something else, or that the cells are read from."""
    for source in sources(adata):
        refuse_source(Path(out).expanduser(), source, "out")
    return check_store(out)


def _switch(name: str, value: Any) -> bool:
    """True or False, numpy's too."""
    if not isinstance(value, (bool, np.bool_)):
        msg = f"{name}={value!r}; give True or False"
        raise TypeError(msg)
    return bool(value)


def _check_input(
    adata: AnnData, model: Model, layer: str | None, max_length: int | None, *,
    watch: Callable[[csr_matrix], None] | None = None,
) -> InputReport:  # fmt: skip
    """Refuse what cannot work, say what may surprise; `watch` is shown the rows."""
    if model.config.input_norm == "domain":
        msg = (
            f"model {model.name!r} was fine-tuned to integrate and normalises each batch apart: use tl.scgpt_integrate"
        )
        raise ValueError(msg)
    report = look(adata, model, layer=layer, max_length=max_length, watch=watch)
    report.raise_for_errors()
    for warning in report.warnings:
        logger.warning("%s", warning)
    return report


def _contexts(adata: AnnData, groupby: str | None, match: GeneMatch, width: int) -> tuple[np.ndarray, Contexts | None]:
    """Names of the groups and the collector of contextual gene embeddings."""
    if groupby is None:
        return np.array([], str), None
    column = adata.obs[groupby].astype("category").cat.remove_unused_categories().cat
    genes = np.unique(match.ids[match.ids >= 0])
    return column.categories.to_numpy(str), Contexts(column.codes.to_numpy(np.int64), genes, width)


def _sink(
    adata: AnnData, out: Path | None, run: dict[str, Any], model: Model, *, overwrite: bool
) -> tuple[Any, int, Seen]:
    """Where embeddings go, the first cell that is still to do, and what an earlier run met."""
    shape = (adata.n_obs, model.config.d_model)
    if out is None:
        return np.empty(shape, np.float32), 0, Seen()
    names = sha256("\n".join(map(str, adata.obs_names)).encode()).hexdigest()
    store = EmbeddingStore.open(out, shape, run | {"obs_names": names}, overwrite=overwrite)
    return store, store.start, store.seen


def _gene_embeddings(model: Model, match: GeneMatch) -> np.ndarray:
    """(n_vars, D), the normalised table's rows; NaN where unmatched."""
    found = np.full((len(match.ids), model.config.d_model), np.nan, np.float32)
    matched = match.ids >= 0
    with torch.inference_mode():
        found[matched] = model.backbone.genes(torch.from_numpy(match.ids[matched])).numpy()
    return found


def _spread(contexts: Contexts, match: GeneMatch) -> np.ndarray:
    """(n_groups, n_genes, D) of collected genes -> (n_vars, n_groups, D)."""
    mean = contexts.mean()
    found = np.full((len(match.ids), mean.shape[0], mean.shape[2]), np.nan, np.float32)
    matched = match.ids >= 0
    found[matched] = mean.transpose(1, 0, 2)[np.searchsorted(contexts.genes, match.ids[matched])]
    return found


def _params(
    model: Model, match: GeneMatch, tokenizer: Tokenizer, *, layer: str | None, unit_norm: bool
) -> dict[str, Any]:
    """What is needed to repeat the run, in types that h5ad holds."""
    return {
        "model": model.name,
        "weights_sha256": model.sha256,
        "seed": tokenizer.seed,
        "layer": "X" if layer is None else layer,
        "max_length": tokenizer.max_length,
        "ties": "spread" if tokenizer.spread else "upper",
        "n_bins": tokenizer.n_bins,
        "unit_norm": unit_norm,
        "n_genes_matched": match.n_matched,
        "gene_column": match.column,
        "genes_sha256": sha256("\n".join(match.names.tolist()).encode()).hexdigest(),
        "scgpt_tl": scgpt_tl.__version__,
        "torch": str(torch.__version__),
    }

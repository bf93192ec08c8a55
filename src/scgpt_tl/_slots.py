"""Every name that scgpt_tl reads or writes in an AnnData, in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Slots:
    """Default keys. `obsm`, `varm`, `layers`, `var`, `uns` say where a key lives."""

    # pp
    binned: str = "binned"  # layers, uns: binned values and how they were made
    gene: str = "scgpt_gene"  # var: the vocabulary's name of a gene, "" where there is none
    gene_how: str = "scgpt_gene_how"  # var: how the name was found (categorical)
    genes: str = "scgpt_genes"  # uns: summary of harmonize_genes
    # tl.scgpt_embed
    embedding: str = "X_scGPT"  # obsm
    gene_embedding: str = "scGPT"  # varm
    gene_context: str = "scGPT_context"  # varm: contextual gene embeddings per group
    run: str = "scgpt"  # uns: parameters of the run
    # tl.scgpt_annotate
    label: str = "scgpt_pred"  # obs, categorical; uns: classes, calibration, parameters
    probability: str = "scgpt_probability"  # obs: of the called type, calibrated
    probabilities: str = "scgpt_probabilities"  # obsm: of every type
    # tl.scgpt_integrate
    integrated: str = "X_scGPT_integrated"  # obsm
    integration: str = "scgpt_integrated"  # uns
    # tl.scgpt_map
    mapped: str = "scgpt_mapped"  # obs, categorical; uns
    mapped_probability: str = "scgpt_mapped_probability"  # obs
    mapped_distance: str = "scgpt_mapped_distance"  # obs: mean of the five nearest cells of the reference
    mapped_neighbors: str = "scgpt_mapped_neighbors"  # obsm: rows of the reference
    # tl.scgpt_grn
    network: str = "scgpt_grn"  # varp (sparse) or varm (n_vars, n_groups, n_regulators); uns
    program: str = "scgpt_program"  # var, categorical; varm: at every resolution; obsm: activity
    # tl.scgpt_enrich
    enrichment: str = "scgpt_enrichment"  # uns


SLOTS = Slots()


def program_key(network: str = SLOTS.network) -> str:
    """Where the programs of a network are, in `.var`, `.varm` and `.obsm`."""
    return SLOTS.program if network == SLOTS.network else f"{network}_program"


#: Key -> the call that writes it, for errors about what is missing.
MAKERS = {
    SLOTS.embedding: "scgpt_tl.tl.scgpt_embed(adata)",
    SLOTS.run: "scgpt_tl.tl.scgpt_embed(adata)",
    SLOTS.label: "scgpt_tl.tl.scgpt_annotate(query, reference=...)",
    SLOTS.mapped: "scgpt_tl.tl.scgpt_map(query, reference)",
    SLOTS.integrated: "scgpt_tl.tl.scgpt_integrate(adata, batch_key=...)",
    SLOTS.integration: "scgpt_tl.tl.scgpt_integrate(adata, batch_key=...)",
    SLOTS.network: "scgpt_tl.tl.scgpt_grn(adata)",
    SLOTS.program: "scgpt_tl.tl.scgpt_grn(adata)",
    SLOTS.enrichment: "scgpt_tl.tl.scgpt_enrich(adata, gene_sets=...)",
    "X_pca": "scanpy.pp.pca(adata)",
}

#: What `tl.scgpt_grn` signs its results with, for those who read them.
NETWORK_MAKER = "tl.scgpt_grn"

#: The call of a cell that no known type fits well enough.
UNKNOWN = "unknown"

#: `.uns[key][OWNER]` marks a result as ours; only such a result may be overwritten without being asked.
OWNER = "scgpt_tl"


def check_anndata(data: Any, argument: str) -> None:
    """Refuse what is no AnnData; a MuData has nearly all of its attributes.

    Raises
    ------
    TypeError
        The message says what to give instead.
    """
    if hasattr(data, "mod") or not all(hasattr(data, name) for name in ("obsm", "varm", "obs_names", "isbacked")):
        mend = "of a MuData, one modality: mdata['rna']; read a file by anndata.read_h5ad(path, backed='r')"
        msg = f"{argument} is {type(data).__name__}; AnnData is expected ({mend})"
        raise TypeError(msg)


def is_ours(adata: Any, *, key: str, maker: str) -> bool:
    """Whether `.uns[key]` bears the mark of `maker`."""
    mark = adata.uns.get(key)
    return isinstance(mark, Mapping) and mark.get(OWNER) == maker


def refuse_foreign(
    adata: Any, places: Mapping[str, Iterable[object]], *, key: str, maker: str, overwrite: bool, argument: str | None,
    earlier: Mapping[str, Iterable[str]] | None = None,
) -> None:  # fmt: skip
    """Let a function write over its own results only.

    Parameters
    ----------
    adata
        Where it will write.
    places
        Slot ("obsm", "uns", ...) -> keys it will write there.
    key
        `.uns` key under which it leaves its mark, `{OWNER: maker}`.
    maker
        Name of the function, with its room.
    overwrite
        The user lets the rest go.
    argument
        The argument that names another key, where there is one.
    earlier
        What the run under this key has written, where runs differ in that; None: all of `places`.

    Raises
    ------
    ValueError
        A place holds something that `maker` did not write, or its name cannot be kept in a file.
    """
    for slot, names in places.items():
        for name in names:
            if not isinstance(name, str) or name in ("", ".", "..") or "/" in name:
                msg = (
                    f".{slot}[{name!r}] cannot be kept: a name in h5ad is text, not empty, '.' or '..', without '/', "
                    f"which separates folders there; give another {argument or 'name'}"
                )
                raise ValueError(msg)
    if overwrite:
        return
    own = (places if earlier is None else earlier) if is_ours(adata, key=key, maker=maker) else {}
    taken = [
        f".{slot}[{name!r}]"
        for slot, names in places.items()
        for name in names
        if name in getattr(adata, slot) and name not in own.get(slot, ())
    ]
    if taken:
        mend = f"give another {argument}" if argument else "rename it"
        msg = f"{' and '.join(taken)} was not written by {maker}: {mend}, or overwrite=True if it may go"
        raise ValueError(msg)


def refuse_embed_s(key_added: str | None) -> None:
    """Refuse a `key_added` under which `tl.scgpt_embed` keeps what the calling function reads or writes beside."""
    if key_added in (SLOTS.embedding, SLOTS.run):
        msg = f"key_added={key_added!r} is where tl.scgpt_embed keeps the zero-shot embedding: give another name"
        raise ValueError(msg)


def refuse_backed_view(adata: Any, name: str, *, copy: bool) -> None:
    """Refuse a view of a file: it takes no results.

    Raises
    ------
    ValueError
        It is one, and no copy is asked for; `name` is the argument's.
    """
    if adata.is_view and adata.isbacked and not copy:
        msg = f"{name} is a view of a backed object, which takes no results: give copy=True, or {name}.to_memory()"
        raise ValueError(msg)


def stored_x(adata: Any) -> Any:
    """`.X`, and None where there is none; of a file that has none anndata does not say so, but fails."""
    if adata.isbacked:
        if not adata.file.is_open:
            adata.file.open()
        if "X" not in adata.file:
            return None
    return adata.X


def copied(data: Any) -> Any:
    """A copy in memory of an AnnData or MuData; matrices that stay on disk (HDF5, zarr) have no copy of their own."""
    if not _on_disk(data):
        return data.copy()
    if hasattr(data, "mod"):  # a MuData has no to_memory
        parts = {name: copied(part) for name, part in data.mod.items()}
        return type(data)(parts, **_slots(data, "obsmap", "varmap"), axis=data.axis)
    if data.isbacked and stored_x(data) is None:  # to_memory would look for it in the file
        raw = None if data.raw is None else {name: getattr(data.raw, name) for name in ("X", "var", "varm")}
        data = type(data)(**_slots(data, "layers"), raw=raw)
    return data.to_memory()


def _on_disk(data: Any) -> bool:
    if hasattr(data, "mod"):
        return data.isbacked or any(map(_on_disk, data.mod.values()))
    return data.isbacked or any(not hasattr(x, "copy") for x in (data.X, *data.layers.values()) if x is not None)


def _slots(data: Any, *more: str) -> dict[str, Any]:
    """What lies beside the matrices, and `more`, each a copy."""
    names = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns", *more)
    return {name: getattr(data, name).copy() for name in names}

"""Commands of `scgpt-tl` for the tasks: cell types, batches, references. Each reads files, calls one `tl` function."""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl._files import check_target, replacing
from scgpt_tl._slots import SLOTS

if TYPE_CHECKING:
    from anndata import AnnData


def add_annotate(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl annotate`."""
    add = commands.add_parser("annotate", parents=[common], help="tell the cell types of a file").add_argument
    add("query", type=Path, help=".h5ad or .zarr; its matrix is read in blocks, never whole")
    add("--reference", type=Path, help=".h5ad or .zarr of cells with known types, to learn from")
    add("--labels-key", help="column of obs of the reference with cell types")
    add("-o", "--out", type=Path, required=True, help=".h5ad: the query with the result in its slots")
    add(
        "--model", default="pbmc-mini",
        help="name or folder to learn from; without --reference a folder that --save has made (default: %(default)s)",
    )  # fmt: skip
    add("--method", default="finetune", help="finetune, head, lora, probe or knn (default: %(default)s)")
    add("--save", type=Path, help="folder for what is learned; a broken-off run in it goes on")
    add("--layer", help="layer with the expression, of both files (default: X)")
    add("--key-added", help="name of the result (default: scgpt_pred)")
    add("--config", type=Path, help="YAML file of training options to change")
    add("--rng", type=int, default=0, help="seed (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace --out, --save, and a slot that something else wrote")
    commands.choices["annotate"].set_defaults(run=_annotate)


def _annotate(args: argparse.Namespace) -> None:
    check_out(args.out, args.query, overwrite=args.overwrite)
    query = open_data(args.query, args.layer)
    reference = None if args.reference is None else open_data(args.reference, args.layer)
    from scgpt_tl import tl
    from scgpt_tl.engine.config import read_options

    logging.getLogger("scgpt_tl").setLevel(logging.INFO)
    options = {name: getattr(args, name) for name in ("labels_key", "layer", "save", "key_added")}
    train = None if args.config is None else read_options(args.config)
    start = time.perf_counter()
    tl.scgpt_annotate(
        query,
        reference=reference,
        model=args.model,
        method=args.method,
        train=train,
        overwrite=args.overwrite,
        rng=args.rng,
        **options,
    )
    key = args.key_added or SLOTS.label
    probabilities = SLOTS.probabilities if key == SLOTS.label else f"{key}_probabilities"
    write_slots(query, args.query, args.out, obsm=[probabilities], uns=[key])
    unknown = int((query.obs[key] == "unknown").sum())
    print(
        f"{query.n_obs:,} cells, {unknown:,} of them unknown, in {time.perf_counter() - start:.1f} s -> {args.out}",
        flush=True,
    )


def add_integrate(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl integrate`."""
    add = commands.add_parser("integrate", parents=[common], help="bring the batches of a file together").add_argument
    add("input", type=Path, help=".h5ad or .zarr; its matrix is read in blocks, never whole")
    add("--batch-key", required=True, help="column of obs with the batches")
    add("--labels-key", help="column of obs with cell types, to check whether they stay apart; they teach nothing")
    add("-o", "--out", type=Path, required=True, help=".h5ad: the input with the result in its slots")
    add(
        "--model", default="pbmc-mini",
        help="name or folder to learn from, or a folder that --save has made (default: %(default)s)",
    )  # fmt: skip
    add("--preset", default="auto", help="auto or paper (default: %(default)s)")
    add("--n-genes", type=int, help="most variable genes that are read (default: 1200)")
    add("--save", type=Path, help="folder for what is learned; a broken-off run in it goes on")
    add(
        "--new-batches", default="mean",
        help="batches that a saved model does not know: mean, adapt or refuse (default: %(default)s)",
    )  # fmt: skip
    add("--layer", help="layer with the expression (default: X)")
    add("--key-added", help="name of the result (default: X_scGPT_integrated in obsm, scgpt_integrated in uns)")
    add(
        "--config",
        type=Path,
        help="YAML file of training options to change; with a saved model of device, memory and progress",
    )
    add("--rng", type=int, default=0, help="seed (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace --out, --save, and a slot that something else wrote")
    commands.choices["integrate"].set_defaults(run=_integrate)


#: Options that are handed to `tl.scgpt_integrate` as they are.
_INTEGRATE = ("batch_key", "labels_key", "model", "preset", "n_genes", "save", "new_batches", "layer", "key_added")


def _integrate(args: argparse.Namespace) -> None:
    check_out(args.out, args.input, overwrite=args.overwrite)
    adata = open_data(args.input, args.layer)
    from scgpt_tl import tl
    from scgpt_tl.engine.config import read_options

    logging.getLogger("scgpt_tl").setLevel(logging.INFO)
    options = {name: getattr(args, name) for name in _INTEGRATE}
    train = None if args.config is None else read_options(args.config)
    start = time.perf_counter()
    tl.scgpt_integrate(adata, train=train, overwrite=args.overwrite, rng=args.rng, **options)
    key, run = (args.key_added or name for name in (SLOTS.integrated, SLOTS.integration))
    new = [name for name in (SLOTS.embedding,) if name in adata.obsm]
    write_slots(
        adata, args.input, args.out, obsm=[key, *new], uns=[run, *(SLOTS.run for _ in new if SLOTS.run in adata.uns)]
    )
    n = len(adata.uns[run]["batches"])
    print(
        f"{adata.n_obs:,} cells, {n} batches learned, in {time.perf_counter() - start:.1f} s -> {args.out}", flush=True
    )


def add_build_reference(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl build-reference`."""
    add = commands.add_parser(
        "build-reference", parents=[common], help="make a folder of labelled cells to map others to"
    ).add_argument
    add("data", type=Path, help=".h5ad or .zarr; its matrix is read in blocks, never whole")
    add("-o", "--out", type=Path, required=True, help="folder of the reference")
    add("--labels-key", help="column of obs with cell types (default: a reference of places alone)")
    add("--batch-key", help="column of obs with batches or donors, by which distances are judged")
    add("--model", help="name or folder (default: pbmc-mini; with --append the reference's own)")
    add("--layer", help="layer with the expression (default: X)")
    add("--append", action="store_true", help="add the cells to the reference that --out holds")
    add_compute(add)
    add("--overwrite", action="store_true", help="replace the reference that --out holds")
    commands.choices["build-reference"].set_defaults(run=_build_reference)


def _build_reference(args: argparse.Namespace) -> None:
    data = open_data(args.data, args.layer)
    from scgpt_tl import tl

    names = ("labels_key", "batch_key", "model", "layer", "append", "overwrite", "rng")
    start = time.perf_counter()
    tl.build_reference(data, out=args.out, **{name: getattr(args, name) for name in names}, **compute_options(args))
    print(f"{data.n_obs:,} cells in {time.perf_counter() - start:.1f} s -> {args.out}", flush=True)


def add_map(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl map`."""
    add = commands.add_parser("map", parents=[common], help="place the cells of a file in a reference").add_argument
    add("query", type=Path, help=".h5ad or .zarr; its matrix is read in blocks, never whole")
    add("--reference", type=Path, required=True, help="folder of build-reference, or .h5ad or .zarr of labelled cells")
    add("--labels-key", help="column of obs of a reference that is a file (default: places alone)")
    add("--batch-key", help="its column of obs with batches or donors, by which distances are judged")
    add("-o", "--out", type=Path, required=True, help=".h5ad: the query with the result in its slots")
    add("--model", help="name or folder (default: the reference's own; pbmc-mini where it is a file)")
    add("--layer", help="layer with the expression, of both files (default: X)")
    add("--k", type=int, default=15, help="neighbours that vote (default: %(default)s)")
    add("--index", default="auto", help="auto, exact or approximate (default: %(default)s)")
    add("--key-added", help="name of the result (default: scgpt_mapped)")
    add_compute(add)
    add("--overwrite", action="store_true", help="replace --out, and a slot that something else wrote")
    commands.choices["map"].set_defaults(run=_map)


def _map(args: argparse.Namespace) -> None:
    check_out(args.out, args.query, overwrite=args.overwrite)
    query, reference = open_data(args.query, args.layer), args.reference
    if reference.suffix.lower() in (".h5ad", ".zarr"):
        reference = open_data(reference, args.layer)
    from scgpt_tl import tl

    names = ("labels_key", "batch_key", "model", "layer", "k", "index", "key_added", "overwrite", "rng")
    start = time.perf_counter()
    tl.scgpt_map(query, reference, **{name: getattr(args, name) for name in names}, **compute_options(args))
    key = args.key_added or SLOTS.mapped
    obsm, more = [args.key_added or SLOTS.embedding, f"{key}_neighbors"], {}
    if args.key_added is None:  # an embedding of another model is left, and may have no embedding of genes
        more = {"varm": [name for name in (SLOTS.gene_embedding,) if name in query.varm]}
        more["uns"] = [key, *(name for name in (SLOTS.run,) if name in query.uns)]
    write_slots(query, args.query, args.out, **({"uns": [key]} | more), obsm=obsm)
    said = f", {query.uns[key]['n_unknown']:,} of them unknown," if "n_unknown" in query.uns[key] else ""
    print(f"{query.n_obs:,} cells{said} in {time.perf_counter() - start:.1f} s -> {args.out}", flush=True)


def add_compute(add: Any) -> None:
    """Where to compute, and the seed."""
    add("--max-memory", help="memory to stay within, e.g. 4GB")
    add("--device", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add("--dtype", help="auto, float32, bfloat16 (default: auto)")
    add("--rng", type=int, default=0, help="seed (default: %(default)s)")


def compute_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    names = ("max_memory", "device", "dtype")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def open_data(path: Path, layer: str | None) -> AnnData:
    """Open a file with all that it holds, without reading its matrices."""
    import anndata as ad

    if not path.exists():
        msg = f"no file {path}"
        raise FileNotFoundError(msg)
    if path.suffix.lower() == ".h5mu":
        msg = f"{path} is a MuData file, and one modality is read: write it to a file of its own, "
        msg += f"mudata.read_h5ad({path.name!r}, 'rna').write_h5ad('rna.h5ad')"
        raise ValueError(msg)
    if path.suffix.lower() != ".zarr":
        if path.is_dir():
            msg = f"{path} is a folder; expected an .h5ad file or a .zarr store"
            raise IsADirectoryError(msg)
        try:
            return ad.read_h5ad(path, backed="r")
        except OSError as error:
            msg = f"{path} cannot be read as an .h5ad file ({error}); expected one, or a .zarr store"
            raise OSError(msg) from error
    import zarr

    store = zarr.open_group(path, mode="r")
    for key in ("X",) if layer is None else (f"layers/{layer}",):
        if key not in store:
            msg = f"{path} has no {key}"
            raise KeyError(msg)
    small = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
    parts: dict[str, Any] = {name: ad.io.read_elem(store[name]) for name in small if name in store}
    names = store["layers"].keys() if "layers" in store else ()  # type: ignore[union-attr]
    layers = {name: _matrix(store, f"layers/{name}") for name in names}
    if "raw/X" in store:
        raw = {name: ad.io.read_elem(store[f"raw/{name}"]) for name in ("var", "varm") if f"raw/{name}" in store}
        parts["raw"] = {"X": _matrix(store, "raw/X"), **raw}
    return ad.AnnData(_matrix(store, "X") if "X" in store else None, layers=layers, **parts)


def _matrix(store: Any, key: str) -> Any:
    """Opened, not read."""
    import anndata as ad
    import zarr

    found = store[key]
    if found.attrs.get("encoding-type") == "null":
        return None
    return ad.io.sparse_dataset(found) if isinstance(found, zarr.Group) else found


def check_out(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a result's file that cannot be written, before any long work."""
    if out.suffix.lower() != ".h5ad":
        msg = f"--out {out.name}: expected a name that ends in .h5ad"
        raise ValueError(msg)
    need = source.stat().st_size if source.is_file() else 0
    check_target(out, n_bytes=need, overwrite=overwrite)


def write_slots(
    adata: AnnData, source: Path, target: Path, *, frames: Sequence[str] = ("obs",), **keys: Sequence[str]
) -> None:
    """Write a copy of the input with `frames` and the slots named (`obsm=[...]`, `uns=[...]`) as they are in `adata`.

    What is no longer in `adata` is in the copy no more.
    """
    with replacing(target) as beside:
        if not adata.isbacked:  # opened from zarr
            adata.write_h5ad(beside)
            return
        import anndata as ad
        import h5py

        shutil.copyfile(source, beside)  # nothing else of the input passes through memory
        with h5py.File(beside, "r+") as file:
            for frame in frames:
                ad.io.write_elem(file, frame, getattr(adata, frame))
            for group, names in keys.items():
                if group not in file:
                    ad.io.write_elem(file, group, {})
                held: Mapping[str, Any] = getattr(adata, group)
                for name in set(file[group]) - set(held):
                    del file[group][name]
                for name in names:
                    ad.io.write_elem(file[group], name, held[name])

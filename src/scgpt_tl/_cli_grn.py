"""`scgpt-tl grn`: a file with a gene network in its slots, and its edges as a table or a graph."""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl._cli_tasks import add_compute, check_out, compute_options, open_data, write_slots
from scgpt_tl._files import check_target
from scgpt_tl._slots import SLOTS, program_key

if TYPE_CHECKING:
    from anndata import AnnData

#: Options that are handed to `tl.scgpt_grn` where they are given.
_GIVEN = (
    "groupby", "control", "layer", "key_added", "n_neighbors", "min_genes", "attention_layer", "effect", "batch_key",
    "min_cells",
)  # fmt: skip
_GENES = 1200  # most variable ones, where the user says nothing of genes
_EDGES = (".tsv", ".csv", ".graphml")


def add_grn(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl grn`."""
    add = commands.add_parser("grn", parents=[common], help="find gene programs, or targets of regulators").add_argument
    add("input", type=Path, help=".h5ad or .zarr; its matrix is read in blocks, never whole")
    add("-o", "--out", type=Path, required=True, help=".h5ad: the input with the result in its slots")
    add(
        "--method", default="embedding",
        help="embedding (programs), attention, knockout or coexpression (default: %(default)s)",
    )  # fmt: skip
    add("--model", default="pbmc-mini", help="name or folder (default: %(default)s)")
    add("--groupby", help="column of obs: a network for each group, or the activity of programs in each")
    add("--control", help="group of unperturbed cells, with which the others are compared")
    add("--regulators", help="genes whose targets are looked for, joined by commas (default: all pairs)")
    add("--genes-file", type=Path, help="text file with the genes of the network, one a line")
    add(
        "--n-genes", type=int,
        help="so many of the most variable genes, 0 for all of the model (default: those that the file marks as "
        f"highly_variable, else {_GENES:,})",
    )  # fmt: skip
    _add_options(add)
    add("--layer", help="layer with the expression (default: X)")
    add("--key-added", help="name of the result (default: scgpt_grn, and scgpt_program)")
    add("--edges", type=Path, help="also write the edges: .tsv, .csv (source, target, weight, rank, ...) or .graphml")
    add("--n-top", type=int, help="in --edges: targets of each regulator, or pairs in all (default: all)")
    add(
        "--setting", choices=("control", "perturbed", "difference"),
        help="in --edges, with --control (default: each group as it is)",
    )  # fmt: skip
    add_compute(add)
    add("--overwrite", action="store_true", help="replace --out, --edges, and a slot that something else wrote")
    commands.choices["grn"].set_defaults(run=_grn)


def _add_options(add: Any) -> None:
    """Those of one method or another."""
    add("--resolution", help="embedding: of Leiden, joined by commas; the one with the most programs is taken")
    add("--n-neighbors", type=int, help="embedding: genes that each is joined to (default: 15)")
    add("--min-genes", type=int, help="embedding: genes of a program at least (default: 5)")
    add("--context", help="embedding: contextual embeddings of this group of --groupby, or of all cells: all")
    add("--attention-layer", type=int, help="attention: which layer (default: the last)")
    add("--effect", help="knockout: prediction or embedding (default: prediction)")
    add("--shuffled", action="store_true", help="permute the model's weights: what a network without learning gives")
    add("--batch-key", help="column of obs, for models that normalise each batch apart")
    add("--min-cells", type=int, help="cells of a group at least (default: 10)")


def _grn(args: argparse.Namespace) -> None:
    _check(args)
    adata = open_data(args.input, args.layer)
    from scgpt_tl import get, tl

    logging.getLogger("scgpt_tl").setLevel(logging.INFO)
    start = time.perf_counter()
    tl.scgpt_grn(
        adata, method=args.method, model=args.model, genes=_genes(adata, args), rng=args.rng,
        overwrite=args.overwrite, **_options(args),
    )  # fmt: skip
    key = args.key_added or SLOTS.network
    write_slots(adata, args.input, args.out, frames=("obs", "var"), **_written(adata, key))
    if args.edges is not None:
        get.write_grn(
            adata, args.edges, key=key, setting=args.setting, n_top=args.n_top, overwrite=args.overwrite
        )  # fmt: skip
    found = adata.uns[key]
    what = f"{adata.n_obs:,} cells, {len(found['genes']):,} genes"
    if "resolutions" in found:
        tried = found["resolutions"]
        programs = tried["n_programs"][tried["resolution"] == found["resolution"]].iloc[0]
        what += f", {programs:,} programs at a resolution of {found['resolution']:g}"
    places = " and ".join(str(path) for path in (args.out, args.edges) if path is not None)
    print(f"{what}, in {time.perf_counter() - start:.1f} s -> {places}", flush=True)


def _check(args: argparse.Namespace) -> None:
    """Refuse, before any long work, files that cannot be written and options that say two things."""
    check_out(args.out, args.input, overwrite=args.overwrite)
    if args.edges is not None:
        if args.edges.suffix.lower() not in _EDGES:
            msg = f"--edges {args.edges.name}: expected a name that ends in {', '.join(_EDGES)}"
            raise ValueError(msg)
        check_target(args.edges, overwrite=args.overwrite)
    elif args.n_top is not None or args.setting is not None:
        msg = "--n-top and --setting choose what is written to --edges: give --edges FILE, or leave them out"
        raise ValueError(msg)
    if args.setting is not None and args.control is None:
        msg = f"--setting {args.setting} compares with a control: give --groupby and --control, or leave it out"
        raise ValueError(msg)
    if args.n_top is not None and args.n_top < 1:
        msg = f"--n-top {args.n_top}: at least one edge"
        raise ValueError(msg)
    if args.genes_file is not None and args.n_genes is not None:
        msg = "--genes-file and --n-genes both choose the genes: give one of them"
        raise ValueError(msg)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    given = {name: value for name in _GIVEN if (value := getattr(args, name)) is not None}
    if args.regulators is not None:
        given["regulators"] = _split(args.regulators)
    if args.resolution is not None:
        given["resolution"] = _split(args.resolution)
    if args.context is not None:
        given["context"] = True if args.context == "all" else args.context
    if args.shuffled:
        given["shuffled"] = True
    return given | compute_options(args)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _genes(adata: AnnData, args: argparse.Namespace) -> list[str] | str | None:
    """`genes=` of the function; None: those that the file marks."""
    if args.genes_file is not None:
        if not args.genes_file.is_file():
            msg = f"--genes-file: no file {args.genes_file}"
            raise FileNotFoundError(msg)
        return _lines(args.genes_file)
    if args.n_genes == 0:
        return "all"
    if args.n_genes is None and "highly_variable" in adata.var:
        return None
    from scgpt_tl.pp._features import variable_genes

    table, _ = variable_genes(adata, n_genes=args.n_genes or _GENES, layer=args.layer)
    return list(adata.var_names[table["highly_variable"]])


def _lines(path: Path) -> list[str]:
    """Names, one a line; empty lines and what follows a # are left out."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    found = [line for line in lines if line]
    if not found:
        msg = f"--genes-file {path} names no gene; expected one a line"
        raise ValueError(msg)
    return found


def _written(adata: AnnData, key: str) -> dict[str, list[str]]:
    """Slot -> names of this result."""
    own = {key, program_key(key), *(f"{key}_{number}" for number in range(len(adata.uns[key]["groups"])))}
    return {slot: [name for name in getattr(adata, slot) if name in own] for slot in ("obsm", "varm", "varp", "uns")}

"""The command line `scgpt-tl`. Everything heavy is imported inside a command, so `--help` is quick.

Exit codes: 0 done; 1 an error, told in one line; 2 a wrong command line; 130 interrupted, 143 terminated: no half file
is left, and a .zarr or a training run goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl import __version__
from scgpt_tl._cli_grn import add_grn
from scgpt_tl._cli_tasks import add_annotate, add_build_reference, add_integrate, add_map, open_data, write_slots
from scgpt_tl._cli_train import add_finetune, add_pretrain, rank
from scgpt_tl._files import check_target, refuse_source, replacing
from scgpt_tl._nearest import nearest
from scgpt_tl._slots import SLOTS

if TYPE_CHECKING:
    from anndata import AnnData

#: Options that are handed to `tl.scgpt_embed` where they are given.
_EMBED_OPTIONS = ("layer", "key_added", "max_length", "max_memory", "device", "dtype")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(_unknown(unknown, args.parser))
    with _surroundings():
        try:
            args.run(args)
        except (KeyboardInterrupt, SystemExit) as stop:
            return _stopped(stop)
        except Exception as error:  # noqa: BLE001 - a command line ends in one line, whatever it was
            if args.debug:
                traceback.print_exc()
            else:
                where = f" in process {rank()}" if rank() else ""
                print(f"scgpt-tl: error{where}: {_one_line(error, args)}", file=sys.stderr)
            return 1
    return 0


@contextmanager
def _surroundings() -> Iterator[None]:
    """Warnings and log lines as single lines on stderr; SIGTERM as an exception. All is put back in the end."""
    logger = logging.getLogger("scgpt_tl")
    handler: logging.Handler = logging.NullHandler() if rank() else logging.StreamHandler()
    level, before = logger.level, signal.signal(signal.SIGTERM, _terminated)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.showwarning = _show_warning
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    """Options by their whole names alone, so that a script means the same when there are more of them."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="scgpt-tl", description="scGPT models for single cells: embed, check, train.")
    parser.add_argument("--version", action="version", version=f"scgpt-tl {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_embed(commands, common)
    _add_check(commands, common)
    models = commands.add_parser("models", parents=[common], help="list the models that have a name")
    models.set_defaults(run=_models)
    _add_demo(commands, common)
    add_pretrain(commands, common)
    add_finetune(commands, common)
    add_annotate(commands, common)
    add_integrate(commands, common)
    add_build_reference(commands, common)
    add_map(commands, common)
    add_grn(commands, common)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _add_embed(commands: Any, common: argparse.ArgumentParser) -> None:
    add = commands.add_parser("embed", parents=[common], help="embed the cells of a file").add_argument
    add("input", type=Path, help=".h5ad or .zarr; read in blocks, never whole")
    add(
        "--out", type=Path, required=True,
        help=".h5ad (the input with the result in its slots; from .zarr: X, obs, var and the result), "
        ".zarr or .npy (the embedding alone, float32, rows as in the input)",
    )  # fmt: skip
    add("--model", default="pbmc-mini", help="name or folder (default: %(default)s)")
    add("--layer", help="layer with the expression (default: X)")
    add("--key-added", help="name of the result (default: X_scGPT in obsm, scGPT in varm, scgpt in uns)")
    add("--max-length", type=int, help="genes of a cell that are read at most (default: the model's)")
    add("--max-memory", help="memory to stay within, e.g. 4GB")
    add("--device", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    add("--dtype", help="auto, float32, bfloat16 (default: auto)")
    add("--overwrite", action="store_true", help="replace --out (of .zarr only embeddings), and another's slot")
    commands.choices["embed"].set_defaults(run=_embed)


def _add_check(commands: Any, common: argparse.ArgumentParser) -> None:
    add = commands.add_parser("check", parents=[common], help="say whether a file fits a model").add_argument
    add("input", type=Path, help=".h5ad or .zarr")
    add("--model", default="pbmc-mini", help="name or folder (default: %(default)s)")
    add("--layer", help="layer with the expression (default: X)")
    add("--max-length", type=int, help="genes of a cell that are read at most (default: the model's)")
    commands.choices["check"].set_defaults(run=_check)


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    add = commands.add_parser("demo", parents=[common], help="embed, draw and score a small data set").add_argument
    add("--data", type=Path, help=".h5ad (default: scanpy's pbmc68k_reduced, which needs no network)")
    add("--out", type=Path, default=Path("demo"), help="folder for umap.png and pbmc.h5ad (default: %(default)s)")
    add("--model", default="pbmc-mini", help="name or folder (default: %(default)s)")
    add("--labels-key", help="column of obs with cell types (default: guessed)")
    add("--layer", help="layer with the expression (default: X)")
    add("--device", default="auto", help="auto, cpu, cuda ... (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace files of these names that no demo wrote, too")
    commands.choices["demo"].set_defaults(run=_demo)


def _embed(args: argparse.Namespace) -> None:
    source, out = args.input, args.out
    kind = out.suffix.lower()
    if kind not in {".h5ad", ".zarr", ".npy"}:
        msg = f"--out {out.name}: expected a name that ends in .h5ad, .zarr or .npy"
        raise ValueError(msg)
    adata = open_data(source, args.layer)
    if kind != ".h5ad" or source.is_dir():  # a file can take the result itself: it is copied, then replaced
        refuse_source(out, source, "--out")
    need = source.stat().st_size if kind == ".h5ad" and source.is_file() else 0
    check_target(out, n_bytes=need, overwrite=args.overwrite or kind == ".zarr")  # a .zarr that was cut off goes on
    from scgpt_tl import tl

    options = {name: value for name in _EMBED_OPTIONS if (value := getattr(args, name)) is not None}
    if args.overwrite:
        options["overwrite"] = True
    start = time.perf_counter()
    if kind == ".zarr":
        tl.scgpt_embed(adata, model=args.model, out=out, **options)
    else:
        tl.scgpt_embed(adata, model=args.model, **options)
        _write(adata, source, out, args.key_added)
    seconds = time.perf_counter() - start
    print(f"{adata.n_obs:,} cells in {seconds:.1f} s -> {out}")


def _write(adata: AnnData, source: Path, target: Path, key_added: str | None) -> None:
    """Write the result: the embedding alone, or a copy of the input with the three slots in it."""
    obsm, varm, uns = (key_added or name for name in (SLOTS.embedding, SLOTS.gene_embedding, SLOTS.run))
    if target.suffix.lower() == ".npy":
        import numpy as np

        with replacing(target) as beside, beside.open("wb") as file:  # by its name alone numpy would call it .NPY.npy
            np.save(file, np.asarray(adata.obsm[obsm], dtype=np.float32))
        return
    write_slots(adata, source, target, frames=(), obsm=[obsm], varm=[varm], uns=[uns])


def _check(args: argparse.Namespace) -> None:
    from scgpt_tl import pp

    report = pp.check_input(open_data(args.input, args.layer), args.model, layer=args.layer, max_length=args.max_length)
    print(report)
    report.raise_for_errors()


def _models(args: argparse.Namespace) -> None:  # noqa: ARG001 - every command is called alike
    from scgpt_tl import models

    table = models.available()
    for name, row in table.iterrows():
        size = f"{row['n_layers']} x {row['d_model']}" if row["d_model"] else "size not known"
        place = row["folder"] if row["at_hand"] else f"not here: {row['source']}"
        cells = f", {row['cells']:,} cells" if row["cells"] else ""
        print(f"{name}  ({size}; {row['organ'] or 'organ not known'}{cells})")
        print(f"    {place}")
        if row["note"]:
            print(f"    {row['note']}")


def _demo(args: argparse.Namespace) -> None:
    from scgpt_tl._demo import run_demo

    made = run_demo(
        args.data, out=args.out, model=args.model, labels_key=args.labels_key, layer=args.layer, device=args.device,
        overwrite=args.overwrite, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    print()
    if made.table is not None:
        shown = made.table[["NMI", "ARI", "ASW", "AvgBIO", "n_clusters"]].rename_axis(None)
        print(shown.to_string(float_format="{:.3f}".format))
        print(made.table.attrs["verdict"])
    for note in made.notes:
        print(note)
    print(f"Picture: {made.picture}   data: {made.data}   {made.seconds:.0f} s in all")


def _one_line(error: BaseException, args: argparse.Namespace) -> str:
    """An error's text; what it advises as an argument in Python is named as the option that it is here."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    switches = [name for name, value in vars(args).items() if isinstance(value, bool)]
    for name in switches:
        text = re.sub(rf"(?<![\w(]){name}=True\b", f"--{name.replace('_', '-')}", text)
    if "fresh" in switches:
        text = text.replace("resume=False", "--fresh")
    return " ".join(text.split()) or type(error).__name__


def _unknown(given: list[str], parser: argparse.ArgumentParser) -> str:
    first = next((text for text in given if text.startswith("-")), given[0]).partition("=")[0]
    if not first.startswith("-"):
        return f"unexpected {first!r}"
    known = re.findall(r"--[\w-]+", parser.format_usage())
    return f"unknown option {first!r}; {nearest(first, known)}"


def _stopped(stop: BaseException) -> int:
    """Say that a run was stopped, with its own text where it has one; the exit code."""
    code = 130 if isinstance(stop, KeyboardInterrupt) else 143
    code = next((arg for arg in stop.args if isinstance(arg, int)), code)
    said = " ".join(arg for arg in stop.args if isinstance(arg, str))
    usual = "interrupted" if code == 130 else "terminated"
    if code and not rank():
        text = said or f"{usual}; no half file is left, and the same call goes on with a .zarr or a training run"
        print(f"scgpt-tl: {text}", file=sys.stderr)
    return code


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    if not rank():
        print(f"scgpt-tl: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _terminated(*_: Any) -> None:
    sys.exit(143)  # as an exception, so that what is half written is removed


if __name__ == "__main__":
    sys.exit(main())

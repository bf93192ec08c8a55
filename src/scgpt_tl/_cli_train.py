"""Commands of `scgpt-tl` that train. Their training options are the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_origin

from scgpt_tl.engine._fields import docs, hints
from scgpt_tl.engine.config import FINETUNE, FREE, PRESETS, TrainConfig, read_options

_LEARNED = "what is learned", "A run goes on only with the same ones. A later one wins: preset, file, options."
_COMPUTED = "where and how it is computed", "May change between one sitting and the next."


def add_pretrain(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl pretrain`."""
    add = commands.add_parser("pretrain", parents=[common], help="train a model on your own cells").add_argument
    add("data", nargs="+", type=Path, help=".h5ad, .zarr, or folders of them: one study each")
    add("--out", type=Path, required=True, help="folder of the new model; a broken-off run in it goes on")
    add("--size", default="mini", choices=("nano", "mini", "human"), help="default: %(default)s")
    add("--recipe", help="what to ask: generative, generative+contrast (default) ...")
    add("--min-cells", type=int, help="cells that must express a gene of the vocabulary (default: 5)")
    add("--validate", nargs="+", type=Path, metavar="DATA", help="studies for the held-out loss, in place of a share")
    add("--overwrite", action="store_true", help="replace the model that --out holds")
    _add_training(commands.choices["pretrain"], TrainConfig())
    commands.choices["pretrain"].set_defaults(run=_pretrain)


def add_finetune(commands: Any, common: argparse.ArgumentParser) -> None:
    """`scgpt-tl finetune`."""
    add = commands.add_parser("finetune", parents=[common], help="train a model on with your cells").add_argument
    add("data", nargs="+", type=Path, help=".h5ad, .zarr, or folders of them: one study each")
    add("--model", required=True, help="name or folder of the model to start from")
    add("--out", type=Path, required=True, help="folder of the new model; a broken-off run in it goes on")
    add("--recipe", help="what to ask: generative (default), masked, integration, annotation ...")
    add("--labels-key", help="column of obs with cell types")
    add("--batch-key", help="column of obs with batches")
    add("--overwrite", action="store_true", help="replace the model that --out holds")
    add("--preset", choices=PRESETS, help="training options for a card of this size, for the 51 M model")
    _add_training(commands.choices["finetune"], FINETUNE)
    commands.choices["finetune"].set_defaults(run=_finetune)


def _add_training(parser: argparse.ArgumentParser, base: TrainConfig) -> None:
    """What every training command takes; `base` holds its defaults."""
    add = parser.add_argument
    add("--weight", action="append", metavar="STUDY=X", help="show each cell of a study X times an epoch; repeatable")
    add("--skip-bad", action="store_true", help="leave out files that cannot be used, and say which")
    add("--rng", type=int, default=0, help="seed (default: %(default)s)")
    add("--fresh", action="store_true", help="do not resume")
    add("--config", type=Path, help="YAML file of training options")
    add("--print-config", action="store_true", help="write the training options as YAML, with what they mean, and end")
    learned, computed = parser.add_argument_group(*_LEARNED), parser.add_argument_group(*_COMPUTED)
    defaults = asdict(base)
    for name, doc in docs(TrainConfig).items():
        group = computed if name in FREE else learned
        text = f"{doc} (default: {_shown(defaults[name])})".replace("%", "%%")
        group.add_argument(
            f"--{name.replace('_', '-')}", help=text, default=argparse.SUPPRESS, **_how(hints(TrainConfig)[name])
        )
    parser.set_defaults(base=defaults)


def _how(hint: Any) -> dict[str, Any]:
    """How argparse reads a field of this type."""
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        return {"action": "extend", "type": lambda text: text.split(","), "metavar": "NAME,..."}
    if all(isinstance(kind, str) for kind in kinds):
        return {"choices": kinds}
    if str in kinds:
        return {"metavar": "SIZE" if int in kinds else "NAME"}
    return {"type": int if int in kinds else float, "metavar": "N" if int in kinds else "X"}


def _shown(value: Any) -> str:
    if isinstance(value, tuple) or value is None:
        return ",".join(value or ()) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def training(args: argparse.Namespace) -> TrainConfig:
    """The training options of a command line: its defaults, then the preset, the file, and the options given."""
    options: dict[str, Any] = dict(args.base)
    if getattr(args, "preset", None):
        options |= PRESETS[args.preset]
    if args.config:
        options |= read_options(args.config)
    options |= {name: value for name, value in vars(args).items() if name in args.base}
    return TrainConfig.from_mapping(options)


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """Number of this process under torchrun, Lightning or SLURM; 0, which speaks for all, where it is the only one."""
    given = (environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(text) for text in given if text.isdigit()), 0)


def _pretrain(args: argparse.Namespace) -> None:
    names = ("size", "recipe", "min_cells", "validate", "overwrite")
    _train("scgpt_pretrain", args, {name: getattr(args, name) for name in names})


def _finetune(args: argparse.Namespace) -> None:
    names = ("model", "recipe", "labels_key", "batch_key", "overwrite")
    _train("scgpt_finetune", args, {name: getattr(args, name) for name in names})


def _train(name: str, args: argparse.Namespace, options: dict[str, Any]) -> None:
    train = training(args)
    if args.print_config:
        _say(train.to_yaml().rstrip())
        return
    for path in _paths(args):
        if not path.exists() and not path.is_symlink():
            msg = f"no file {path}"
            raise FileNotFoundError(msg)
    from scgpt_tl import tl

    function = getattr(tl, name)
    logging.getLogger("scgpt_tl").setLevel(logging.INFO)  # where a run goes on, which weights are new
    if rank():
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    model = function(_corpus(args), out=args.out, train=train, resume=not args.fresh, rng=args.rng, **given)
    _say(f"{model!r} -> {args.out}")


def _corpus(args: argparse.Namespace) -> Any:
    """What was given, opened here where that takes options of its own."""
    data: Any = args.data[0] if len(args.data) == 1 else args.data
    if not (args.weight or args.skip_bad):
        return data
    from scgpt_tl import load_model
    from scgpt_tl.engine.recipes import recipe_named
    from scgpt_tl.engine.run import check_out
    from scgpt_tl.tl import open_corpus

    check_out(args.out)  # what the function refuses, it refuses before files are read
    if args.recipe:
        recipe_named(args.recipe)
    columns = {name: getattr(args, name, None) for name in ("labels_key", "batch_key")}
    vocab = load_model(args.model).vocab if hasattr(args, "model") else None
    weights = dict(map(_weight, args.weight or ()))
    return open_corpus(data, model_vocab=vocab, weights=weights, skip_bad=args.skip_bad, **columns)


def _weight(text: str) -> tuple[str, float]:
    study, _, weight = text.rpartition("=")
    try:
        return study, float(weight)
    except ValueError:
        msg = f"--weight {text}: expected STUDY=X, such as atlas=0.1"
        raise ValueError(msg) from None


def _paths(args: argparse.Namespace) -> Iterator[Path]:
    yield from args.data
    yield from getattr(args, "validate", None) or ()


def _say(text: str) -> None:
    if not rank():
        print(text)

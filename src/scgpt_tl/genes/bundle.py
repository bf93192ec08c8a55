"""A model folder's vocabulary and sizes, read without torch, so that `pp` can ask about a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scgpt_tl.genes.folders import DATA_VARIABLE, bundled_folder, cache_folder, data_folder
from scgpt_tl.genes.vocab import GeneVocab

Kind = Literal["native", "official"]

#: Files of a model folder by kind, the one that tells the kind first.
FILES: dict[Kind, tuple[str, str, str]] = {
    "native": ("config.json", "vocab.json", "model.safetensors"),
    "official": ("args.json", "vocab.json", "best_model.pt"),
}
#: Newest layout of a native folder that this code reads.
FORMAT = 1

#: Our name of a size -> (its name in args.json, what the published package assumes where it is absent).
_OFFICIAL: dict[str, tuple[str, int | None]] = {
    "d_model": ("embsize", None),
    "n_layers": ("nlayers", None),
    "n_heads": ("nheads", None),
    "d_ff": ("d_hid", None),
    "n_bins": ("n_bins", 51),
    "max_length": ("max_seq_len", 1200),
}


@dataclass(frozen=True)
class Bundle:
    """A model folder, all but its weights.

    `max_length` counts the tokens of a cell with `<cls>`; `ties` says how values between tied bin edges were placed
    when the model was trained ("spread" or "upper").
    """

    path: Path
    name: str
    kind: Kind
    vocab: GeneVocab
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    n_bins: int
    max_length: int
    ties: str
    weights_file: Path


def kind_of(folder: Path) -> Kind | None:
    """Kind of a model folder by the file that tells it; None where it is no model folder."""
    return next((kind for kind, (mark, *_) in FILES.items() if (folder / mark).is_file()), None)


def roots() -> tuple[Path, ...]:
    """Folders in which a model's name is looked up, first hit wins."""
    own = data_folder()
    local = () if own is None else (own / "models",)
    return (*local, bundled_folder(), cache_folder() / "models")


def bundles() -> dict[str, Path]:
    """Every named model on this machine: name -> folder."""
    found: dict[str, Path] = {}
    for root in roots():
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if not folder.name.startswith(".") and kind_of(folder) is not None:  # dots: leftovers of a killed save
                found.setdefault(folder.name, folder)
    return found


def resolve(model: str | Path) -> Path:
    """Folder of a model, from its path or its name.

    Parameters
    ----------
    model
        An existing folder, or a name looked up in `$SCGPT_TL_DATA/models`, in this package, then in the user's cache.
        What has a model's name beside the caller hides that model only where it is a model folder itself.

    Raises
    ------
    FileNotFoundError
        Neither; the message lists the models at hand and where to put another.
    NotADirectoryError
        The path of a file.
    """
    path = Path(model).expanduser()
    if kind_of(path) is not None:
        return path
    known = bundles()
    if str(model) in known:
        return known[str(model)]
    if path.is_dir():
        return path
    if path.exists():
        msg = f"model={str(model)!r} is a file; give the folder that holds it, with its vocabulary beside it"
        raise NotADirectoryError(msg)
    where = " or ".join(str(root / str(path.name)) for root in roots() if root != bundled_folder())
    msg = (
        f"model={str(model)!r} is neither a folder nor a known name. At hand: {', '.join(sorted(known)) or 'none'}. "
        f"Give the path of a model folder ({_layouts()}), or put it at {where} "
        f"(the environment variable {DATA_VARIABLE} names a data folder of your own)"
    )
    raise FileNotFoundError(msg)


def read_bundle(model: str | Path) -> Bundle:
    """Vocabulary and sizes of a model.

    Parameters
    ----------
    model
        Name or folder, as for `resolve`.

    Raises
    ------
    FileNotFoundError
        No such model, or a file of the folder is missing; the message names what is missing.
    ValueError
        A file is truncated or holds something else; the message names file and field.
    """
    path = resolve(model)
    kind = kind_of(path)
    if kind is None:
        msg = f"{path} is not a model folder, which holds {_layouts()}"
        raise FileNotFoundError(msg)
    missing = [name for name in FILES[kind] if not (path / name).is_file()]
    if missing:
        msg = f"{path} lacks {', '.join(missing)}; an {kind} model folder holds {', '.join(FILES[kind])}"
        raise FileNotFoundError(msg.replace("an native", "a native"))
    sizes, ties = _read_native(path) if kind == "native" else _read_official(path)
    vocab = GeneVocab.from_file(path / "vocab.json")
    name = path.resolve().name
    return Bundle(path, name, kind, vocab, **sizes, ties=ties, weights_file=path / FILES[kind][2])


def _read_native(path: Path) -> tuple[dict[str, int], str]:
    file = path / FILES["native"][0]
    head = read_json(file)
    if head.get("format") != FORMAT:
        msg = f"{file} has format {head.get('format')!r}, this scgpt_tl reads {FORMAT}: a newer release is needed"
        raise ValueError(msg)
    config = head.get("config")
    if not isinstance(config, dict):
        msg = f"{file} has no object 'config'"
        raise ValueError(msg)
    ties = config.get("ties")
    if ties not in ("spread", "upper"):
        msg = f"{file}: config.ties is {ties!r}, expected 'spread' or 'upper'"
        raise ValueError(msg)
    return {ours: _size(config, ours, file) for ours in _OFFICIAL}, ties


def _read_official(path: Path) -> tuple[dict[str, int], str]:
    file = path / FILES["official"][0]
    args = read_json(file)
    return {ours: _size(args, theirs, file, default=default) for ours, (theirs, default) in _OFFICIAL.items()}, "spread"


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file of a model folder holds.

    Raises
    ------
    ValueError
        It is no JSON, or no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{file} is not JSON ({error}); it may be truncated, fetch it again"
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{file} holds a {type(content).__name__}, expected an object"
        raise ValueError(msg)
    return content


def _size(fields: dict[str, Any], key: str, file: Path, *, default: int | None = None) -> int:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"{file}: {key} is {value!r}, expected a positive integer"
        raise ValueError(msg)
    return value


def _layouts() -> str:
    return "; or ".join(", ".join(files) for files in FILES.values())


def vocab_of(model: Any) -> GeneVocab:
    """Vocabulary of a model: of its name or folder, of a loaded model or `Bundle`, or the vocabulary itself.

    Raises
    ------
    TypeError
        Something else.
    """
    if isinstance(model, (str, Path)):
        return read_bundle(model).vocab
    vocab = getattr(model, "vocab", model)
    if not isinstance(vocab, GeneVocab):
        msg = f"model is a {type(model).__name__}; give a model's name or folder, a loaded model, or a GeneVocab"
        raise TypeError(msg)
    return vocab

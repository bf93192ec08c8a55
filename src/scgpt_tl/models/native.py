"""The native folder: model.safetensors, config.json, vocab.json, provenance.json; arrays.safetensors, MODEL_CARD.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scgpt_tl import __version__
from scgpt_tl.genes.bundle import FORMAT, Bundle, read_bundle, read_json
from scgpt_tl.models._config import described, digest, names_of
from scgpt_tl.models._coverage import compare
from scgpt_tl.models._folder import written_beside
from scgpt_tl.models._weights import HEADS, adopt, fingerprint, shapes

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tl.models.model import Model

WEIGHTS, ARRAYS = "model.safetensors", "arrays.safetensors"


def write(model: Model, folder: str | Path, *, card: str | None = None, overwrite: bool = False) -> Path:
    """Write a model; see `Model.save`."""
    arrays = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in model.arrays.items()}
    head = {
        "format": FORMAT,
        "name": model.name,
        "config": model.config.to_dict(),
        "labels": model.labels,
        "batches": model.batches,
        "weights_sha256": model.sha256,
        "vocab_sha256": model.vocab.sha256,
        "arrays_sha256": fingerprint(arrays) if arrays else None,
        "scgpt_tl": __version__,
    }
    head["config_sha256"] = digest(head)
    texts = {"config.json": _dump(head), "provenance.json": _dump(model.provenance)}
    if card is not None:
        texts["MODEL_CARD.md"] = card
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.network.state_dict().items()}
    with written_beside(folder, overwrite=overwrite) as beside:
        try:
            save_file(state, beside / WEIGHTS, metadata={"format": "pt"})
            if arrays:
                save_file(arrays, beside / ARRAYS, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk comes as this
            raise OSError(str(error)) from error
        model.vocab.save(beside / "vocab.json")
        for name, text in texts.items():
            (beside / name).write_text(text, encoding="utf-8")
    return Path(folder)


def read(folder: Path) -> dict[str, Any]:
    """Read a model: the arguments of `Model`.

    Raises
    ------
    FileNotFoundError
        Half a folder; the message names what is missing.
    ValueError
        A file is truncated or was changed after it was saved; the message names file, finding and cure.
    """
    bundle = read_bundle(folder)
    file = folder / "config.json"
    head = read_json(file)
    _compare_hash(head, "vocab_sha256", bundle.vocab.sha256, folder / "vocab.json", file)
    _check_vocabulary(head["config"], bundle)
    network = described(head["config"], file)
    state = _read_weights(bundle.weights_file)
    absent = [name for name in HEADS if name not in network.config.heads]
    coverage = compare(shapes(state), shapes(network.state_dict()), absent_heads=absent)
    if not coverage.complete:
        msg = f"{bundle.weights_file} does not hold the network that {file} describes; fetch both again\n{coverage}"
        raise ValueError(msg)
    _compare_hash(head, "weights_sha256", fingerprint(state), bundle.weights_file, file)
    labels, batches = (names_of(head, key, file) for key in ("labels", "batches"))
    if "config_sha256" in head:  # folders older than it have none
        _compare_hash(head, "config_sha256", digest(head), f"what {file} tells of config, labels and batches", file)
    return {
        "config": network.config,
        "vocab": bundle.vocab,
        "network": adopt(network, state),
        "name": str(head.get("name") or bundle.name),
        "labels": labels,
        "batches": batches,
        "provenance": _provenance(folder / "provenance.json"),
        "arrays": _arrays(folder / ARRAYS, head, file),
        "coverage": coverage,
    }


def _check_vocabulary(values: dict[str, Any], bundle: Bundle) -> None:
    vocab = bundle.vocab
    found = {"n_tokens": len(vocab), "pad_id": vocab.pad_id, "cls_id": vocab.cls_id}
    wrong = [f"{key} is {values.get(key)!r} and vocab.json has {n}" for key, n in found.items() if values.get(key) != n]
    if wrong:
        msg = f"{bundle.path / 'config.json'} does not belong to its vocabulary: {'; '.join(wrong)}; fetch both again"
        raise ValueError(msg)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)  # memory-mapped
    except SafetensorError as error:
        msg = f"{file} is no whole safetensors file ({error}); it may be truncated, fetch it again"
        raise ValueError(msg) from error


def _compare_hash(head: dict[str, Any], key: str, found: str, of: object, file: Path) -> None:
    if head.get(key) != found:
        msg = (
            f"{of} has the sha256 {found[:12]}..., {file} says {str(head.get(key))[:12]!r}: one of them was changed "
            "after the model was saved; fetch the folder again (a change on purpose is saved by Model.save)"
        )
        raise ValueError(msg)


def _provenance(file: Path) -> dict[str, Any]:
    if not file.is_file():
        msg = f"{file.parent} lacks {file.name}, which says where the model comes from; fetch the folder again"
        raise FileNotFoundError(msg)
    return read_json(file)


def _arrays(path: Path, head: dict[str, Any], file: Path) -> dict[str, np.ndarray]:
    """What lies beside the weights; folders older than it have none."""
    said, there = head.get("arrays_sha256"), path.is_file()
    if said is None and not there:
        return {}
    if not there:
        msg = f"{path.parent} lacks {path.name}, which {file.name} speaks of; fetch the folder again"
        raise FileNotFoundError(msg)
    state = _read_weights(path)
    _compare_hash(head, "arrays_sha256", fingerprint(state), path, file)
    return {name: tensor.numpy() for name, tensor in state.items()}


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"

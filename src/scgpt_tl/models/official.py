"""The published package's folder, args.json, best_model.pt and vocab.json: in and out."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal

import torch

from scgpt_tl.core.config import ModelConfig
from scgpt_tl.genes.bundle import Bundle, read_bundle
from scgpt_tl.models._config import described, names_of
from scgpt_tl.models._coverage import Coverage, compare
from scgpt_tl.models._folder import written_beside
from scgpt_tl.models._names import infer_config, to_ours, to_published
from scgpt_tl.models._weights import HEADS, adopt, not_finite, shapes, skeleton

if TYPE_CHECKING:
    from torch import Tensor

    from scgpt_tl.models.model import Model

logger = logging.getLogger(__name__)

WEIGHTS = "best_model.pt"
#: What is assumed where args.json is silent: the published package's own defaults. Sizes and nheads have none.
DEFAULTS = {"n_bins": 51, "max_seq_len": 1200, "pad_value": -2, "mask_value": -1, "dropout": 0.2}
_OWN = "scgpt_tl"  # an object in args.json for what the published keys cannot say; the published package ignores it
_TABLES = (".table.weight", ".conditions.weight", ".up.weight", ".out.weight", ".query.weight", ".fc1.weight")
_EVERY_MODEL_HAS = ("backbone.genes.table.weight", "backbone.blocks.0.up.weight")


@dataclass(frozen=True)
class State:
    """Weights of a file, under our names."""

    weights: dict[str, Tensor]
    spelled: dict[str, str]
    """Our name -> name in the file."""
    unknown: dict[str, tuple[int, ...]]
    """Names that are not ours, with their shapes."""
    left_out: tuple[str, ...]


def read(folder: Path, *, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Read a model: the arguments of `Model`.

    Parameters
    ----------
    folder
        It holds args.json, best_model.pt and vocab.json.
    ignore
        Beginnings of parameter names to leave out.

    Raises
    ------
    FileNotFoundError
        Half a folder; the message names what is missing.
    ValueError
        A file is truncated, holds pickled code, or does not fit the others; the message names finding and cure.
    """
    bundle = read_bundle(folder)
    args = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    state = read_state(bundle.weights_file, ignore=ignore)
    _check_sizes(state, bundle)
    file = folder / "args.json"
    own = _own(args, file)
    config = _override(_config(args, state.weights, bundle), own.get("config", {}), file)
    network = described(config.to_dict(), file)
    coverage = cover(state, config)
    if not coverage.complete:
        msg = (
            f"{bundle.weights_file} does not fit the network that it and args.json describe.\n{coverage}\n"
            "Fetch the folder again; weights that are foreign on purpose are left out by ignore=('their name',)"
        )
        raise ValueError(msg)
    if bad := not_finite(state.weights):
        msg = f"{bundle.weights_file} holds NaN or infinity in {', '.join(map(state.spelled.get, bad))}; fetch it again"  # type: ignore[arg-type]
        raise ValueError(msg)
    return {
        "config": config,
        "vocab": bundle.vocab,
        "network": adopt(network, state.weights),
        "name": str(own.get("name", bundle.name)),
        "labels": names_of(own, "labels", file),
        "batches": names_of(own, "batches", file),
        "provenance": {"format": "official", "args": args, "assumed": _assumed(args, folder)},
        "coverage": coverage,
    }


def read_state(file: Path, *, ignore: Collection[str] = ()) -> State:
    """Weights of a .pt file, memory-mapped, names of any age; nothing but tensors is loaded.

    Raises
    ------
    ValueError
        The file is truncated, holds pickled code or something other than a flat table of tensors.
    """
    raw = _load_tensors(file)
    weights: dict[str, Tensor] = {}
    spelled: dict[str, str] = {}
    unknown: dict[str, tuple[int, ...]] = {}
    left_out = tuple(name for name in raw if name.startswith(tuple(ignore)))
    for name, tensor in raw.items():
        ours = to_ours(name)
        if name in left_out:
            continue
        if ours is None:
            unknown[name] = tuple(tensor.shape)
        elif ours in weights:
            msg = f"{file} holds the same weight twice, as {spelled[ours]!r} and {name!r}; ignore= one of them"
            raise ValueError(msg)
        else:
            weights[ours], spelled[ours] = tensor, name
    return State(weights, spelled, unknown, left_out)


def cover(state: State, config: ModelConfig) -> Coverage:
    """The coverage table, in the file's own spelling."""
    published = _spelling(config)
    return compare(
        shapes(state.weights),
        shapes(skeleton(config).state_dict()),
        spell=lambda name: state.spelled.get(name) or published(name) or name,
        unexpected=tuple(f"{name} {shape}" for name, shape in state.unknown.items()),
        left_out=state.left_out,
        absent_heads=tuple(head for head in HEADS if head not in config.heads),
    )


def write(
    model: Model,
    folder: str | Path,
    *,
    attention_names: Literal["Wqkv", "in_proj"] = "Wqkv",
    overwrite: bool = False,
) -> Path:
    """Write a model for the published package; see `Model.export_official`."""
    if attention_names not in ("Wqkv", "in_proj"):
        msg = f"attention_names={attention_names!r}, expected 'Wqkv' (the releases) or 'in_proj' (torch's own layers)"
        raise ValueError(msg)
    state = export_state(model, attention_names=attention_names)
    args = _args_of(model)
    with written_beside(folder, overwrite=overwrite) as beside:
        try:
            torch.save(state, beside / WEIGHTS)
        except RuntimeError as error:  # a full disk comes as this
            raise OSError(str(error)) from error
        model.vocab.save(beside / "vocab.json")
        (beside / "args.json").write_text(json.dumps(args, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return Path(folder)


def export_state(model: Model, *, attention_names: str = "Wqkv") -> OrderedDict[str, Tensor]:
    """Weights under their published names, float32 on the CPU.

    Raises
    ------
    ValueError
        The published package has no name for some of them.
    """
    published = _spelling(model.config)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for ours, tensor in model.network.state_dict().items():
        name = published(ours)
        if name is None:
            msg = f"the published package has no place for {ours!r}; save the model with Model.save instead"
            raise ValueError(msg)
        if attention_names == "in_proj":
            name = name.replace(".Wqkv.", ".in_proj_")
        tensor = tensor.detach().cpu()
        # a copy: a memory-mapped tensor would otherwise take its whole file along
        state[name] = (tensor.float() if tensor.is_floating_point() else tensor).clone()
    return state


def _load_tensors(file: Path) -> Mapping[str, Tensor]:
    with file.open("rb") as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"  # files from before torch 1.6 are none and cannot be mapped
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        msg = (
            f"{file} holds pickled code or damaged bytes, and only tensors are loaded; nothing of it was run. "
            f"Save its state_dict() alone, or fetch it again. torch says: {_first_line(error)}"
        )
        raise ValueError(msg) from error
    except Exception as error:  # on damaged bytes torch raises whatever it stumbles over
        msg = f"{file} is no whole torch file ({_first_line(error)}); it may be truncated, fetch it again"
        raise ValueError(msg) from error
    if not isinstance(state, Mapping):
        msg = f"{file} holds a {type(state).__name__}, expected a table of parameter names and tensors"
        raise ValueError(msg)
    if odd := [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        msg = (
            f"{file} holds things that are no tensors: {', '.join(odd[:5])}. Expected a flat table of names and "
            "tensors; where the weights are one of these, save that one alone with torch.save"
        )
        raise ValueError(msg)
    if odd := [repr(name) for name in state if not isinstance(name, str)]:
        msg = f"{file} holds tensors whose names are no text: {', '.join(odd[:5])}; save the model's state_dict() anew"
        raise ValueError(msg)
    if odd := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        msg = (
            f"{file} holds tensors that are sparse, quantised, complex or without numbers: {', '.join(odd[:5])}. "
            "Expected plain ones: save them anew after .to_dense() or .dequantize()"
        )
        raise ValueError(msg)
    return state


def _is_plain(tensor: Tensor) -> bool:
    return not (tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta)


def _check_sizes(state: State, bundle: Bundle) -> None:
    """args.json and vocab.json against the weights, before any table: one wrong number misshapes everything."""
    lacking = [name for name in _EVERY_MODEL_HAS if name not in state.weights]
    if lacking:
        names = ", ".join(to_published(name) or name for name in lacking)
        msg = (
            f"{bundle.weights_file} lacks {names}, which every scGPT model has; it holds {len(state.spelled)} weights "
            f"that are known and {len(state.unknown)} that are not: {', '.join(list(state.unknown)[:5]) or 'none'}"
        )
        raise ValueError(msg)
    shape = shapes(state.weights)
    if odd := [name for name in shape if name.endswith(_TABLES) and len(shape[name]) != 2]:
        names = ", ".join(f"{state.spelled[name]} of shape {shape[name]}" for name in odd)
        msg = f"{bundle.weights_file} holds {names}: two dimensions are expected; fetch it again"
        raise ValueError(msg)
    n_tokens, width = shape[_EVERY_MODEL_HAS[0]]
    layers = len({name.split(".")[2] for name in shape if name.startswith("backbone.blocks.")})
    found = {"embsize": width, "d_hid": shape[_EVERY_MODEL_HAS[1]][0], "nlayers": layers}
    said = {"embsize": bundle.d_model, "d_hid": bundle.d_ff, "nlayers": bundle.n_layers}
    wrong = [f"{key} is {said[key]} and the weights have {found[key]}" for key in found if found[key] != said[key]]
    if wrong:
        msg = f"{bundle.path / 'args.json'} does not belong to {WEIGHTS}: {'; '.join(wrong)}; fetch both again"
        raise ValueError(msg)
    if n_tokens != len(bundle.vocab):
        msg = (
            f"{bundle.path / 'vocab.json'} has {len(bundle.vocab):,} names (<pad>, <cls>, <eoc> appended where absent) "
            f"and the gene table of {WEIGHTS} has {n_tokens:,} rows: they belong to different models; fetch both again"
        )
        raise ValueError(msg)


def _config(args: Mapping[str, Any], weights: Mapping[str, Tensor], bundle: Bundle) -> ModelConfig:
    """The config that args.json and shapes give; the rest is as the published package embeds."""
    file = bundle.path / "args.json"
    pad_value, mask_value, dropout = (_number(args, key, file) for key in ("pad_value", "mask_value", "dropout"))
    known: dict[str, Any] = {
        "pad_id": bundle.vocab.pad_id,
        "cls_id": bundle.vocab.cls_id,
        "d_model": bundle.d_model,
        "n_heads": bundle.n_heads,
        "n_layers": bundle.n_layers,
        "d_ff": bundle.d_ff,
        "dropout": dropout,
        "n_bins": bundle.n_bins,
        "max_length": bundle.max_length,
        "ties": "spread",
        "unknown_skips_projection": "backbone.flags.weight" in weights,  # as the published generative branch does
    }
    if "backbone.values.table.weight" in weights:  # category values: pad and mask follow the bins
        pad_value, mask_value = bundle.n_bins, bundle.n_bins + 1
    if "heads.cls.out.weight" not in weights:  # null, which changes nothing then, is the default too
        said = args.get("n_layers_cls")
        known["n_layers_cls"] = 3 if said is None else said
    values = {"pad_value": pad_value, "mask_value": mask_value, "cls_value": pad_value}
    try:
        return infer_config(weights, **known, **{key: float(value) for key, value in values.items()})
    except ValueError as error:
        msg = f"{file}: {error} (d_model is embsize there, n_heads nheads, max_length max_seq_len)"
        raise ValueError(msg) from error


def _override(config: ModelConfig, extra: Any, file: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(config.to_dict() | dict(extra))
    except (TypeError, ValueError) as error:
        msg = f"{file}: {_OWN}.config is not understood ({error})"
        raise ValueError(msg) from error


def _args_of(model: Model) -> dict[str, Any]:
    """args.json: the one that the model came with, brought up to date, and what its keys cannot say."""
    config = model.config
    args: dict[str, Any] = dict(model.provenance.get("args") or {})
    args |= {
        "embsize": config.d_model,
        "nheads": config.n_heads,
        "d_hid": config.d_ff,
        "nlayers": config.n_layers,
        "n_layers_cls": config.n_layers_cls,  # the published loader asks for it, head or no head
        "dropout": config.dropout,
        "n_bins": config.n_bins,
        "max_seq_len": config.max_length,
        "pad_token": "<pad>",
        "pad_value": _plain(config.pad_value),
        "mask_value": _plain(config.mask_value),
        "input_style": args.get("input_style", "binned"),
        "input_emb_style": config.value_style,
        "MVC": "gepc" in config.heads,
    }
    bundle = Bundle(
        Path(), model.name, "official", model.vocab, config.d_model, config.n_layers, config.n_heads, config.d_ff,
        config.n_bins, config.max_length, "spread", Path(WEIGHTS),
    )  # fmt: skip
    told = _config(args, model.network.state_dict(), bundle).to_dict()
    own = {
        "config": {key: value for key, value in config.to_dict().items() if told[key] != value},
        "labels": model.labels,
        "batches": model.batches,
    }
    args.pop(_OWN, None)
    own = {key: value for key, value in own.items() if value}
    return args | ({_OWN: own} if own else {})


def _spelling(config: ModelConfig) -> Any:
    """Our name -> the published name in this kind of model, or None."""
    category, domain = config.value_style == "category", config.input_norm == "domain"
    return lambda name: to_published(name, category_values=category, domain_norm=domain)


def _assumed(args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    assumed = {key: value for key, value in DEFAULTS.items() if key not in args}
    if assumed:
        logger.info("%s does not say %s; assumed: %s", folder / "args.json", ", ".join(assumed), assumed)
    if (style := args.get("input_style", "binned")) != "binned":
        logger.warning("%s: input_style is %r, and this package shows every model bins", folder / "args.json", style)
    return assumed


def _number(args: Mapping[str, Any], key: str, file: Path) -> float:
    value = args.get(key, DEFAULTS[key])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        msg = f"{file}: {key} is {value!r}, expected a finite number"
        raise ValueError(msg)
    return value


def _own(args: Mapping[str, Any], file: Path) -> dict[str, Any]:
    own = args.get(_OWN, {})
    if not isinstance(own, dict):
        msg = f"{file}: {_OWN} is {own!r}, expected an object"
        raise ValueError(msg)
    return own


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _plain(value: float) -> float:
    """-2.0 -> -2, as published files write it."""
    return int(value) if value == int(value) else value

"""The two-way table between the published checkpoints' parameter names and ours, and the config that shapes imply."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scgpt_tl.core.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

#: published -> ours; `{n}` is a layer number. Both columns are unique for a given kind of value encoder.
NAMES: dict[str, str] = {
    "encoder.embedding.": "backbone.genes.table.",
    "encoder.enc_norm.": "backbone.genes.norm.",
    "value_encoder.linear1.": "backbone.values.linear1.",
    "value_encoder.linear2.": "backbone.values.linear2.",
    "value_encoder.norm.": "backbone.values.norm.",
    "value_encoder.embedding.": "backbone.values.table.",
    "value_encoder.enc_norm.": "backbone.values.norm.",
    "flag_encoder.": "backbone.flags.",
    "pert_encoder.": "backbone.conditions.",
    "bn.": "backbone.input_norm.norms.0.",
    "dsbn.bns.{n}.": "backbone.input_norm.norms.{n}.",
    "transformer_encoder.layers.{n}.self_attn.Wqkv.": "backbone.blocks.{n}.attn.qkv.",
    "transformer_encoder.layers.{n}.self_attn.out_proj.": "backbone.blocks.{n}.attn.out.",
    "transformer_encoder.layers.{n}.linear1.": "backbone.blocks.{n}.up.",
    "transformer_encoder.layers.{n}.linear2.": "backbone.blocks.{n}.down.",
    "transformer_encoder.layers.{n}.norm1.": "backbone.blocks.{n}.norm1.",
    "transformer_encoder.layers.{n}.norm2.": "backbone.blocks.{n}.norm2.",
    "decoder.fc.": "heads.gep.value.",
    "decoder.zero_logit.": "heads.gep.nonzero.",
    "decoder.coeff_decoder.fc.": "heads.perturb.slope.",
    "decoder.bias_decoder.fc.": "heads.perturb.offset.",
    "cls_decoder._decoder.": "heads.cls.body.",
    "cls_decoder.out_layer.": "heads.cls.out.",
    "grad_reverse_discriminator._decoder.": "heads.dar.body.",
    "grad_reverse_discriminator.out_layer.": "heads.dar.out.",
    "mvc_decoder.gene2query.": "heads.gepc.query.",
    "mvc_decoder.W.": "heads.gepc.bilinear.",
    "mvc_decoder.W_zero_logit.": "heads.gepc.nonzero.",
    "mvc_decoder.fc1.": "heads.gepc.fc1.",
    "mvc_decoder.fc2.": "heads.gepc.fc2.",
    "mvc_decoder.hidden_activation.": "heads.gepc.activation.",
    "batch_encoder.embedding.": "heads.batches.table.",
    "batch_encoder.enc_norm.": "heads.batches.norm.",
    "mod_encoder.embedding.": "heads.modalities.table.",
    "mod_encoder.enc_norm.": "heads.modalities.norm.",
}


def _patterns(table: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    number = re.escape("{n}")
    return [
        (re.compile(re.escape(old).replace(number, r"(\d+)") + r"(?=\w)"), new.replace("{n}", r"\g<1>"))
        for old, new in table
    ]


_TO_OURS = _patterns(NAMES.items())
_TO_PUBLISHED = _patterns((ours, published) for published, ours in NAMES.items())


def heal(name: str) -> str:
    """A published name of any age in its newest spelling: `module.`, `_impl.` and torch's `in_proj_` forms undone."""
    name = name.removeprefix("module.").replace("self_attn._impl.", "self_attn.")
    return name.replace("self_attn.in_proj_", "self_attn.Wqkv.")


def to_ours(name: str) -> str | None:
    """Our name of a published parameter; None where it is unknown."""
    return _translate(heal(name), _TO_OURS)


def to_published(name: str, *, category_values: bool = False, domain_norm: bool = False) -> str | None:
    """The published name of one of our parameters; None where it has none.

    Two of our names stand for two published ones each: the value encoder's norm and the input norm.
    """
    if category_values and name.startswith("backbone.values.norm."):
        return name.replace("backbone.values.norm.", "value_encoder.enc_norm.")
    if domain_norm and name.startswith("backbone.input_norm.norms."):
        return name.replace("backbone.input_norm.norms.", "dsbn.bns.")
    return _translate(name, _TO_PUBLISHED)


def _translate(name: str, patterns: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, new in patterns:
        if pattern.match(name):
            return pattern.sub(new, name, count=1)
    return None


def infer_config(state: Mapping[str, Tensor], **known: Any) -> ModelConfig:
    """The config that a state (our names) implies, for what shapes can tell; `known` gives and overrides the rest.

    Shapes cannot tell the number of heads, dropout, special values, `cell_style`, `norm_scheme` or `ties`.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in state.items()}
    n_tokens, d = shape["backbone.genes.table.weight"]
    blocks = {name.split(".")[2] for name in shape if name.startswith("backbone.blocks.")}
    every = ("gep", "gepc", "cls", "dar", "perturb")
    heads = tuple(head for head in every if any(name.startswith(f"heads.{head}.") for name in shape))
    table = "backbone.values.table.weight"
    linear = "backbone.values.linear1.weight"
    norms = {name.split(".")[3] for name in shape if name.startswith("backbone.input_norm.")}
    affine = "backbone.input_norm.norms.0.weight" in shape
    batches = shape.get("heads.batches.table.weight", shape.get("heads.dar.out.weight", (0,)))[0]
    fc1 = shape.get("heads.gepc.fc1.weight")
    style = "inner product" if fc1 is None else "concat query" if fc1[1] == d + 64 else "sum query"
    found: dict[str, Any] = {
        "n_tokens": n_tokens,
        "d_model": d,
        "n_layers": len(blocks),
        "d_ff": shape["backbone.blocks.0.up.weight"][0],
        "value_style": "continuous" if linear in shape else "category" if table in shape else "scaling",
        "input_norm": "none" if not norms else "batch" if affine else "domain",
        "n_conditions": shape.get("backbone.conditions.weight", (0,))[0],
        "flag_unknown": "backbone.flags.weight" in shape,
        "n_batches": max(batches, len(norms) if norms and not affine else 0),
        "n_modalities": shape.get("heads.modalities.table.weight", (0,))[0],
        "batch_in_heads": "heads.batches.table.weight" in shape,
        "context_in_queries": shape.get("heads.gepc.query.weight", (d,))[-1] == 2 * d,
        "n_classes": shape.get("heads.cls.out.weight", (0,))[0],
        "n_layers_cls": 1 + sum(bool(re.fullmatch(r"heads\.cls\.body\.\d+\.weight", n)) for n in shape) // 2,
        "heads": heads,
        "zero_probability": any(".nonzero." in n for n in shape),
        "gepc_style": style,
    }
    if table in shape:
        found["n_bins"] = shape[table][0] - 2
    return ModelConfig(**(found | known))

"""The network's shape, as a value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scgpt_tl._nearest import check_choice, nearest

#: Sizes that a network cannot do without; any other is 0 at least.
_LEAST = dict.fromkeys(("n_tokens", "d_model", "n_heads", "n_layers", "d_ff", "n_layers_cls"), 1)
_LEAST |= {"n_bins": 2, "max_length": 2}  # a bin for zeros and one for the rest; <cls> and a gene


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a network; a saved model carries it as ``config.json``."""

    n_tokens: int
    """Vocabulary size, special tokens included."""
    pad_id: int
    cls_id: int
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 12
    d_ff: int = 512
    dropout: float = 0.2
    attn_dropout: float = 0.0
    """Above 0 the plain attention kernel is used: the fused ones have none."""

    # input
    n_bins: int = 51
    """Binned values run from 0 (not expressed) to n_bins - 1; equation (2)."""
    ties: Literal["spread", "upper"] = "spread"
    """How `pp.bin_values` placed tied values when the model was trained."""
    max_length: int = 1200
    """Tokens of a cell, `<cls>` included; longer cells are sampled."""
    pad_value: float = -2.0
    mask_value: float = -1.0
    cls_value: float = -2.0
    """Value shown at `<cls>`: -2 in the published pretraining and embedding code, 0 in its fine-tuning code."""
    value_style: Literal["continuous", "category", "scaling"] = "continuous"
    norm_scheme: Literal["post", "published_pre"] = "post"
    """`published_pre` normalises the residual stream itself, as the published flash layer's "pre" does."""
    input_norm: Literal["none", "batch", "domain"] = "none"
    n_conditions: int = 0
    """Size of the condition table of equation (5), e.g. 3 for perturbation flags; 0: none."""
    flag_unknown: bool = False
    """Unknown genes carry a learned flag in place of a value (generative pretraining)."""
    unknown_skips_projection: bool = False
    """The published generative layers do not apply attention's output projection to unknown genes."""

    # cell and token outputs
    cell_style: Literal["cls", "w-pool"] = "cls"
    n_batches: int = 0
    n_modalities: int = 0
    pad_modality: int | None = None
    batch_in_heads: bool = False
    """Batch embeddings join GEP and GEPC inputs, equations (8) and (9)."""
    context_in_queries: bool = False
    """They join GEPC's gene queries too, as in the published multi-omic model."""
    n_classes: int = 0
    n_layers_cls: int = 3
    heads: tuple[str, ...] = ("gep", "gepc")
    """Of gep, gepc, cls, dar, perturb."""
    zero_probability: bool = False
    adaptive_offset: bool = False
    """perturb: slope and offset are non-negative and the offset scales with the cell's mean non-zero value."""
    gepc_style: Literal["inner product", "concat query", "sum query"] = "inner product"

    def __post_init__(self) -> None:
        heads: Any = self.heads  # JSON gives a list
        object.__setattr__(self, "heads", (heads,) if isinstance(heads, str) else tuple(heads))
        for name, kind in _kinds().items():
            _check_kind(name, getattr(self, name), kind)
        for name in ("dropout", "attn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                msg = f"{name}={getattr(self, name)}: a share from 0 to below 1 is expected"
                raise ValueError(msg)
        for name in ("pad_id", "cls_id"):
            if getattr(self, name) >= self.n_tokens:
                msg = f"{name}={getattr(self, name)} is no token: n_tokens is {self.n_tokens}"
                raise ValueError(msg)
        if self.d_model % self.n_heads:
            msg = f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}"
            raise ValueError(msg)
        self._check_special_values()

    def _check_special_values(self) -> None:
        """Values are looked up in a table of the bins and these."""
        if self.value_style == "scaling":
            return
        most = self.n_bins + 1 if self.value_style == "category" else self.n_bins - 1
        for name in ("pad_value", "mask_value", "cls_value"):
            value = getattr(self, name)
            if value != int(value) or value > most:
                msg = f"{name}={value}: a whole number of at most {most} is expected where n_bins is {self.n_bins}"
                raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"heads": list(self.heads)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; an unknown key is refused with the nearest name."""
        names = [f.name for f in fields(cls)]
        for key in values:
            if key not in names:
                msg = f"unknown model option {key!r}; {nearest(key, names)}"
                raise ValueError(msg)
        return cls(**values)

    @property
    def d_context(self) -> int:
        """Width that batch and modality embeddings add to the heads' input; 0 where none join."""
        return self.d_model if (self.batch_in_heads or self.n_modalities) else 0


@cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(ModelConfig)


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """Refuse what is not of the kind that a field is declared as, or no size."""
    if get_origin(kind) is Literal:
        check_choice(name, value, get_args(kind))
    elif kind is bool or kind is float:
        fits = isinstance(value, bool) if kind is bool else _is_number(value, Real) and isfinite(value)
        if not fits:
            msg = f"{name}={value!r}: {'true or false' if kind is bool else 'a finite number'} is expected"
            raise ValueError(msg)
    elif name != "heads" and not (value is None and type(None) in get_args(kind)):
        least = _LEAST.get(name, 0)
        if not _is_number(value, Integral) or value < least:
            msg = f"{name}={value!r}: at least {least} is needed, a whole number"
            raise ValueError(msg)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

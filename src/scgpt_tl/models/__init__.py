"""Weights in and out: native and official folders, and the registry of published models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.models.model import Model as Model
    from scgpt_tl.models.model import load_model as load_model
    from scgpt_tl.models.model import with_random_weights as with_random_weights
    from scgpt_tl.models.registry import available as available
    from scgpt_tl.models.registry import verify as verify

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Model": "model",
        "available": "registry",
        "load_model": "model",
        "verify": "registry",
        "with_random_weights": "model",
    },
)

"""Running the core: data, recipes and training (which know Lightning), prediction (which does not)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.engine.config import TrainConfig as TrainConfig

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "TrainConfig": "config",
    },
)

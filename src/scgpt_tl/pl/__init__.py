"""Plots: slots -> matplotlib Axes; never tl, engine or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.pl._embedding import embedding as embedding
    from scgpt_tl.pl._history import training_history as training_history

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "embedding": "_embedding",
        "training_history": "_history",
    },
)

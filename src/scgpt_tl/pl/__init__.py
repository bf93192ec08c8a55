"""Plots: slots -> matplotlib Axes; never tl, engine or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.pl._calibration import calibration as calibration
    from scgpt_tl.pl._confidence import confidence as confidence
    from scgpt_tl.pl._confusion import confusion as confusion
    from scgpt_tl.pl._embedding import embedding as embedding
    from scgpt_tl.pl._history import training_history as training_history
    from scgpt_tl.pl._integration import integration as integration
    from scgpt_tl.pl._metrics import metrics as metrics

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "calibration": "_calibration",
        "confidence": "_confidence",
        "confusion": "_confusion",
        "embedding": "_embedding",
        "integration": "_integration",
        "metrics": "_metrics",
        "training_history": "_history",
    },
)

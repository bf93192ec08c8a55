"""Plots: slots -> matplotlib Axes; never tl, engine or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.pl._attention import attention as attention
    from scgpt_tl.pl._calibration import calibration as calibration
    from scgpt_tl.pl._confidence import confidence as confidence
    from scgpt_tl.pl._confusion import confusion as confusion
    from scgpt_tl.pl._embedding import embedding as embedding
    from scgpt_tl.pl._enrichment import enrichment as enrichment
    from scgpt_tl.pl._history import training_history as training_history
    from scgpt_tl.pl._integration import integration as integration
    from scgpt_tl.pl._metrics import metrics as metrics
    from scgpt_tl.pl._network import network as network
    from scgpt_tl.pl._overlap import overlap as overlap
    from scgpt_tl.pl._programs import programs as programs

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "attention": "_attention",
        "calibration": "_calibration",
        "confidence": "_confidence",
        "confusion": "_confusion",
        "embedding": "_embedding",
        "enrichment": "_enrichment",
        "integration": "_integration",
        "metrics": "_metrics",
        "network": "_network",
        "overlap": "_overlap",
        "programs": "_programs",
        "training_history": "_history",
    },
)

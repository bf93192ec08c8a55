"""Slots -> tidy DataFrames, and files made of them; never tl, engine or torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.get._annotation import annotation_df as annotation_df
    from scgpt_tl.get._calibration import calibration_df as calibration_df
    from scgpt_tl.get._confusion import confusion_df as confusion_df
    from scgpt_tl.get._enrichment import enrichment_df as enrichment_df
    from scgpt_tl.get._export import write_grn as write_grn
    from scgpt_tl.get._grn import grn_df as grn_df
    from scgpt_tl.get._history import history_df as history_df
    from scgpt_tl.get._history import run_params as run_params
    from scgpt_tl.get._programs import programs_df as programs_df

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "annotation_df": "_annotation",
        "calibration_df": "_calibration",
        "confusion_df": "_confusion",
        "enrichment_df": "_enrichment",
        "grn_df": "_grn",
        "history_df": "_history",
        "programs_df": "_programs",
        "run_params": "_history",
        "write_grn": "_export",
    },
)

"""Preprocessing: AnnData in, AnnData out; never torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.pp._bin import bin_values as bin_values
    from scgpt_tl.pp._check import InputReport as InputReport
    from scgpt_tl.pp._check import check_input as check_input
    from scgpt_tl.pp._features import select_genes as select_genes
    from scgpt_tl.pp._features import select_peaks as select_peaks
    from scgpt_tl.pp._genes import harmonize_genes as harmonize_genes

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "InputReport": "_check",
        "bin_values": "_bin",
        "check_input": "_check",
        "harmonize_genes": "_genes",
        "select_genes": "_features",
        "select_peaks": "_features",
    },
)

"""Tools: check slots, call the engine, write slots. One file per function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.tl._annotate import scgpt_annotate as scgpt_annotate
    from scgpt_tl.tl._build_reference import build_reference as build_reference
    from scgpt_tl.tl._compare_programs import ProgramComparison as ProgramComparison
    from scgpt_tl.tl._compare_programs import compare_programs as compare_programs
    from scgpt_tl.tl._corpus import open_corpus as open_corpus
    from scgpt_tl.tl._embed import scgpt_embed as scgpt_embed
    from scgpt_tl.tl._enrich import scgpt_enrich as scgpt_enrich
    from scgpt_tl.tl._finetune import scgpt_finetune as scgpt_finetune
    from scgpt_tl.tl._grn import scgpt_grn as scgpt_grn
    from scgpt_tl.tl._integrate import scgpt_integrate as scgpt_integrate
    from scgpt_tl.tl._map import scgpt_map as scgpt_map
    from scgpt_tl.tl._pretrain import scgpt_pretrain as scgpt_pretrain

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ProgramComparison": "_compare_programs",
        "build_reference": "_build_reference",
        "compare_programs": "_compare_programs",
        "open_corpus": "_corpus",
        "scgpt_annotate": "_annotate",
        "scgpt_embed": "_embed",
        "scgpt_enrich": "_enrich",
        "scgpt_finetune": "_finetune",
        "scgpt_grn": "_grn",
        "scgpt_integrate": "_integrate",
        "scgpt_map": "_map",
        "scgpt_pretrain": "_pretrain",
    },
)

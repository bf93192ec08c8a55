"""Tools: check slots, call the engine, write slots. One file per function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.tl._annotate import scgpt_annotate as scgpt_annotate
    from scgpt_tl.tl._build_reference import build_reference as build_reference
    from scgpt_tl.tl._corpus import open_corpus as open_corpus
    from scgpt_tl.tl._embed import scgpt_embed as scgpt_embed
    from scgpt_tl.tl._finetune import scgpt_finetune as scgpt_finetune
    from scgpt_tl.tl._integrate import scgpt_integrate as scgpt_integrate
    from scgpt_tl.tl._map import scgpt_map as scgpt_map
    from scgpt_tl.tl._pretrain import scgpt_pretrain as scgpt_pretrain

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "build_reference": "_build_reference",
        "open_corpus": "_corpus",
        "scgpt_annotate": "_annotate",
        "scgpt_embed": "_embed",
        "scgpt_finetune": "_finetune",
        "scgpt_integrate": "_integrate",
        "scgpt_map": "_map",
        "scgpt_pretrain": "_pretrain",
    },
)

"""Gene names: the vocabulary, the offline harmoniser, and model folders read without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgpt_tl._lazy import attach

if TYPE_CHECKING:
    from scgpt_tl.genes.bundle import Bundle as Bundle
    from scgpt_tl.genes.bundle import read_bundle as read_bundle
    from scgpt_tl.genes.bundle import resolve as resolve
    from scgpt_tl.genes.match import GeneMatch as GeneMatch
    from scgpt_tl.genes.match import match_genes as match_genes
    from scgpt_tl.genes.table import GeneTable as GeneTable
    from scgpt_tl.genes.table import hgnc_table as hgnc_table
    from scgpt_tl.genes.vocab import GeneVocab as GeneVocab

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Bundle": "bundle",
        "GeneMatch": "match",
        "GeneTable": "table",
        "GeneVocab": "vocab",
        "hgnc_table": "table",
        "match_genes": "match",
        "read_bundle": "bundle",
        "resolve": "bundle",
    },
)

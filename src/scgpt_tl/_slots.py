"""Every name that scgpt_tl reads or writes in an AnnData, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slots:
    """Default keys. `obsm`, `varm`, `layers`, `var`, `uns` say where a key lives."""

    # pp
    binned: str = "binned"  # layers, uns: binned values and how they were made
    gene: str = "scgpt_gene"  # var: the vocabulary's name of a gene, "" where there is none
    gene_how: str = "scgpt_gene_how"  # var: how the name was found (categorical)
    genes: str = "scgpt_genes"  # uns: summary of harmonize_genes
    # tl.scgpt_embed
    embedding: str = "X_scGPT"  # obsm
    gene_embedding: str = "scGPT"  # varm
    run: str = "scgpt"  # uns: parameters of the run


SLOTS = Slots()

#: `.uns[key][OWNER]` marks a result as ours; only such a result may be overwritten without being asked.
OWNER = "scgpt_tl"

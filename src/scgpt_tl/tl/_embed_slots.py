"""Where `tl.scgpt_embed` writes, and what it wrote there before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgpt_tl._slots import SLOTS, is_ours

if TYPE_CHECKING:
    from anndata import AnnData

#: What `tl.scgpt_embed` signs its results with.
EMBED_MAKER = "tl.scgpt_embed"


@dataclass(frozen=True)
class EmbedKeys:
    """Where a call writes."""

    cells: str
    genes: str
    context: str
    run: str

    @classmethod
    def of(cls, key_added: str | None = None) -> EmbedKeys:
        """The default keys, or all of them under one name."""
        if key_added is None:
            return cls(SLOTS.embedding, SLOTS.gene_embedding, SLOTS.gene_context, SLOTS.run)
        return cls(key_added, key_added, f"{key_added}_context", key_added)

    def places(self, *, cells: bool, context: bool) -> dict[str, tuple[str, ...]]:
        """By slot; `cells`: they go to `.obsm`, `context`: genes are averaged by group."""
        varm = (self.genes, self.context) if context else (self.genes,)
        return {"obsm": (self.cells,) if cells else (), "varm": varm, "uns": (self.run,)}

    def earlier(self, adata: AnnData) -> dict[str, tuple[str, ...]]:
        """What a run of ours has written here before."""
        if not is_ours(adata, key=self.run, maker=EMBED_MAKER):
            return {}
        run = adata.uns[self.run]
        return self.places(cells=not run.get("params", {}).get("out"), context="groups" in run)

    def drop_earlier(self, adata: AnnData) -> None:
        """Nothing of an earlier run of ours may stand beside what is written now; what others wrote stays."""
        for slot, names in self.earlier(adata).items():
            for name in names:
                getattr(adata, slot).pop(name, None)

"""Where `tl.scgpt_grn` writes, what it wrote there before, and how all of it is written at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import NETWORK_MAKER, SLOTS, is_ours, program_key

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass
class Found:
    """All that will be written, by slot."""

    varp: dict[str, Any] = field(default_factory=dict)
    varm: dict[str, Any] = field(default_factory=dict)
    var: dict[str, Any] = field(default_factory=dict)
    obsm: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)
    """The entry of this call."""
    columns: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """(M,) of the genes that have results, ascending."""


@dataclass(frozen=True)
class Keys:
    """Where this call writes."""

    network: str
    program: str

    @classmethod
    def of(cls, key_added: str | None) -> Keys:
        """The default keys, or those made of one name."""
        network = SLOTS.network if key_added is None else key_added
        return cls(network, program_key(network))

    def places(self, method: str, n_groups: int, *, with_regulators: bool) -> dict[str, tuple[str, ...]]:
        """By slot."""
        if method == "embedding":
            own = dict.fromkeys(("var", "varm", "obsm"), (self.program,))
            return {"varp": (self.network,), **own, "uns": (self.network,)}
        if with_regulators:
            return {"varm": (self.network,), "uns": (self.network,)}
        several = tuple(f"{self.network}_{i}" for i in range(n_groups))
        return {"varp": several if n_groups > 1 else (self.network,), "uns": (self.network,)}

    def earlier(self, adata: AnnData) -> dict[str, tuple[str, ...]]:
        """What a run of ours has written here before."""
        if not is_ours(adata, key=self.network, maker=NETWORK_MAKER):
            return {}
        run = adata.uns[self.network]
        with_regulators = np.size(run["regulators"]) > 0
        return self.places(str(run["method"]), np.size(run["groups"]), with_regulators=with_regulators)

    def write(self, adata: AnnData, found: Found) -> None:
        """All slots, at once; nothing of an earlier run of ours may stand beside them."""
        for slot, names in self.earlier(adata).items():
            for name in names:
                if name in getattr(adata, slot):
                    del getattr(adata, slot)[name]
        for slot in ("varp", "varm", "var", "obsm"):
            for name, value in getattr(found, slot).items():
                getattr(adata, slot)[name] = value
        adata.uns[self.network] = found.uns

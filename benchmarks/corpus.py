"""The shipped model's corpus and options, and its training on a CPU.

    SCGPT_TL_DATA=... python benchmarks/corpus.py --out DIR

13,744 cells: pbmc3k, donor A of Zheng et al. 2017, control cells of five of the eight donors of Kang et al. 2018.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from scgpt_tl import TrainConfig

if TYPE_CHECKING:
    from anndata import AnnData

#: Below SCGPT_TL_DATA.
FILES = ("pbmc3k/pbmc3k.h5ad", "pbmc_donorA/pbmc_donorA.h5ad", "kang_ctrl12k/kang_ctrl12k.h5ad")
#: Donors of the last file that no training may see.
HELD_OUT_DONORS = ("101", "107", "1015")
#: How this edition of pbmc-mini was trained.
EDITION = TrainConfig(epochs=8, cells=64, max_length=160, learning_rate=1e-3)


def studies() -> dict[str, AnnData]:
    """The corpus, from the folder that SCGPT_TL_DATA names."""
    import anndata as ad

    folder = Path(os.environ["SCGPT_TL_DATA"])
    found = {}
    for name in FILES:
        adata = ad.read_h5ad(folder / name)
        if "donor" in adata.obs:
            adata = adata[~adata.obs["donor"].astype(str).isin(HELD_OUT_DONORS)].copy()
        found[Path(name).stem] = adata
    return found


def main() -> None:
    """Train and save."""
    import scgpt_tl

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    scgpt_tl.tl.scgpt_pretrain(studies(), out=args.out / "pbmc-mini", size="mini", train=EDITION)


if __name__ == "__main__":
    main()

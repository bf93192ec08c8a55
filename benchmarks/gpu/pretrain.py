"""Pretrain the shipped model on a CUDA machine: needs torch, numba, lightning and h5py, no anndata.

    SCGPT_TL_DATA=... python benchmarks/gpu/pretrain.py --out OUT/pretrained [--epochs N]

Reads the three studies of the pretraining set (see `corpus`) and writes a native model folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parents[1]))

from corpus import EDITION, FILES, HELD_OUT_DONORS

from scgpt_tl.engine.pretrain import pretrain
from scgpt_tl.engine.recipes import GENERATIVE_CONTRAST
from scgpt_tl.engine.study import Source
from scgpt_tl.pp._blocks import open_matrix


def read(file: Path) -> Source:
    """Counts and gene names of an h5ad file, donors that are kept out left out."""
    with h5py.File(file) as f:
        x = f["X"]
        rows = sparse.csr_matrix((x["data"][:], x["indices"][:], x["indptr"][:]), shape=x.attrs["shape"])
        genes = f["var"][f["var"].attrs["_index"]].asstr()[:].tolist()
        if "donor" in f["obs"]:
            donor = f["obs/donor"]
            names = donor["categories"].asstr()[:][donor["codes"][:]]
            rows = rows[~np.isin(names, HELD_OUT_DONORS)]
    digest = sha256(file.read_bytes()).hexdigest()
    manifest = {"name": file.stem, "file": file.name, "sha256": digest, "cells": rows.shape[0], "genes": rows.shape[1]}
    return Source(file.stem, genes, partial(open_matrix, rows), rows.shape[0], manifest=manifest)


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EDITION.epochs)
    args = parser.parse_args()
    folder = Path(os.environ["SCGPT_TL_DATA"])
    sources = [read(folder / name) for name in FILES]
    train = replace(EDITION, epochs=args.epochs)
    pretrain(sources, out=args.out / "pbmc-mini", size="mini", train=train, recipe=GENERATIVE_CONTRAST)


if __name__ == "__main__":
    main()

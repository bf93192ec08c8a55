"""Candidates for the next pbmc-mini: trained on its corpus, scored on sets to choose by and on sets to judge by.

    SCGPT_TL_DATA=... python benchmarks/bench_editions.py --out DIR [--variants NAME ...] [--epochs 2]

An edition is chosen by two sets that are trained on without their labels: pbmc3k, and 2,500 cells of Kang's training
donors. The four of bench_zero_shot.py judge it and choose nothing. AvgBIO is a mean of clusterings, which jumps where
two clusters join; macro-F1 of 15 neighbours, five-fold, and ASW move less and stand beside it. The other side is HVG +
PCA. The cell-prompt pass, which takes a third of the time, is left out; the shipped edition was trained with it. A run
that was cut off goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from _report import Figure, report
from bench_zero_shot import SEEDS, SETS, evaluate_embedding
from corpus import EDITION, HELD_OUT_DONORS, studies

import scgpt_tl
from scgpt_tl.engine.recipes import GENERATIVE_CONTRAST

if TYPE_CHECKING:
    from anndata import AnnData

MEASURES = ("AvgBIO", "ASW", "kNN macro-F1")


@dataclass(frozen=True)
class Variant:
    """What differs from the shipped edition."""

    contrast: float = 0.2
    """Weight of the contrast."""
    temperature: float = 0.1
    by_donor: bool = False
    """No minibatch holds cells of two donors."""
    train: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "contrast .2": Variant(),
    "contrast 1": Variant(contrast=1.0),
    "contrast 1, temperature .3": Variant(contrast=1.0, temperature=0.3),
    "contrast 1, temperature .2, by donor": Variant(contrast=1.0, temperature=0.2, by_donor=True),
    "contrast 1, 400 tokens": Variant(contrast=1.0, train={"max_length": 400}),
}


def corpus(*, by_donor: bool) -> dict[str, AnnData]:
    """The studies of pbmc-mini, or its donors."""
    if not by_donor:
        return studies()
    parts = {}
    for name, adata in studies().items():
        donors = adata.obs["donor"].astype(str) if "donor" in adata.obs else np.full(adata.n_obs, "")
        parts |= {f"{name}_{donor}".rstrip("_"): adata[donors == donor].copy() for donor in sorted(set(donors))}
    return parts


def sets() -> dict[str, tuple[Callable[[], AnnData], str]]:
    """Name -> loader and label column: two to choose by, four to judge by."""

    def kang() -> AnnData:
        adata = scgpt_tl.datasets.kang_ctrl12k()
        adata = adata[~adata.obs["donor"].astype(str).isin(HELD_OUT_DONORS) & adata.obs["cell_type"].notna()]
        return adata[np.sort(np.random.default_rng(0).choice(adata.n_obs, 2500, replace=False))].copy()

    chosen_by = {"pbmc3k": (scgpt_tl.datasets.pbmc3k, "cell_type"), "kang_training_donors": (kang, "cell_type")}
    return chosen_by | {name: (judged.load, judged.labels) for name, judged in SETS.items()}


def scores(embed: Callable[[AnnData], np.ndarray]) -> dict[str, dict[str, float]]:
    """Set -> measures of an embedding."""
    found = {}
    for name, (load, labels_key) in sets().items():
        adata = load()
        adata = adata[adata.obs[labels_key].notna()].copy()
        found[name] = evaluate_embedding(embed(adata), adata.obs[labels_key], seeds=SEEDS)
    return found


def trained(variant: Variant, out: Path, epochs: int) -> Any:
    """The model of a variant."""
    weights = {**GENERATIVE_CONTRAST.weights, "prompt": 0.0, "contrast": variant.contrast}
    recipe = replace(GENERATIVE_CONTRAST, weights=weights, temperature=variant.temperature)
    train = replace(EDITION, **{"epochs": epochs, "device": "cpu", "progress": False, **variant.train})
    cells = corpus(by_donor=variant.by_donor)
    return scgpt_tl.tl.scgpt_pretrain(cells, out=out, size="mini", train=train, recipe=recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    def zero_shot(model: Any) -> Callable[[AnnData], np.ndarray]:
        def embed(adata: AnnData) -> np.ndarray:
            scgpt_tl.tl.scgpt_embed(adata, model=model, device="cpu", progress=False)
            return adata.obsm["X_scGPT"]

        return embed

    rows = {"HVG + PCA": scores(lambda adata: scgpt_tl.metrics.hvg_pca(adata.X))}
    rows["shipped"] = scores(zero_shot("pbmc-mini"))
    for name in args.variants:
        folder = f"{name}_{args.epochs}".replace(", ", "_").replace(" ", "")
        rows[name] = scores(zero_shot(trained(VARIANTS[name], args.out / folder, args.epochs)))
        shown = "  ".join(f"{of} {row['AvgBIO']:.3f}" for of, row in rows[name].items())
        print(f"{name}: {shown}", flush=True)
    figures = []
    for name, row in rows.items():
        for measure in MEASURES:
            for what, members in (("chosen by", list(row)[:2]), ("judged by", list(SETS))):
                ours, theirs = (mean(side[of][measure] for of in members) for side in (row, rows["HVG + PCA"]))
                figures.append(Figure(f"{measure}, sets {what}: {name}, theirs: HVG + PCA", ours=ours, theirs=theirs))
    details = {"epochs": args.epochs, "leiden_seeds": SEEDS, "rows": rows}
    report("editions", figures, details=details, packages=("torch", "lightning", "scanpy", "scikit-learn"))


if __name__ == "__main__":
    main()

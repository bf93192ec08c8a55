"""From expression to a picture and a table: what `scgpt-tl demo` runs, in the order that a notebook would."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scgpt_tl._files import check_target, refuse_source, replacing, sha256_of
from scgpt_tl._slots import SLOTS

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: Columns of .obs that are taken for cell types where the user names none, the first one found.
LABEL_COLUMNS = (
    "cell_type", "celltype", "CellType", "cell_types", "cell_label", "bulk_labels", "annotation", "louvain", "leiden",
)  # fmt: skip
#: Above this a demo is the wrong tool: silhouettes need every pair of cells.
MOST_CELLS = 50_000

RANDOM, PCA, CLUSTERS = "scGPT_random", "X_hvg_pca", "scgpt_leiden"
#: What a demo writes into its folder, and beside them the sha256 of both: only files that are still so are replaced.
FILES, MADE = ("umap.png", "pbmc.h5ad"), ".scgpt-tl-demo.json"
BUNDLED = (
    "Data: 700 PBMCs x 765 genes from Zheng et al. 2017 (scanpy's pbmc68k_reduced), log-normalised. Their labels were "
    "given by correlation with sorted cells."
)
SEEN = "pbmc-mini's training cells come in part from the same study: other cells, no labels."


@dataclass(frozen=True)
class Demo:
    """What a demo made."""

    table: pd.DataFrame | None
    """As `metrics.compare`; None without labels."""
    notes: tuple[str, ...]
    """What a reader of the table must know."""
    picture: Path
    data: Path
    seconds: float


def run_demo(
    data: str | Path | None = None,
    *,
    out: str | Path = "demo",
    model: str | Path = "pbmc-mini",
    labels_key: str | None = None,
    layer: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Demo:
    """Check, embed, cluster, draw and score a data set.

    Parameters
    ----------
    data
        An .h5ad file; scanpy's pbmc68k_reduced where none is given.
    out
        Folder for umap.png and pbmc.h5ad; made where it is not there. Those of an earlier demo are replaced.
    model
        Name or folder.
    labels_key
        Column of `.obs` with cell types; guessed among `LABEL_COLUMNS` where none is given.
    layer
        Layer with the expression; `.X` where none is given.
    device
        As `tl.scgpt_embed`.
    overwrite
        Replace files of these names, too, that no demo wrote, or that were changed since; never the input.
    say
        Called with a line at each step.

    Raises
    ------
    OSError, KeyError, ValueError
        Where the file, the column or the values will not do; where a file to be written is the input, or there already.
    """
    start = time.perf_counter()
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _check_targets(folder, data, overwrite=overwrite)
    adata, about = _read(data)
    say(about)
    label, note = _labels(adata, labels_key)
    seen = SEEN if data is None and str(model) == "pbmc-mini" else ""
    notes = tuple(line for line in (note, seen) if line)
    embed(adata, model=model, layer=layer, device=device, say=say)
    with _step(say, "neighbours, Leiden, UMAP"):
        _arrange(adata)
    table = _score(adata, label, say) if label else None
    with _step(say, f"writing {folder / 'umap.png'} and {folder / 'pbmc.h5ad'}"):
        _draw(adata, label, Path(model).name, folder / "umap.png")
        with _made(folder / "pbmc.h5ad") as beside:
            adata.write_h5ad(beside)
    return Demo(table, notes, folder / "umap.png", folder / "pbmc.h5ad", time.perf_counter() - start)


def _check_targets(folder: Path, data: str | Path | None, *, overwrite: bool) -> None:
    """Refuse to write over the input, and over files that are not a demo's as it left them."""
    made = _record(folder)
    for target in (folder / name for name in FILES):
        if data is not None:
            refuse_source(target, Path(data), "the demo's")
        ours = target.is_file() and made.get(target.name) == sha256_of(target)
        check_target(target, overwrite=overwrite or ours)


def _record(folder: Path) -> dict[str, str]:
    """File -> sha256, of what a demo has written there."""
    try:
        return dict(json.loads((folder / MADE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def _made(target: Path) -> Iterator[Path]:
    """As `replacing`, and on record."""
    with replacing(target) as beside:
        yield beside
    with replacing(target.with_name(MADE)) as beside:
        beside.write_text(json.dumps(_record(target.parent) | {target.name: sha256_of(target)}), encoding="utf-8")


def embed(
    adata: AnnData, *, model: Any, layer: str | None = None, device: str = "auto", say: Callable[[str], None]
) -> None:
    """Write three embeddings of the same cells: the model's, a random network's, and HVG + PCA."""
    from scgpt_tl import metrics, pp, tl
    from scgpt_tl.models import load_model, with_random_weights

    network = load_model(model)
    say(str(pp.check_input(adata, network, layer=layer)))
    with _step(say, f"embedding {adata.n_obs:,} cells with {network.name}"):
        tl.scgpt_embed(adata, model=network, layer=layer, device=device)
    with _step(say, "the same with random weights"):
        tl.scgpt_embed(adata, model=with_random_weights(network), layer=layer, device=device, key_added=RANDOM)
    with _step(say, "HVG + PCA"):
        adata.obsm[PCA] = metrics.hvg_pca(adata.X if layer is None else adata.layers[layer])


def _read(data: str | Path | None) -> tuple[AnnData, str]:
    """The cells, and a line that says what they are."""
    from scgpt_tl import datasets

    if data is None:
        return datasets.pbmc68k_reduced(), BUNDLED
    import anndata as ad
    import numpy as np

    path = Path(data)
    if not path.is_file():
        msg = f"no file {path}; --data takes an .h5ad file"
        raise FileNotFoundError(msg)
    adata = ad.read_h5ad(path)
    if adata.n_obs > MOST_CELLS:
        msg = f"{path.name} has {adata.n_obs:,} cells and the demo takes {MOST_CELLS:,} at most: use scgpt-tl embed"
        raise ValueError(msg)
    values = getattr(adata.X, "data", adata.X)
    about = ""
    if adata.raw is not None and np.size(values) and np.min(values) < 0:
        adata = adata.raw.to_adata()
        about = " .X has negative values (scaled), so .raw is read."
    return adata, f"Data: {path.name}, {adata.n_obs:,} cells x {adata.n_vars:,} genes.{about}"


def _labels(adata: AnnData, labels_key: str | None) -> tuple[str | None, str]:
    """Column of cell types, and a sentence where there is something to say about it."""
    if labels_key is not None:
        if labels_key not in adata.obs:
            msg = f".obs has no column {labels_key!r}; --labels-key may be one of {list(adata.obs.columns)}"
            raise KeyError(msg)
        return labels_key, ""
    for column in LABEL_COLUMNS:
        if column in adata.obs and 2 <= adata.obs[column].nunique() < adata.n_obs // 2:
            kind = " (a clustering, not a truth)" if column in {"louvain", "leiden"} else ""
            return column, f"Cell types: .obs[{column!r}]{kind}; --labels-key names another column."
    return None, "No column of cell types was found (--labels-key names one): clusters are drawn, nothing is scored."


def _arrange(adata: AnnData) -> None:
    """Neighbours, Leiden and UMAP on the model's embedding; neighbours and UMAP on the PCA."""
    import scanpy as sc

    k = min(15, adata.n_obs - 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        sc.pp.neighbors(adata, n_neighbors=k, use_rep=SLOTS.embedding)
        sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, key_added=CLUSTERS)
        sc.tl.umap(adata)
        sc.pp.neighbors(adata, n_neighbors=k, use_rep=PCA, key_added="hvg_pca")
        sc.tl.umap(adata, neighbors_key="hvg_pca", key_added="X_umap_hvg_pca")


def _score(adata: AnnData, label: str, say: Callable[[str], None]) -> pd.DataFrame:
    from scgpt_tl import metrics

    shown = {"scGPT": SLOTS.embedding, "HVG + PCA": PCA, "random weights": RANDOM}
    with _step(say, "scores"):
        return metrics.compare(adata, embeddings=shown, labels_key=label)


def _draw(adata: AnnData, label: str | None, model: str, path: Path) -> None:
    from matplotlib.figure import Figure  # no window and no global state: a file is written

    from scgpt_tl import pl

    panels = [("X_umap", label, f"scGPT ({model}), by {label}")] if label else []
    panels.append(("X_umap", CLUSTERS, f"scGPT ({model}), by Leiden cluster"))
    other = label or CLUSTERS
    panels.append(("X_umap_hvg_pca", other, f"HVG + PCA, by {label or 'the clusters of scGPT'}"))
    bases, colors, titles = zip(*panels, strict=True)
    figure = Figure(figsize=(4.6 * len(panels), 5.4), layout="constrained")
    axes = list(figure.subplots(1, len(panels)))
    pl.embedding(adata, color=list(colors), basis=bases, title=titles, ax=axes)
    with _made(path) as beside:
        figure.savefig(beside, dpi=150)


@contextmanager
def _step(say: Callable[[str], None], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - start:.1f} s")

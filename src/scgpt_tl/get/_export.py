"""Gene networks as files that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tl._files import check_target, replacing
from scgpt_tl._slots import SLOTS
from scgpt_tl.get._grn import grn_df
from scgpt_tl.get._network import network
from scgpt_tl.get._programs import programs_df

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.get._network import Setting

_TABLES = {".tsv": "\t", ".csv": ","}


def write_grn(
    adata: AnnData,
    path: str | Path,
    *,
    key: str = SLOTS.network,
    group: str | int | None = None,
    setting: Setting | None = None,
    regulators: str | Sequence[str] | None = None,
    n_top: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a gene network to a file.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_grn`.
    path
        Its suffix says what is written. `.tsv`, `.csv`: the columns of `scgpt_tl.get.grn_df`, a row an edge.
        `.graphml`, for Cytoscape, Gephi or igraph: genes with their `name` and, of an embedding network, `program` (""
        for none); edges with `weight`, `rank`, `group` and `setting`, directed from regulator to target unless the
        network is one of embeddings.
    key, group, setting, regulators, n_top
        Which edges, as `scgpt_tl.get.grn_df` takes them.
    overwrite
        Let a file that is there go.

    Raises
    ------
    ValueError
        On another suffix, and as `scgpt_tl.get.grn_df` does.
    KeyError
        As `scgpt_tl.get.grn_df` does.
    OSError
        The folder is absent or read-only, or the file is there already.
    """
    path = Path(path)
    if path.suffix.lower() not in {".graphml", *_TABLES}:
        msg = f"{path.name}: expected a name that ends in .graphml, .tsv or .csv"
        raise ValueError(msg)
    check_target(path, overwrite=overwrite)
    edges = grn_df(adata, key=key, group=group, setting=setting, regulators=regulators, n_top=n_top)
    with replacing(path) as beside:
        if path.suffix.lower() in _TABLES:
            edges.to_csv(beside, sep=_TABLES[path.suffix.lower()], index=False)
        else:
            _write_graphml(adata, key, edges, beside)


def _write_graphml(adata: AnnData, key: str, edges: pd.DataFrame, path: Path) -> None:
    import igraph  # loaded on use: a table needs none

    similar = str(network(adata, key)["method"]) == "embedding"
    ends, names = pd.factorize(np.append(edges["source"], edges["target"]), sort=True)
    graph = igraph.Graph(
        n=len(names),
        edges=ends.reshape(2, -1).T,
        directed=not similar,
        vertex_attrs={"name": list(names)},
        edge_attrs={name: edges[name].tolist() for name in ("weight", "rank", "group", "setting")},
    )
    if similar:
        programs = programs_df(adata, key=key).set_index("gene")["program"].astype(str)
        graph.vs["program"] = [programs.get(name, "") for name in names]
    graph.write_graphml(str(path))

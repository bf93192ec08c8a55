"""`tl.scgpt_grn`: networks of genes from embeddings, attention, knock-outs or co-expression, and gene programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import sparse

import scgpt_tl
from scgpt_tl._nearest import check_choice
from scgpt_tl._random import as_seed
from scgpt_tl._slots import (
    NETWORK_MAKER,
    OWNER,
    check_anndata,
    copied,
    refuse_backed_view,
    refuse_embed_s,
    refuse_foreign,
)
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.tl._activity import activity
from scgpt_tl.tl._embed import _check_input
from scgpt_tl.tl._features import cells_of_context, gene_features
from scgpt_tl.tl._grn_slots import Found, Keys
from scgpt_tl.tl._network import METHODS, GrnOptions, Options, groups_of, nodes_of
from scgpt_tl.tl._pairwise import check_layer, check_size, pair_scores
from scgpt_tl.tl._programs import best_resolution, coarser, gene_graph, programs, usual_resolution

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scgpt_tl.genes.match import GeneMatch
    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._network import Groups, Nodes


def scgpt_grn(  # noqa: PLR0913 (each is a choice of its own; options of a method are grouped)
    adata: AnnData,
    *,
    method: str = "embedding",
    model: str | Path | Model = "pbmc-mini",
    genes: Iterable[str] | None = None,
    groupby: str | None = None,
    control: str | None = None,
    regulators: Iterable[str] | None = None,
    layer: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
    rng: int | np.random.Generator | None = 0,
    **options: Unpack[GrnOptions],
) -> AnnData | None:
    """Networks of genes, and gene programs, from a pretrained scGPT (preprint, sections 2.5 and 4.5).

    Two questions can be asked. Which genes belong together, in the model's eyes: `method="embedding"` joins each gene
    to those with the most similar embeddings, groups the graph into programs and scores each program in each cell.
    Which genes go with a regulator, in these cells: `method="attention"` ranks, cell by cell, how much every gene
    attends to it, and averages over the cells of each condition.

    Scores are associations. Which of two genes acts on the other, and whether it raises or lowers it, they do not say,
    unless cells in which the regulator was perturbed are compared with a `control`; then direction is known from the
    experiment, and still not from the model. Whether a network says more than co-expression has to be shown on the data
    at hand: `method="coexpression"` and `shuffled=True` are there to be looked at beside it.

    Parameters
    ----------
    adata
        Counts, normalised or log-normalised values, in memory or backed.
    method
        - "embedding": cosines of gene embeddings (the preprint's gene similarity network), and programs.
        - "attention": scores of the last layer's attention, ranked by row, then by column, each rank divided by the
          number of genes; averaged over heads, then over the cells of each group.
        - "knockout": a regulator is set to zero in the cells that express it; how far each gene's prediction, or
          embedding, moves.
        - "coexpression": absolute Spearman correlation of log-normalised values, the control.
    model
        Name, folder (of this package or the published one) or `Model`; also what `tl.scgpt_integrate` or
        `tl.scgpt_annotate` has made, the preprint's fine-tuned setting. "coexpression" takes only its vocabulary.
    genes
        Names of variables, or of the vocabulary; or "all", every gene of the data that the model knows. None: those
        marked in `.var["highly_variable"]` (`scgpt_tl.pp.select_genes`), or all where none are marked. Of more than
        5,000 that nobody chose, the three methods that score pairs ask for a choice.
    groupby
        Column of `.obs`: a network for each group ("attention", "knockout", "coexpression"), or the mean activity of
        each program ("embedding"). None: all cells are one group.
    control
        Group of unperturbed cells, with which `get` and `pl` compare the others.
    regulators
        Genes whose targets are looked for; they are among the genes even where those are chosen otherwise. Names that
        cannot be used are told and left out. None: all pairs.
    layer
        Layer to read; None is `.X`.
    key_added
        Write under this key instead of the defaults below. A second call under one key replaces the first.
    overwrite
        Write over slots that hold something else.
    copy
        Return a changed copy (in memory, for a backed object) and leave `adata` alone.
    rng
        Seed of Leiden, of control genes, of tied bins and of shuffled weights.
    **options
        - "embedding": `n_neighbors` (15; of each gene, itself included), `resolution` (one or several; None: the number
          of genes / 120), `flavor` ("igraph" or "leidenalg"), `min_genes` (5; of a program), `context` (False:
          embeddings of the model's table; True: contextual ones, averaged over the cells that express a gene; the name
          of a group: over its cells).
        - "attention": `attention_layer` (-1, the last).
        - "knockout": `effect` ("prediction" or "embedding").
        - All that use a network: `shuffled` (False; True permutes its weights, so that nothing learned is left),
          `batch_key` (for models that normalise each batch apart, and only these).
        - All: `min_cells` (10; a smaller group is left out, as is a knock-out in a group where fewer cells express the
          regulator; a smaller control is refused); where and how to compute, as in `tl.scgpt_embed`: `device`, `dtype`,
          `max_memory`, `max_tokens`, `progress`.

    Returns
    -------
    None, or with `copy` the copy. Sets, when all is done:

    `.uns["scgpt_grn"]` : dict
        `method`, `params`, `groups` and their `n_cells`, `control` ("" for none), `genes` and `regulators`, and their
        names in the vocabulary: `gene_symbols`, `regulator_symbols`; for "knockout" also `n_expressing` (n_groups,
        n_regulators), cells that express each regulator (without `regulators`, each of `genes`); for "embedding" also
        `resolutions` (a row for each: programs, genes in them, modularity), the `resolution` that was taken, and with
        `groupby` the `activity` (groups x programs).

    With "embedding":

    `.varp["scgpt_grn"]` : float32 CSR (n_vars, n_vars)
        Cosine of each pair that is joined in the graph; symmetric.
    `.var["scgpt_program"]` : category (n_vars,)
        "1", "2", ... by falling size; missing for genes of no program.
    `.varm["scgpt_program"]` : int32 (n_vars, n_resolutions)
        Programs at every resolution, from 0; -1 for none.
    `.obsm["scgpt_program"]` : float32 (n_obs, n_programs)
        Activity of each program: the score of `scanpy.tl.score_genes` on log-normalised values.

    With the other methods, and `regulators`:

    `.varm["scgpt_grn"]` : float32 (n_vars, n_groups, n_regulators)
        Score of each target for each regulator; NaN for genes that were not chosen, and, of a knock-out, where fewer
        than `min_cells` cells of the group express the regulator.

    Without:

    `.varp["scgpt_grn"]` : float32 CSR (n_vars, n_vars)
        Row: target (the gene that attends, or moves), column: regulator. Of several groups, `.varp["scgpt_grn_0"]`,
        `.varp["scgpt_grn_1"]`, ... in the order of `groups`.

    With `key_added=k`: `k` and `k_program`.

    Raises
    ------
    ValueError
        Fewer than three genes, no regulator left, a group or control that is not there or too small, too many genes
        that nobody chose, or for the machine's memory, no program (the message names a resolution that gives some), an
        option that the method does not hear, values that cannot be read, a slot that holds something else.
    KeyError
        No such column or layer.
    TypeError
        `adata` is no AnnData; an option that does not exist.
    FileNotFoundError
        No such model.
    ImportError
        `flavor="leidenalg"` and the package is not installed.

    See Also
    --------
    scgpt_enrich : Pathways of the programs.
    compare_programs : How many, beside those of co-expression.

    Notes
    -----
    A group of a given size parts from its surroundings at a resolution that grows with the graph, and so does the usual
    one, the number of genes / 120. On pbmc3k with pbmc-mini programs then have 7 to 15 genes in the median and hold
    93 % of the genes or more, from 160 genes to 13,206 (10 genes and 99 % at 1,200; 9 and 97 % at 3,000), and HLA class
    I and II lie apart; at twice that, 61 to 84 % of 1,200 genes or more are in one. Of several resolutions the one with
    the most programs is taken, of equals the lowest: the finest grouping that does not yet crumble below `min_genes`.

    Neighbours are exact, by cosine; the weights for Leiden are scanpy's. Control genes are drawn by name, so that no
    result depends on the order of cells or genes, on how a matrix is stored or how it is cut.

    The three methods that score pairs show the model every chosen gene in every cell, expressed or not, and nothing
    else. Memory is that of the result and of a few maps (genes x genes) for any number of cells and heads. Knock-outs
    take a pass of the network for each cell and regulator that it expresses.

    Where several columns are one gene, their values are summed, and results lie at the column of its very name, or the
    first by name.

    Examples
    --------
    >>> adata = scgpt_tl.datasets.pbmc3k()
    >>> scgpt_tl.pp.select_genes(adata)
    >>> scgpt_tl.tl.scgpt_grn(adata, groupby="cell_type")
    >>> scgpt_tl.get.programs_df(adata)

    Targets of STAT1, in cells with interferon beside cells without:

    >>> scgpt_tl.tl.scgpt_grn(adata, method="attention", groupby="condition", control="ctrl", regulators=["STAT1"])
    >>> scgpt_tl.get.grn_df(adata, setting="difference", n_top=20)
    """
    check_choice("method", method, METHODS)
    asked, keys, seed = Options.of(method, options, beside=_ARGUMENTS), Keys.of(key_added), as_seed(rng)
    device = asked.compute.torch_device()
    _check_arguments(adata, method, key_added, {"control": control, "regulators": regulators}, copy=copy)
    loaded = load_model(model)
    _check_input(adata, replace(loaded, config=replace(loaded.config, input_norm="none")), layer, None)
    match = genes_of(adata, loaded.vocab)
    nodes, how = nodes_of(adata, match, genes=genes, regulators=regulators)
    counted = groupby is not None or method != "embedding" or asked.context is not False
    groups = groups_of(adata, groupby, control, min_cells=asked.min_cells if counted else 0)
    places = keys.places(method, len(groups.names), with_regulators=regulators is not None)
    own: dict[str, Any] = {"maker": NETWORK_MAKER, "argument": "key_added", "earlier": keys.earlier(adata)}
    refuse_foreign(adata, places, key=keys.network, overwrite=overwrite, **own)
    params = {"model": loaded.name, "weights_sha256": loaded.sha256, "seed": seed, "genes": how}
    params |= {"layer": "X" if layer is None else layer, "groupby": groupby or "", **asked.told(method)}
    params |= {"device": str(device), "dtype": asked.dtype_told(method, device)}
    params |= {"scgpt_tl": scgpt_tl.__version__, "torch": str(torch.__version__)}
    what: dict[str, Any] = {"layer": layer, "seed": seed}
    if method == "embedding":
        found = _programs(adata, loaded, nodes, groups, asked, keys, **what)
    else:
        n_known = len(np.unique(match.ids[match.ids >= 0]))
        size = None if nodes.regulators is None else len(nodes.regulators)
        check_size(method, len(nodes.ids), len(groups.names), size, chosen=len(nodes.ids) < n_known)
        check_layer(loaded, asked.attention_layer)
        scores, cells = pair_scores(adata, loaded, nodes, groups, asked, method=method, **what)
        found = _pairs(adata, nodes, scores, places, keys)
        if cells is not None:
            found.uns["n_expressing"] = cells if size else cells[:, np.argsort(nodes.columns)]
    said = _said(adata, match, nodes, groups, found.columns)
    found.uns |= {OWNER: NETWORK_MAKER, "method": method, "params": params, **said}
    if groupby is not None and found.obsm:
        found.uns["activity"] = _means(found.obsm[keys.program], groups)
    if copy:
        adata = copied(adata)
    keys.write(adata, found)
    return adata if copy else None


#: Names that a misspelt argument may have meant.
_ARGUMENTS = tuple(name for name in scgpt_grn.__kwdefaults__ or ())


def _check_arguments(adata: Any, method: str, key_added: str | None, asked: dict[str, Any], *, copy: bool) -> None:
    """Refuse what could not be written at the end, and arguments that would not be heard."""
    check_anndata(adata, "adata")
    refuse_backed_view(adata, "adata", copy=copy)
    refuse_embed_s(key_added)
    if method == "embedding" and (idle := [name for name, value in asked.items() if value is not None]):
        others = ", ".join(map(repr, METHODS[1:]))
        msg = f"{' and '.join(idle)}: method='embedding' looks at genes, not at pairs; leave it out, or take {others}"
        raise ValueError(msg)


def _programs(
    adata: AnnData, model: Model, nodes: Nodes, groups: Groups, asked: Options, keys: Keys, *, layer: str | None,
    seed: int,
) -> Found:  # fmt: skip
    """Graph, programs and activity."""
    cells = cells_of_context(asked.context, groups, adata.n_obs)
    features, nodes = gene_features(adata, model, nodes, cells, asked, layer=layer, seed=seed)
    cosines, weights = gene_graph(features, asked.n_neighbors)
    how: dict[str, Any] = {"min_genes": asked.min_genes, "flavor": asked.flavor, "seed": seed}
    tried = asked.resolution or (usual_resolution(len(features)),)
    found, modularities = programs(weights, tried, **how)
    if (found < 0).all():
        lower = coarser(weights, min(tried), **how)
        mend = f"there are some at resolution={lower:g}" if lower else f"{len(features)} genes are too few"
        said = ", ".join(f"{one:g}" for one in tried)
        msg = f"resolution={said}: no program of min_genes={asked.min_genes} genes or more; {mend}"
        raise ValueError(msg)
    best = best_resolution(found, tried)
    taken, sizes = found[:, best], found.max(axis=0) + 1
    members = [nodes.columns[taken == number] for number in range(sizes[best])]
    labels, every = np.full(adata.n_vars, -1), np.full((adata.n_vars, found.shape[1]), -1, np.int32)
    labels[nodes.columns], every[nodes.columns] = taken, found
    names = [str(number + 1) for number in range(sizes[best])]
    table = {"resolution": tried, "n_programs": sizes, "n_genes": (found >= 0).sum(axis=0)}
    rows, columns = (nodes.columns[places] for places in cosines.tocoo().coords)
    return Found(
        varp={keys.network: sparse.csr_matrix((cosines.data, (rows, columns)), (adata.n_vars, adata.n_vars))},
        varm={keys.program: every},
        var={keys.program: pd.Categorical.from_codes(labels, categories=names)},
        obsm={keys.program: activity(adata, members, layer=layer, seed=seed, stands=nodes.stands)},
        uns={
            "resolutions": pd.DataFrame({**table, "modularity": modularities}),
            "resolution": tried[best],
        },
        columns=np.sort(nodes.columns),
    )


def _pairs(adata: AnnData, nodes: Nodes, scores: np.ndarray, places: dict[str, Any], keys: Keys) -> Found:
    """(n_groups, M, M or R) scores by column of the data."""
    chosen = np.sort(nodes.columns)
    if nodes.regulators is not None:
        wide = np.full((adata.n_vars, scores.shape[0], scores.shape[2]), np.nan, np.float32)
        wide[nodes.columns] = scores.transpose(1, 0, 2)
        return Found(varm={keys.network: wide}, columns=chosen)
    order = np.argsort(nodes.columns)
    columns, n = nodes.columns[order], len(order)
    indptr = np.zeros(adata.n_vars + 1, np.int64)
    indptr[columns + 1] = n
    how = np.tile(columns, n), np.cumsum(indptr)
    dense = (group[np.ix_(order, order)].ravel() for group in scores)
    made = [sparse.csr_matrix((values, *how), (adata.n_vars, adata.n_vars)) for values in dense]
    return Found(varp=dict(zip(places["varp"], made, strict=True)), columns=chosen)


def _said(adata: AnnData, match: GeneMatch, nodes: Nodes, groups: Groups, columns: np.ndarray) -> dict[str, Any]:
    """What of the call is told for every method."""
    names = adata.var_names.to_numpy(dtype=str)
    own = np.array([] if nodes.regulators is None else nodes.columns[nodes.regulators], np.int64)
    return {
        "groups": np.array(groups.names, dtype=str),
        "n_cells": groups.counts,
        "control": groups.control,
        "genes": names[columns],
        "gene_symbols": match.names[columns],
        "regulators": names[own],
        "regulator_symbols": match.names[own],
    }


def _means(scores: np.ndarray, groups: Groups) -> pd.DataFrame:
    """Mean activity, groups x programs."""
    means = [scores[groups.codes == code].mean(axis=0) for code in range(len(groups.names))]
    columns = [str(number + 1) for number in range(scores.shape[1])]
    return pd.DataFrame(np.array(means), index=list(groups.names), columns=columns)

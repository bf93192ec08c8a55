"""`tl.compare_programs`: programs of gene embeddings beside those of co-expression, by the pathways that they hold."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import pandas as pd
from scipy import sparse

import scgpt_tl
from scgpt_tl._compat import need
from scgpt_tl._nearest import nearest
from scgpt_tl._random import Purpose, as_seed, mix_words, name_keys, stream_key
from scgpt_tl._slots import check_anndata
from scgpt_tl.models.model import load_model
from scgpt_tl.pp._check import check_input
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.pp._logs import log_blocks
from scgpt_tl.tl._embed import _gene_embeddings
from scgpt_tl.tl._enrich import described, spelling, symbol_columns
from scgpt_tl.tl._gene_sets import check_names, gene_sets_of
from scgpt_tl.tl._network import Options, nodes_of
from scgpt_tl.tl._over_representation import COLUMNS, Correction, PathwayTest, over_representation
from scgpt_tl.tl._programs import coarser, gene_graph, programs

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.models.model import Model
    from scgpt_tl.tl._gene_sets import GeneSets
    from scgpt_tl.tl._network import Nodes

logger = logging.getLogger(__name__)

EMBEDDING, COEXPRESSION, RANDOM = "embedding", "coexpression", "random"


class PathwayOptions(TypedDict, total=False):
    """Which pathways are tested and what is a hit, see `tl.scgpt_enrich`."""

    correction: Correction
    cutoff: float
    min_size: int
    max_size: int | None


@dataclass(frozen=True)
class ProgramComparison:
    """What `compare_programs` found."""

    table: pd.DataFrame
    """A row per `method` and `resolution`: `n_programs`; `n_genes` in them; `n_pathways`, different pathways that are
    hits of any program; `common` of these, which the other method finds too; and `unique`, the others."""
    pathways: pd.DataFrame
    """The hits: `method`, `resolution`, and the columns of the table of `tl.scgpt_enrich`."""
    params: Mapping[str, Any]
    """What was asked for, and how many genes and pathways there were."""

    def found(self, resolution: float) -> dict[str, frozenset[str]]:
        """Names of the pathways that each method finds at a resolution: what a Venn diagram shows (Figure 5E)."""
        there = self.table["resolution"].unique()
        if resolution not in there:
            msg = f"resolution {resolution} was not compared; {nearest(resolution, map(str, there))}"
            raise ValueError(msg)
        at = self.pathways[self.pathways["resolution"] == resolution]
        methods = self.table["method"].unique()
        return {method: frozenset(at.loc[at["method"] == method, "pathway"]) for method in methods}


def compare_programs(  # noqa: PLR0913 (each is a choice of its own)
    adata: AnnData,
    *,
    gene_sets: str | Path | Mapping[str, Iterable[str]],
    model: str | Path | Model = "pbmc-mini",
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    resolutions: Sequence[float] = (1, 5, 10, 20, 30, 40, 50, 60),
    n_neighbors: int = 15,
    min_genes: int = 5,
    background: Iterable[str] | None = None,
    gene_symbols: str | None = None,
    rng: int | np.random.Generator | None = 0,
    **testing: Unpack[PathwayOptions],
) -> ProgramComparison:
    """Gene programs of a model's embeddings beside those of co-expression (preprint, section 4.7, Figure 5D, E).

    Both go through the same steps on the same genes: a graph of each gene's nearest ones, by cosine of the model's gene
    embeddings or by Pearson correlation of log-normalised expression, Leiden's communities at several resolutions,
    programs, and pathways that they hold more of than chance gives, corrected within a method and resolution. A third
    row shows what chance is: the model's programs with their genes exchanged at random, sizes kept. Nothing is written
    to `adata`; extra `enrich`.

    Parameters
    ----------
    adata
        Counts (normalised here, in a copy) or log-normalised values, in memory or backed.
    gene_sets
        As for `tl.scgpt_enrich`; the paper takes Reactome 2022.
    model
        Name, folder, or a loaded model: fine-tuned on these data, as the paper does, or not.
    genes
        Names of variables, or "all" that the model knows. None: those marked in `.var["highly_variable"]`, where there
        are marks, else all. Genes that the model does not know, or that do not vary here, are left out of both sides;
        values of several columns of one gene are summed.
    layer
        Layer to read; None is `.X`.
    resolutions
        Of Leiden; the paper's by default.
    n_neighbors
        Neighbours of a gene in either graph, itself included.
    min_genes
        Communities with fewer genes are no program.
    background
        Genes that could have been found, see `tl.scgpt_enrich`. None: those that are compared. Against all that were
        measured (`adata.var_names`) more pathways pass, those that tell variable genes from others among them.
    gene_symbols
        Column of `.var` with the names that pathways use, where `.var_names` are of another kind.
    rng
        Seed of Leiden and of the random control.
    **testing
        `correction`, `cutoff`, `min_size`, `max_size`: as for `tl.scgpt_enrich`, with its defaults.

    Returns
    -------
    `ProgramComparison`: `.table` by method ("embedding", "coexpression", "random") and resolution; `.pathways`, every
    hit with its program, p and genes; `.found(resolution)`, names of pathways by method. `common` counts pathways that
    the embedding and co-expression both find (for the random control: those that the embedding finds too).

    Raises
    ------
    ValueError
        Values that cannot be read, fewer genes than `n_neighbors` + 1, no program in either graph (the message names a
        resolution that gives some), gene sets or names that do not fit (see `tl.scgpt_enrich`).
    KeyError
        No such layer or column.
    TypeError
        An option that does not exist.
    FileNotFoundError
        No such model or GMT file.
    ImportError
        Without GSEApy.

    Examples
    --------
    >>> scgpt_tl.pp.select_genes(adata)
    >>> compared = scgpt_tl.tl.compare_programs(adata, gene_sets="ReactomePathways.gmt")
    >>> compared.table.pivot(index="resolution", columns="method", values="n_pathways")
    """
    tests, seed = PathwayTest.of(testing, beside=_ARGUMENTS), as_seed(rng)
    need("gseapy", extra="enrich")
    check_anndata(adata, "adata")
    levels, asked = _resolutions(resolutions), Options(n_neighbors=n_neighbors, min_genes=min_genes)
    spelled, sets = spelling(adata, gene_symbols), gene_sets_of(gene_sets)
    loaded = load_model(model)
    check_input(adata, loaded, layer=layer).raise_for_errors()
    match = genes_of(adata, loaded.vocab)
    rows, values = _varying(adata, nodes_of(adata, match, genes=genes, regulators=None)[0], layer)
    names = [spelled.get(name, name) for name in adata.var_names[rows]]
    if len(names) <= n_neighbors:
        msg = f"{len(names)} genes that the model knows vary here: more than n_neighbors={n_neighbors} are needed"
        raise ValueError(msg)
    could = names if background is None else [spelled.get(name, name) for name in background]
    universe = check_names(could, sets, columns=symbol_columns(adata, gene_symbols))
    tests.pathways(sets, universe)  # before any long work
    features = {EMBEDDING: _gene_embeddings(loaded, match)[rows], COEXPRESSION: correlated(values)}
    labels = _labels(features, levels, asked, seed)
    labels[RANDOM] = _exchanged(labels[EMBEDDING], names, seed)
    table, pathways, counts = _tested(labels, levels, names, (sets, universe), tests)
    params = {"model": loaded.name, "weights_sha256": loaded.sha256, "seed": seed, "n_neighbors": n_neighbors}
    params |= {"min_genes": min_genes, "n_genes": len(names), **counts, **asdict(tests), **described(gene_sets, sets)}
    return ProgramComparison(table, pathways, params | {"scgpt_tl": scgpt_tl.__version__})


#: Names that a misspelt argument may have meant.
_ARGUMENTS = tuple(name for name in compare_programs.__kwdefaults__ or ())


def correlated(values: sparse.csr_matrix) -> np.ndarray:
    """Vectors of genes `(M, min(n, M))` whose cosines are Pearson's correlations of the columns of `values` `(n, M)`.

    The columns, centred; of more cells than genes, a root of their covariance: O(M^2) for any number of cells.
    """
    n, size = values.shape
    if n <= size:
        columns = values.toarray().T.astype(np.float64)
        return (columns - columns.mean(axis=1, keepdims=True)).astype(np.float32)
    exact = sparse.csr_matrix(values, dtype=np.float64)
    mean = np.asarray(exact.mean(axis=0)).ravel()
    spread, axes = np.linalg.eigh((exact.T @ exact).toarray() - n * np.outer(mean, mean))
    return (axes * np.sqrt(np.clip(spread, 0, None))).astype(np.float32)


def _resolutions(resolutions: Sequence[float]) -> tuple[float, ...]:
    try:
        levels = tuple(float(level) for level in np.atleast_1d(np.asarray(resolutions, dtype=np.float64)))
    except (TypeError, ValueError):
        levels = ()
    if not levels or not all(0 < level < np.inf for level in levels) or len(set(levels)) < len(levels):
        msg = f"resolutions={resolutions!r}: give positive numbers, each once"
        raise ValueError(msg)
    return levels


def _varying(adata: AnnData, nodes: Nodes, layer: str | None) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Columns `(M,)` that stand for genes which differ between cells, and log-normalised values `(n, M)`."""
    stands = np.where(nodes.places >= 0, nodes.columns[nodes.places], np.arange(adata.n_vars))
    pick = sparse.csr_matrix((np.ones(adata.n_vars), (np.arange(adata.n_vars), stands)), (adata.n_vars, adata.n_vars))
    blocks = (block[:, nodes.columns] for _, block in log_blocks(adata, layer, pick=pick))
    values = sparse.vstack(list(blocks), format="csr")
    varies = values.min(axis=0).toarray().ravel() < values.max(axis=0).toarray().ravel()
    return nodes.columns[varies], values[:, varies]


def _labels(
    features: Mapping[str, np.ndarray], levels: Sequence[float], asked: Options, seed: int
) -> dict[str, np.ndarray]:
    """Programs `(M, n_resolutions)` by method, -1: none; refused where no method has any."""
    how: dict[str, Any] = {"min_genes": asked.min_genes, "flavor": "igraph", "seed": seed}
    graphs = {method: gene_graph(of, asked.n_neighbors)[1] for method, of in features.items()}
    found = {method: programs(graph, levels, **how)[0] for method, graph in graphs.items()}
    without = [method for method, codes in found.items() if (codes < 0).all()]
    if without:
        lower = [coarser(graphs[method], min(levels), **how) for method in without]
        some = " and ".join(f"{one:g} ({method})" for one, method in zip(lower, without, strict=True) if one)
        mend = f"there are some at resolutions={some}" if some else f"{graphs[without[0]].shape[0]} genes are too few"
        tried = ", ".join(f"{level:g}" for level in levels)
        msg = f"resolutions={tried}: no program of min_genes={asked.min_genes} genes or more by {' and '.join(without)}"
        msg += f"; {mend}"
        if len(without) == len(found):
            raise ValueError(msg)
        logger.warning("%s", msg)
    return found


def _exchanged(labels: np.ndarray, names: Sequence[str], seed: int) -> np.ndarray:
    """The labels `(M, n_resolutions)` given to other genes, at each resolution anew; a gene's draw follows its name."""
    keys, found = name_keys(names), np.empty_like(labels)
    for level in range(labels.shape[1]):
        drawn = mix_words(keys, stream_key(seed, Purpose.SHUFFLE, level))
        found[:, level] = labels[np.argsort(np.argsort(drawn, kind="stable"), kind="stable"), level]
    return found


def _tested(
    labels: Mapping[str, np.ndarray],
    levels: Sequence[float],
    names: Sequence[str],
    against: tuple[GeneSets, frozenset[str]],
    tests: PathwayTest,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """The comparison's two tables, and how many genes and pathways were tested."""
    spelled, rows, found = np.asarray(names, dtype=object), [], {}
    hits: list[pd.DataFrame] = []
    for method, codes in labels.items():
        for level, resolution in enumerate(levels):
            members = {str(p + 1): frozenset(spelled[codes[:, level] == p]) for p in range(codes[:, level].max() + 1)}
            members = {program: genes for program, genes in members.items() if genes & against[1]}
            one = _hits(members, against, tests).assign(method=method, resolution=resolution)
            hits += [one] if len(one) or not hits else []
            found[method, resolution] = set(one["pathway"])
            n_genes = int((codes[:, level] >= 0).sum())
            rows.append({"method": method, "resolution": resolution, "n_programs": int(codes[:, level].max()) + 1,
                         "n_genes": n_genes, "n_pathways": len(found[method, resolution])})  # fmt: skip
    table = pd.DataFrame(rows)
    other = {EMBEDDING: COEXPRESSION, COEXPRESSION: EMBEDDING, RANDOM: EMBEDDING}
    pairs = zip(table["method"], table["resolution"], strict=True)
    table["common"] = [len(found[method, level] & found[other[method], level]) for method, level in pairs]
    table["unique"] = table["n_pathways"] - table["common"]
    pathways = pd.concat(hits, ignore_index=True)
    front = ["method", "resolution"]
    counts = {"n_background": len(against[1]), "n_pathways": len(tests.pathways(*against))}
    return table, pathways[front + [name for name in pathways if name not in front]], counts


def _hits(
    members: Mapping[str, frozenset[str]], against: tuple[GeneSets, frozenset[str]], tests: PathwayTest
) -> pd.DataFrame:
    """Pathways of programs that pass; none where there are no programs."""
    if not members:
        return pd.DataFrame(columns=list(COLUMNS))
    table, _ = over_representation(members, *against, tests)
    return table[table["adjusted"] <= tests.cutoff]

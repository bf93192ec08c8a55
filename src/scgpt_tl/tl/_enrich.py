"""`tl.scgpt_enrich`: pathways that gene programs, or any lists of genes, hold more of than chance gives."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import scgpt_tl
from scgpt_tl._compat import need
from scgpt_tl._slots import (
    MAKERS,
    NETWORK_MAKER,
    OWNER,
    SLOTS,
    check_anndata,
    copied,
    is_ours,
    program_key,
    refuse_backed_view,
    refuse_foreign,
)
from scgpt_tl.genes.match import KNOWN_COLUMNS
from scgpt_tl.tl._gene_sets import check_list, check_names, gene_sets_of
from scgpt_tl.tl._over_representation import Correction, PathwayTest, over_representation

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.tl._gene_sets import GeneSets

logger = logging.getLogger(__name__)
_MAKER = "tl.scgpt_enrich"


def scgpt_enrich(  # noqa: PLR0913 (each is a choice of its own)
    adata: AnnData,
    *,
    gene_sets: str | Path | Mapping[str, Iterable[str]],
    key: str = SLOTS.network,
    gene_lists: Mapping[str, Iterable[str]] | None = None,
    background: Iterable[str] | None = None,
    correction: Correction = "bonferroni",
    cutoff: float = 0.05,
    min_size: int = 3,
    max_size: int | None = None,
    gene_symbols: str | None = None,
    key_added: str | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | None:
    r"""Test gene programs for pathways by over-representation (preprint, section 4.7; extra `enrich`).

    Of :math:`N` genes of the background a pathway holds :math:`K` and a program :math:`n`; that they share :math:`k` or
    more by chance has the hypergeometric probability

    .. math:: p = \sum_{i \ge k} \binom{K}{i} \binom{N - K}{n - i} / \binom{N}{n}

    which GSEApy computes. Bonferroni multiplies it by the number of all tests performed, programs times pathways,
    those without a common gene included.

    Parameters
    ----------
    adata
        Carries programs of `tl.scgpt_grn(method="embedding")`, unless `gene_lists` is given.
    gene_sets
        GMT file (`.gmt`, `.gmt.gz`), a dictionary of name to genes, or the name of an Enrichr library, as
        "Reactome_2022", which is fetched once by GSEApy and read from its cache afterwards. The test itself is made
        here, without network.
    key
        The network's name: the `key_added` of `tl.scgpt_grn`. Its programs are tested, its genes are the background.
    gene_lists
        Name -> genes, to be tested instead of programs: the first 100 targets of a regulator, say.
    background
        Genes that could have been found. None: those that were chosen for the network (all of `.var_names` where there
        is none). Of either, those that are in any pathway at all: of the others nothing can be told, and to count them
        would lower every p. Genes outside do not count in programs and pathways either.
    correction
        "bonferroni", or "fdr" (Benjamini and Hochberg) over the same tests.
    cutoff
        Adjusted p at most of what is counted as a hit; the table keeps the rest too.
    min_size
        Pathways with fewer genes in the background are not tested.
    max_size
        Nor are those with more. None: no bound.
    gene_symbols
        Column of `.var` with the names that pathways use, where `.var_names` are of another kind (Ensembl ids).
    key_added
        Write under this key of `.uns` instead of the default below.
    overwrite
        Write over a slot that holds something else.
    copy
        Return a changed copy and leave `adata` alone.

    Returns
    -------
    None, or with `copy` the copy. Sets:

    `.uns["scgpt_enrichment"]` : dict
        `table`, a DataFrame with a row for each program and pathway that have a gene in common: `program`; `pathway`;
        `overlap`, genes in both; `size` of the pathway and `n_program` of the program, in genes of the background;
        `p_value`; `adjusted`; `odds_ratio` (half a gene added to each of the four counts, as GSEApy has it); `genes` of
        the overlap, joined by ";". By program, the surest first. `params`: what was asked for, and `n_background`,
        `n_programs` and their names, `tested`; `n_pathways`, `n_tests`, `n_hits`.

    Raises
    ------
    KeyError
        No programs, no such column; the message names the call that makes them.
    ValueError
        Gene sets that are malformed, empty, or in another kind of name than the data; no pathway of the sizes asked
        for; a list without genes of the background; a slot that holds something else.
    FileNotFoundError
        No such GMT file.
    ConnectionError
        No network for an Enrichr library; the message names the file to get.
    ImportError
        Without GSEApy.

    Examples
    --------
    >>> scgpt_tl.tl.scgpt_grn(adata)
    >>> scgpt_tl.tl.scgpt_enrich(adata, gene_sets="ReactomePathways.gmt")
    >>> scgpt_tl.get.enrichment_df(adata, cutoff=0.05)
    """
    testing = PathwayTest(correction, cutoff, min_size, max_size)
    at = SLOTS.enrichment if key_added is None else key_added
    need("gseapy", extra="enrich")
    check_anndata(adata, "adata")
    refuse_foreign(adata, {"uns": (at,)}, key=at, maker=_MAKER, overwrite=overwrite, argument="key_added")
    refuse_backed_view(adata, "adata", copy=copy)
    spelled = spelling(adata, gene_symbols)
    lists = _programs(adata, key) if gene_lists is None else _given(gene_lists)
    sets = gene_sets_of(gene_sets)
    genes, which = _background(adata, key, background)
    universe = check_names((spelled.get(g, g) for g in genes), sets, columns=symbol_columns(adata, gene_symbols))
    named = {name: frozenset(spelled.get(g, g) for g in members) for name, members in lists.items()}
    table, counts = over_representation(named, sets, universe, testing)
    params = {**asdict(testing), "max_size": max_size or 0, "key": key, "background": which, **counts}
    params |= {"programs": "gene_lists" if gene_lists is not None else program_key(key), **described(gene_sets, sets)}
    tested = [name for name, members in named.items() if members & universe]
    params |= {"tested": np.array(tested, dtype=str), "gene_symbols": gene_symbols or ""}
    params |= {"scgpt_tl": scgpt_tl.__version__}
    if copy:
        adata = copied(adata)
    adata.uns[at] = {OWNER: _MAKER, "params": params, "table": table}
    return adata if copy else None


def spelling(adata: AnnData, gene_symbols: str | None) -> dict[str, str]:
    """Name of a variable -> what pathways call it; empty where both are the same."""
    if gene_symbols is None:
        return {}
    if gene_symbols not in adata.var:
        msg = f"gene_symbols={gene_symbols!r} is not in .var (there: {', '.join(map(repr, adata.var)) or 'none'})"
        raise KeyError(msg)
    names = adata.var[gene_symbols].astype(object)
    return {of: name.strip() for of, name in zip(adata.var_names, names, strict=True) if isinstance(name, str) and name}


def symbol_columns(adata: AnnData, gene_symbols: str | None) -> list[str]:
    """Columns that may hold other names of the genes than those in use."""
    return [name for name in (SLOTS.gene, *KNOWN_COLUMNS) if name in adata.var and name != gene_symbols]


def described(source: Any, sets: GeneSets) -> dict[str, str]:
    """Which gene sets they were: by name, and by a hash of what they hold."""
    content = "\n".join("\t".join((name, *sorted(sets[name]))) for name in sorted(sets))
    named = "dict" if isinstance(source, Mapping) else Path(source).name
    return {"gene_sets": named, "gene_sets_sha256": sha256(content.encode()).hexdigest()}


def _programs(adata: AnnData, key: str) -> dict[str, list[str]]:
    """Genes of each program, the largest first."""
    column = program_key(key)
    if column not in adata.var:
        if is_ours(adata, key=key, maker=NETWORK_MAKER):
            method = adata.uns[key].get("method")
            msg = (
                f".uns[{key!r}] is a network by {method!r}, which makes no programs: give gene_lists=, the first "
                f"targets of each regulator say (scgpt_tl.get.grn_df), or make programs by {MAKERS[SLOTS.program]}"
            )
        else:
            msg = f".var has no {column!r}: {MAKERS[SLOTS.program]} makes programs; or give gene_lists="
        raise KeyError(msg)
    values = adata.var[column].astype("category")
    found = {str(name): adata.var_names[(values == name).to_numpy()].tolist() for name in values.cat.categories}
    found = {name: genes for name, genes in found.items() if genes}
    if not found:
        msg = f".var[{column!r}] holds no program: run {MAKERS[SLOTS.program]} with a lower resolution="
        raise ValueError(msg)
    return found


def _given(gene_lists: Any) -> dict[str, list[str]]:
    if not isinstance(gene_lists, Mapping) or not gene_lists:
        msg = f"gene_lists is {gene_lists!r:.60}; give {{name: genes}}, at least one"
        raise ValueError(msg)
    for name, genes in gene_lists.items():
        check_list(genes, f"gene_lists[{name!r}]")
    return {str(name): [str(gene) for gene in genes] for name, genes in gene_lists.items()}


def _background(adata: AnnData, key: str, background: Iterable[str] | None) -> tuple[list[str], str]:
    """Genes that could have been found, and where they are from."""
    if background is not None:
        if isinstance(background, str):
            msg = f"background={background!r} is one text: give the names of all genes that could have been found"
            raise ValueError(msg)
        return [str(gene) for gene in background], "given"
    if is_ours(adata, key=key, maker=NETWORK_MAKER):
        return np.atleast_1d(adata.uns[key]["genes"]).astype(str).tolist(), "network"
    return adata.var_names.tolist(), "var_names"

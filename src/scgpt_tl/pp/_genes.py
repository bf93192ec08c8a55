"""`pp.harmonize_genes`: the gene of a model's vocabulary that each variable stands for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import OWNER, SLOTS, check_anndata, copied, refuse_backed_view, refuse_foreign
from scgpt_tl.genes.bundle import vocab_of
from scgpt_tl.genes.match import HOW, INDEX, KNOWN_COLUMNS, GeneMatch, is_foreign, match_genes
from scgpt_tl.genes.table import GeneTable, hgnc_table

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.genes.vocab import GeneVocab

_log = logging.getLogger(__name__)
_MAKER = "pp.harmonize_genes"


def harmonize_genes(
    adata: AnnData,
    model: Any,
    *,
    table: GeneTable | str | Path | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Find the gene of a model's vocabulary that each variable stands for; nothing is renamed, dropped or re-ordered.

    Names are taken from `.var_names` and from the columns that 10x and CELLxGENE files carry (`gene_symbols`,
    `feature_name`, `gene_name`, `gene_ids`, ...). A name is tried as it is, then as an Ensembl id (its version
    dropped), as a previous symbol and as an alias of HGNC's table; the column that answers most often is read, and
    the others fill what it leaves open. A name that could mean several genes of the vocabulary stays unmatched. Where
    several variables are one gene, their values are summed when cells are tokenised. Mouse symbols are never
    turned into human ones.

    Parameters
    ----------
    adata
        In memory or backed; `.X` is not read.
    model
        A model's name or folder, a loaded model, or a `GeneVocab`.
    table
        A table of gene names of your own (tab-separated, HGNC's column names). None is HGNC's complete set, from
        `$SCGPT_TL_DATA` or downloaded once; without either only exact names are found.
    overwrite
        Write over columns that this function did not make. Its own are always replaced.
    copy
        Return a changed copy (in memory, for a backed object) and leave `adata` alone.

    Returns
    -------
    None, or with `copy` the copy. Sets:

    `.var["scgpt_gene"]` : str (n_vars,)
        The vocabulary's name, "" where there is none.
    `.var["scgpt_gene_how"]` : category (n_vars,)
        `symbol`, `ensembl`, `previous`, `alias`; `ambiguous` or `unmatched` where there is none.
    `.uns["scgpt_genes"]` : dict
        Counts, the column that was read, duplicated and ambiguous names, a guess at the species, the vocabulary's
        sha256.

    Raises
    ------
    FileNotFoundError
        No such model or table.
    ValueError
        The columns hold something else; a downloaded table's hash is not the pinned one; a view of a file, which takes
        no results, without `copy`.
    TypeError
        `adata` is no AnnData, `model` no model.
    """
    import pandas as pd  # comes with anndata, which this module must not need to be imported

    check_anndata(adata, "adata")
    refuse_backed_view(adata, "adata", copy=copy)
    vocab = vocab_of(model)
    slots = {"var": (SLOTS.gene, SLOTS.gene_how), "uns": (SLOTS.genes,)}
    refuse_foreign(adata, slots, key=SLOTS.genes, maker=_MAKER, overwrite=overwrite, argument=None)
    names = table if isinstance(table, GeneTable) else hgnc_table(path=table)
    match = match_genes(columns_of(adata), vocab, table=names)
    if copy:
        adata = copied(adata)
    adata.var[SLOTS.gene] = np.asarray(match.names, dtype=object)
    adata.var[SLOTS.gene_how] = pd.Categorical(match.how, categories=list(HOW))
    source = "" if names is None else Path(names.source).name
    adata.uns[SLOTS.genes] = {OWNER: _MAKER, "vocab_sha256": vocab.sha256, "table": source, **match.summary()}
    _log.info("%s", describe(match, vocab))
    return adata if copy else None


def genes_of(adata: AnnData, vocab: GeneVocab, *, table: GeneTable | None = None) -> GeneMatch:
    """What `harmonize_genes` found for this vocabulary; where it has not been run, `match_genes`.

    Of `adata`, `.var`, `.var_names` and `.uns` are read.
    """
    found = adata.uns.get(SLOTS.genes)
    ours = isinstance(found, Mapping) and found.get(OWNER) == _MAKER and found.get("vocab_sha256") == vocab.sha256
    if not ours or SLOTS.gene not in adata.var or SLOTS.gene_how not in adata.var:
        return match_genes(columns_of(adata), vocab, table=table)
    names = _texts(adata.var[SLOTS.gene])
    ids = vocab.ids(names.tolist())
    columns = columns_of(adata)
    given = columns.get(str(found["column"]), columns[INDEX])
    return GeneMatch(
        ids=ids,
        names=np.where(ids >= 0, names, ""),
        how=adata.var[SLOTS.gene_how].to_numpy(dtype=str),
        given=_texts(given),
        column=str(found["column"]),
        also=tuple(np.atleast_1d(found["also"]).tolist()),
        species=found["species"],
    )


def _texts(names: Iterable[Any]) -> np.ndarray:
    """Names, "" where one is missing; a file may have made categories of them, to which "" cannot be added in place."""
    return np.array([name if isinstance(name, str) else "" for name in names], dtype=str)


def describe(match: GeneMatch, vocab: GeneVocab) -> str:
    """One sentence about a match, for logs and reports."""
    parts = [f"{match.n_matched:,} of {len(match.ids):,} genes matched ({match.share:.1%}) by {match.column!r}"]
    for how in ("ensembl", "previous", "alias"):
        times = int((match.how == how).sum())
        parts += [f"{times:,} by {how if how != 'ensembl' else 'Ensembl id'}"] if times else []
    for what, names in (("in several columns", match.duplicates), ("ambiguous", match.ambiguous)):
        parts += [f"{len(names):,} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"] if names else []
    if is_foreign(match, vocab):
        parts.append("the names look like mouse genes: map them to human orthologues first, symbols do not carry over")
    return "; ".join(parts)


def columns_of(adata: AnnData) -> dict[str, list[Any]]:
    """Names of the variables and every known column."""
    known = {name: adata.var[name].tolist() for name in KNOWN_COLUMNS if name in adata.var}
    return {INDEX: adata.var_names.tolist(), **known}

"""One name for each gene of a corpus, before there is a vocabulary to match."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl.genes.match import ENSEMBL, INDEX, KNOWN_COLUMNS, match_genes
from scgpt_tl.genes.vocab import SPECIALS, GeneVocab

if TYPE_CHECKING:
    from scgpt_tl.genes.table import GeneTable

#: Share of a study's names that must be approved symbols or Ensembl ids before the table is believed on the others: an
#: alias of a human gene may be any short word, and a study of another species, or of no species, holds some by chance.
LEAST_KNOWN = 0.2
_SYMBOLS = KNOWN_COLUMNS[: KNOWN_COLUMNS.index("gene_ids")]


def canonical_names(columns: Mapping[str, Sequence[Any]], *, table: GeneTable | None = None) -> tuple[list[str], bool]:
    """Approved symbols of the variables as far as the table knows them, else the symbols that the data carry.

    Parameters
    ----------
    columns
        As for `match_genes`: "index" and known columns, n_vars names each.
    table
        Names of human genes. Without it, and where less than a fifth of the names are approved symbols or Ensembl ids,
        names stay as they are.

    Returns
    -------
    (n_vars,) names: "" where there is none; an Ensembl id, without its version, where nothing else is known. And
    whether the table was used.
    """
    written = written_names(columns)
    if table is None:
        return written, False
    match = match_genes(columns, _approved(table), table=table)
    if np.isin(match.how, ("symbol", "ensembl")).mean() < LEAST_KNOWN:
        return written, False
    return [name or own for name, own in zip(match.names.tolist(), written, strict=True)], True


def written_names(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The data's own name of each variable, a symbol rather than an id; "" where there is none."""
    return [_written(columns, i) for i in range(len(columns[INDEX]))]


def familiar_names(studies: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, str]:
    """Canonical name -> the one symbol that all studies write for it, where it is another.

    A gene that every study knows by a previous symbol keeps it: data of that age match a model trained on them as they
    are, and `match_genes` finds a gene by any of its names. `studies` are pairs of canonical and written names.
    """
    spelled: defaultdict[str, set[str]] = defaultdict(set)
    twice: set[str] = set()
    for names, written in studies:
        twice |= {own for own, n in Counter(written).items() if n > 1}
        for name, own in zip(names, written, strict=True):
            spelled[name].add(own)
    single = {name: min(found) for name, found in spelled.items() if name and len(found) == 1}
    uses = Counter(own for name, own in single.items() if own != name)
    return {
        name: own
        for name, own in single.items()
        if own
        and own != name
        and not ensembl_id(own)
        and own not in twice
        and uses[own] == 1
        and spelled.get(own, {own}) == {own}  # else it is another gene's name
    }


def symbols_of_ids(studies: Sequence[tuple[Mapping[str, Sequence[Any]], Sequence[str]]]) -> dict[str, str]:
    """Ensembl id -> symbol, from studies that carry both: pairs of their columns and their canonical names.

    Where studies disagree the symbol of most of them is taken, the first of the alphabet among equals.
    """
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for columns, names in studies:
        for column in columns.values():
            for text, name in zip(column, names, strict=True):
                stable = ensembl_id(text)
                if stable and name and not ensembl_id(name):
                    votes[stable][name] += 1
    return {stable: min(found, key=lambda name: (-found[name], name)) for stable, found in votes.items()}


def ensembl_id(text: object) -> str:
    """The Ensembl gene id in a name, without its version; "" where there is none."""
    found = ENSEMBL.search(text) if isinstance(text, str) else None
    return found[1] if found else ""


def _written(columns: Mapping[str, Sequence[Any]], i: int) -> str:
    """The data's own name of a variable: a symbol rather than an id, a column that says what it holds first."""
    texts = [columns[name][i] for name in (*_SYMBOLS, INDEX, *KNOWN_COLUMNS) if name in columns]
    named = [str(text).strip() for text in texts if isinstance(text, str)]
    symbols = [text for text in named if text and not ensembl_id(text) and not text.isdecimal()]
    ids = [stable for text in named if (stable := ensembl_id(text))]
    name = (symbols or ids or [*filter(None, named), ""])[0]
    return "" if name in SPECIALS else name


@lru_cache(maxsize=2)
def _approved_of(names: tuple[str, ...]) -> GeneVocab:
    return GeneVocab(names)


def _approved(table: GeneTable) -> GeneVocab:
    """All approved symbols as a vocabulary."""
    return _approved_of(tuple(table.names))

"""Names in a data set -> genes of a vocabulary, every decision on record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scgpt_tl.genes.vocab import SPECIALS, GeneVocab

if TYPE_CHECKING:
    from scgpt_tl.genes.table import GeneTable

#: The key of `columns` that holds the names of the variables themselves.
INDEX = "index"
#: `.var` columns in which 10x, CELLxGENE, scanpy and BioMart files keep gene names, in the order in which ties fall.
KNOWN_COLUMNS = (
    "gene_symbols", "feature_name", "gene_name", "gene_names", "gene_symbol", "symbol", "hgnc_symbol",
    "gene_ids", "gene_id", "feature_id", "ensembl_id", "ensembl_gene_id", "ensembl",
)  # fmt: skip
#: How a name was found, strongest first.
HOW = ("symbol", "ensembl", "previous", "alias", "ambiguous", "unmatched")

Species = Literal["human", "mouse", "unknown"]

# Ensembl's stable gene ids of any species; version and GENCODE's mark of the Y copy are dropped, and so is the symbol
# that CELLxGENE puts in front of an id where a symbol occurs twice.
ENSEMBL = re.compile(r"(?:^|_)(ENS[A-Z]*G\d{11})(?:\.\d+)?(?:_PAR_Y)?$")
_MOUSE = re.compile(r"[A-Z][a-z0-9]*[a-z][A-Za-z0-9.-]*|mt-[A-Z].*|\d+[A-Z]\d+Rik|ENSMUSG\d+.*")
_HUMAN = re.compile(r"(?!ENS[A-Z]*G\d)[A-Z][A-Z0-9._/-]*|C[0-9XY]+orf\d+.*|ENSG\d+.*")


@dataclass(frozen=True)
class GeneMatch:
    """What became of each of n_vars names.

    Attributes
    ----------
    ids
        (n_vars,) int64 row of the vocabulary, -1 where unmatched.
    names
        (n_vars,) str, the vocabulary's name, "" where unmatched.
    how
        (n_vars,) str: `symbol` (the very name), `ensembl`, `previous`, `alias`, or why not: `ambiguous` (several genes
        of the vocabulary would do), `unmatched`.
    given
        (n_vars,) str, the data's own name in `column`.
    column
        Which column was read ("index": the names of the variables).
    also
        Columns that supplied genes which `column` could not.
    species
        A guess from the way in which the names in `column` are written.
    """

    ids: np.ndarray
    names: np.ndarray
    how: np.ndarray
    given: np.ndarray
    column: str
    also: tuple[str, ...]
    species: Species

    @property
    def n_matched(self) -> int:
        """How many variables have a gene."""
        return int((self.ids >= 0).sum())

    @property
    def share(self) -> float:
        """Matched part of all variables, 0 where there are none."""
        return self.n_matched / max(1, len(self.ids))

    @cached_property
    def duplicates(self) -> tuple[str, ...]:
        """Genes of the vocabulary that several variables stand for; their values are summed at tokenisation."""
        names, times = np.unique(self.names[self.ids >= 0], return_counts=True)
        return tuple(names[times > 1].tolist())

    @cached_property
    def ambiguous(self) -> tuple[str, ...]:
        """Names of the data that could mean several genes of the vocabulary, left unmatched."""
        return tuple(self.given[self.how == "ambiguous"].tolist())

    @cached_property
    def unmatched(self) -> tuple[str, ...]:
        """Names of the data without any gene of the vocabulary."""
        return tuple(self.given[self.how == "unmatched"].tolist())

    def summary(self) -> dict[str, Any]:
        """Counts and lists that can be written to h5ad (names are never keys)."""
        counts = Counter(self.how.tolist())
        return {
            "n_genes": len(self.ids),
            "n_matched": self.n_matched,
            "share": self.share,
            "column": self.column,
            "also": np.array(self.also, dtype=str),
            "species": self.species,
            "how": np.array(HOW, dtype=str),
            "how_counts": np.array([counts[how] for how in HOW], dtype=np.int64),
            "duplicates": np.array(self.duplicates, dtype=str),
            "ambiguous": np.array(self.ambiguous, dtype=str),
        }


def match_genes(columns: Mapping[str, Sequence[Any]], vocab: GeneVocab, *, table: GeneTable | None = None) -> GeneMatch:
    """Find the gene of the vocabulary that each variable stands for.

    Without a table names are compared exactly, in the one column that matches best: what the published package does.
    With one, a name is tried as it is, then as Ensembl id, previous symbol and alias (an approved symbol never stands
    for another gene's former name), and what the best column leaves open is looked up in the others. The table is left
    aside where the names of the variables look like those of a mouse.

    Parameters
    ----------
    columns
        Column -> n_vars names; `columns["index"]` are the names of the variables. Of the others, those listed in
        `KNOWN_COLUMNS` are read. Missing values and what is no text match nothing.
    vocab
        Names to match; its special tokens are never matched.
    table
        Names that human genes have and had, see `hgnc_table`.

    Raises
    ------
    KeyError
        No column "index".
    ValueError
        Columns of unequal lengths.
    """
    texts = _texts(columns)
    if guess_species(texts[INDEX]) == "mouse":
        table = None  # HGNC names human genes: a mouse symbol that is some human alias is another gene
    resolver = _Resolver(vocab, table)
    found = {name: [resolver(text) for text in column] for name, column in texts.items()}
    hits = {name: sum(bool(gene) for gene, _ in column) for name, column in found.items()}
    order = sorted(texts, key=lambda name: -hits[name])  # stable: the index first, then KNOWN_COLUMNS' order
    main, also = order[0], []
    chosen = list(found[main])
    for name in order[1:] if table is not None else ():
        open_ = [i for i, (gene, _) in enumerate(chosen) if not gene and found[name][i][0]]
        for i in open_:
            chosen[i] = found[name][i]
        also += [name] if open_ else []
    names = np.array([gene for gene, _ in chosen], dtype=str)
    return GeneMatch(
        ids=vocab.ids(names.tolist()),
        names=names,
        how=np.array([how for _, how in chosen], dtype=str),
        given=np.array(texts[main], dtype=str),
        column=main,
        also=tuple(also),
        species=guess_species(texts[main]),
    )


def guess_species(names: Iterable[str]) -> Species:
    """Guess from spelling: `Cd3e`, `mt-Co1` and ENSMUSG ids are mouse, `CD3E`, `C1orf43` and ENSG ids human.

    A guess needs more than half of the names.
    """
    kinds = Counter(
        "mouse" if _MOUSE.fullmatch(name) and not _HUMAN.fullmatch(name) else bool(_HUMAN.fullmatch(name))
        for name in names
    )
    if kinds["mouse"] * 2 > kinds.total():
        return "mouse"
    return "human" if kinds[True] * 2 > kinds.total() else "unknown"


def is_foreign(match: GeneMatch, vocab: GeneVocab) -> bool:
    """Whether the names look like those of a mouse and the vocabulary's do not."""
    return match.species == "mouse" and guess_species(vocab.genes) != "mouse"


def _texts(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """The columns to read as plain text, the index first."""
    size = len(columns[INDEX])
    texts = {}
    for name in (INDEX, *KNOWN_COLUMNS):
        if name in columns:
            if len(columns[name]) != size:
                msg = f"column {name!r} has {len(columns[name])} names, the index has {size}"
                raise ValueError(msg)
            texts[name] = [str(value) if isinstance(value, str) else "" for value in columns[name]]
    return texts


class _Resolver:
    """One name -> (gene of the vocabulary or "", how)."""

    def __init__(self, vocab: GeneVocab, table: GeneTable | None) -> None:
        self.genes = set(vocab) - set(SPECIALS)
        self.table = table

    def __call__(self, name: str) -> tuple[str, str]:
        if name in self.genes:
            return name, "symbol"
        table = self.table
        if table is None or not name:
            return "", "unmatched"
        if ensembl := ENSEMBL.search(name):
            stable = ensembl[1]
            found = {stable} & self.genes or self._targets(table, table.ensembl.get(stable, ()))
            return _decide(found, "ensembl")
        if name in table.names:  # an approved symbol: the vocabulary may still hold one of its older names
            for which, how in enumerate(("previous", "alias")):
                if found := self._older(table, name, which):
                    return _decide(found, how)
            return "", "unmatched"
        for how, index in (("previous", table.previous), ("alias", table.alias)):
            if found := self._targets(table, index.get(name, ())):
                return _decide(found, how)
        return "", "unmatched"

    def _targets(self, table: GeneTable, symbols: Iterable[str]) -> set[str]:
        """Names under which the vocabulary holds any of these approved genes."""
        found = set()
        for symbol in symbols:
            found |= {symbol} & self.genes or self._older(table, symbol, 0) or self._older(table, symbol, 1)
        return found

    def _older(self, table: GeneTable, symbol: str, which: int) -> set[str]:
        """The vocabulary's previous (0) or alias (1) names of an approved gene, but none that means another gene."""
        return {name for name in table.names[symbol][which] if name in self.genes and _owners(table, name) == (symbol,)}


def _owners(table: GeneTable, name: str) -> tuple[str, ...]:
    """The approved genes that a name means, strongest claim first."""
    return (name,) if name in table.names else table.previous.get(name) or table.alias.get(name, ())


def _decide(found: set[str], how: str) -> tuple[str, str]:
    if len(found) == 1:
        return next(iter(found)), how
    return "", "ambiguous" if found else "unmatched"

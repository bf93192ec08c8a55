"""Gene sets: pathways from a GMT file, a dictionary or an Enrichr library, and whether their names are ours."""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scgpt_tl._compat import need
from scgpt_tl._nearest import nearest
from scgpt_tl.genes.match import ENSEMBL, guess_species

logger = logging.getLogger(__name__)

#: Name of a pathway -> its genes, as the source spells them.
GeneSets = dict[str, frozenset[str]]

_SITE = "https://maayanlab.cloud/Enrichr/"
_KINDS = (
    ("Ensembl ids", ENSEMBL),
    ("Entrez ids", re.compile(r"\d+")),
    ("UniProt accessions", re.compile(r"[OPQ]\d[A-Z0-9]{3}\d|[A-NR-Z]\d[A-Z][A-Z0-9]{2}\d")),
)
_FEW = 0.1  # shared part of the smaller side below which a warning is due
_SHOWN = 3


def gene_sets_of(source: Any) -> GeneSets:
    """Pathways from wherever they are.

    Parameters
    ----------
    source
        GMT file (`.gmt`, `.gmt.gz`), a mapping of name to genes, or the name of an Enrichr library, which is fetched
        once by GSEApy and then read from its cache. A name with a suffix or a path is a file's.

    Raises
    ------
    ValueError
        Nothing in it, a line that is not GMT's, a pathway twice or without genes, no such library.
    FileNotFoundError
        No such file.
    ConnectionError
        The library could not be fetched; the message says which file to get instead.
    """
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if isinstance(source, str):
        path = Path(source)
        named = path.name == source and not path.suffix and "\\" not in source  # as no library is
        return _from_enrichr(source) if named and not path.exists() else read_gmt(path)
    if isinstance(source, Path):
        return read_gmt(source)
    msg = f"gene_sets is {type(source).__name__}; give a GMT file, a dictionary of name to genes, or the name of an "
    raise TypeError(msg + "Enrichr library")


def read_gmt(path: Path) -> GeneSets:
    """Pathways of a GMT file: a line each, name, description and genes, separated by tabs.

    Weights behind a comma, as Enrichr writes them ("CD3E,1.0"), are dropped, and so are empty fields at the end.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        As in `gene_sets_of`; the line is named.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not there"
        msg = f"gene_sets={str(path)!r} is {what}: give a GMT file (.gmt, .gmt.gz)"
        raise FileNotFoundError(msg)
    found: GeneSets = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        fields = [field.strip() for field in line.split("\t")]
        name, genes = fields[0], frozenset(gene for field in fields[2:] if (gene := field.partition(",")[0].strip()))
        if not name or not genes:
            what = f"{len(fields)} field(s)" if len(fields) < 3 else "no gene" if name else "no name"
            msg = (
                f"{path.name}, line {number}, has {what} ({line[:60]!r}): a line of a GMT file is name, description "
                "and at least one gene, separated by tabs"
            )
            raise ValueError(msg)
        if name in found:
            msg = (
                f"{path.name} has the pathway {name!r} on lines {lines[name]} and {number}: rename or drop one of them"
            )
            raise ValueError(msg)
        found[name], lines[name] = genes, number
    if not found:
        msg = f"{path.name} is empty: a GMT file has a line for each pathway (was its download cut off?)"
        raise ValueError(msg)
    return found


def check_list(genes: Any, what: str) -> None:
    """Refuse what is no list of names."""
    if isinstance(genes, (str, bytes)) or not isinstance(genes, Iterable):
        kind = "the text " if isinstance(genes, str) else ""
        msg = f"{what} is {kind}{genes!r:.60}: give a list of genes"
        raise ValueError(msg)


def check_names(genes: Iterable[str], sets: GeneSets, *, columns: Iterable[str] = ()) -> frozenset[str]:
    """The genes that occur in any pathway; refused where there are none, told where there are few.

    Parameters
    ----------
    genes
        As the data spell them.
    sets
        Pathways.
    columns
        Columns of `.var` that may hold other names of the same genes.

    Raises
    ------
    ValueError
        The two have no name in common.
    """
    ours, theirs = frozenset(genes), frozenset[str]().union(*sets.values())
    shared = ours & theirs
    if len(shared) >= _FEW * min(len(ours), len(theirs)):
        return shared
    there = ", ".join(map(repr, columns))
    mend = (
        f"name the column of .var that holds the pathways' kind, gene_symbols= (there: {there}), or " if there else ""
    )
    msg = (
        f"{len(shared):,} of {len(ours):,} genes of the data are in a pathway: the data have {kind_of(ours)} "
        f"({_some(ours)}), the pathways {kind_of(theirs)} ({_some(theirs)}); {mend}give gene sets in the data's kind "
        "of name"
    )
    if not shared:
        raise ValueError(msg)
    logger.warning("%s", msg)
    return shared


def kind_of(names: Iterable[str]) -> str:
    """What most of the names are, for a message."""
    names = list(names)
    for kind, pattern in _KINDS:
        if 2 * sum(bool(pattern.fullmatch(name)) for name in names) > len(names):
            return kind
    species = guess_species(names)
    return "gene names" if species == "unknown" else f"{species} gene symbols"


def _from_mapping(source: Mapping[str, Iterable[str]]) -> GeneSets:
    if not source:
        msg = "gene_sets is empty: give {name: genes}"
        raise ValueError(msg)
    found: GeneSets = {}
    for name, genes in source.items():
        check_list(genes, f"gene_sets[{name!r}]")
        if str(name) in found:
            msg = f"gene_sets has the pathway {str(name)!r} twice, as text and as another type: rename one of them"
            raise ValueError(msg)
        found[str(name)] = frozenset(str(gene) for gene in genes if str(gene).strip())
        if not found[str(name)]:
            msg = f"gene_sets[{name!r}] has no gene: drop it, or give its genes"
            raise ValueError(msg)
    return found


def _from_enrichr(name: str) -> GeneSets:
    """An Enrichr library: from GSEApy's cache, where it was fetched before, so that a result can be had again."""
    package = need("gseapy", extra="enrich")
    kept = Path(need("gseapy.utils").DEFAULT_CACHE_PATH) / f"Enrichr.{name}.gmt"
    if kept.is_file():
        logger.info("Enrichr library %s is read from %s", name, kept)
        return read_gmt(kept)
    requests = need("requests")  # gseapy's own
    try:
        requests.head(_SITE, timeout=20)  # gseapy itself waits and tries again for half a minute
        known = package.get_library_name(organism="Human")
        if name not in known:
            near = nearest(name, known)
            near = near if near.startswith("did") else f"its {len(known)} are listed at {_SITE}#libraries"
            msg = f"gene_sets={name!r} is no file, and no library of Enrichr; {near}"
            raise ValueError(msg)
        # no bounds: with any, get_library refuses a library of which exactly half is left out
        return _from_mapping(package.get_library(name, organism="Human", min_size=1, max_size=10**9))
    except requests.exceptions.RequestException as error:
        msg = (
            f"gene_sets={name!r} is no file, and Enrichr, which may have a library of that name, does not answer "
            f"({type(error).__name__}). Where there is a network, save "
            f"{_SITE}geneSetLibrary?mode=text&libraryName={name} as {name}.gmt, and give gene_sets='{name}.gmt'"
        )
        raise ConnectionError(msg) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    opened: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        msg = (
            f"{path.name} cannot be read as text ({error}): a GMT file is UTF-8 text, or that packed by gzip (.gmt.gz)"
        )
        raise ValueError(msg) from error


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")

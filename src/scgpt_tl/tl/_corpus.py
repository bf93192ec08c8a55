"""What users hand us, as the studies of a corpus: opened, named, checked, their genes brought to one language."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from scgpt_tl._nearest import nearest
from scgpt_tl.engine.study import Source, check_weight
from scgpt_tl.genes.canonical import canonical_names, ensembl_id, familiar_names, symbols_of_ids, written_names
from scgpt_tl.genes.folders import DATA_VARIABLE
from scgpt_tl.genes.table import LOCAL, hgnc_table
from scgpt_tl.metrics._checks import types
from scgpt_tl.pp._check import LEAST_SHARE
from scgpt_tl.pp._genes import columns_of, genes_of
from scgpt_tl.tl._stored import Stored, is_store, stored

if TYPE_CHECKING:
    from scgpt_tl.genes.table import GeneTable
    from scgpt_tl.genes.vocab import GeneVocab

logger = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")


def open_corpus(
    data: Any,
    *,
    model_vocab: GeneVocab | None = None,
    labels_key: str | None = None,
    batch_key: str | None = None,
    weights: Mapping[str, float] | None = None,
    skip_bad: bool = False,
) -> list[Source]:
    """Open data sets as one corpus to train on; matrices on disk are read while training, never whole.

    Genes of different studies get one name each. Names are taken from `.var_names` and from the columns that 10x and
    CELLxGENE files carry (`gene_symbols`, `feature_name`, `gene_ids`, ...).

    - With `model_vocab` they are matched to it, as `pp.harmonize_genes` does, and by what it left where it was run.
    - Without, and with HGNC's table at hand (in `$SCGPT_TL_DATA`, or downloaded once by `pp.harmonize_genes`; training
      asks no network), Ensembl ids become symbols, and where studies write a gene differently the approved symbol is
      taken. A gene that all studies know by a previous symbol keeps it, so that data of that age match as they are. A
      study of whose names less than a fifth are approved symbols or Ensembl ids (another species, made-up names) keeps
      its own.
    - Without the table symbols stay as they are written: a previous symbol is then another gene than its successor.
      Ensembl ids become the symbols that other studies of the corpus give for them in a column, and stay ids, without
      their version, where no study does. Which table was used is in the manifest: with it and without it are two runs.

    Parameters
    ----------
    data
        AnnData (in memory or backed), h5ad file, zarr store, folder (all of these below it), a list of any of them, a
        mapping that names AnnData, files or stores, or `Source` objects, which are handed through. A study is named as
        its file; AnnData without a name are `study1`, `study2`, ... Counts in `.X`.
    model_vocab
        Vocabulary of the model that will read the cells. None: one will be made of these studies, so every two of them
        must share a gene.
    labels_key, batch_key
        Columns of `.obs`. A cell without a label has None. Where there are several studies, the study's name is put in
        front of its batches: batch 1 of one laboratory is not batch 1 of another.
    weights
        Study -> how often an epoch shows each of its cells, on average; 1 where it is not named, 0 leaves it out.
    skip_bad
        Leave out data sets that cannot be used, with a warning for each, instead of stopping at the first. All values
        are looked at for it, once; otherwise a negative one deep in a file stops the training that meets it.

    Returns
    -------
    One `Source` for each study. Its `manifest` holds name, file, sha256, cells, genes, weight and the table of names.

    Raises
    ------
    FileNotFoundError
        No such path, or a link to none.
    ValueError
        A damaged, empty or foreign file, negative or non-finite values, studies without a common gene, two studies of
        one name, a weight for no study, no cells at all.
    OSError
        A file that another process is writing.
    KeyError
        No such column of `.obs`; the message lists those there.
    TypeError
        Something else than the above.

    Examples
    --------
    >>> corpus = scgpt_tl.tl.open_corpus("corpus/", weights={"atlas": 0.1}, skip_bad=True)
    >>> scgpt_tl.tl.scgpt_pretrain(corpus, out="model")
    """
    items = _named(data)
    factors = _weights(weights or {}, items)
    items = {name: item for name, item in items.items() if factors.get(name) != 0}
    found = _each(items, lambda name, item: _look(name, item, labels_key, batch_key, skip_bad), skip_bad=skip_bad)
    table = hgnc_table(download=False)
    if model_vocab is None:
        genes = _together(_own_names(found, table), skip_bad=skip_bad)
    else:
        genes = _each(found, lambda _, item: _names_of(item, model_vocab, table), skip_bad=skip_bad)
    many = len(genes) > 1
    found = {name: found[name] for name in genes}
    sources = _each(found, lambda name, item: _source(name, item, genes[name], many=many), skip_bad=skip_bad)
    if not sources:
        msg = "there are no cells to train on; give AnnData, h5ad files, zarr stores or a folder of them"
        raise ValueError(msg)
    _tell_of_columns(sources, labels_key)
    return [_weighted(source, factors.get(name, source.weight)) for name, source in sources.items()]


@dataclass(frozen=True)
class _Looked:
    """A data set with the columns asked for."""

    stored: Stored
    labels: np.ndarray | None
    batches: np.ndarray | None


def _named(data: Any) -> dict[str, Any]:
    """Study -> AnnData, path or `Source`; no two of one name."""
    found: dict[str, Any] = {}
    pairs = _of_mapping(data) if isinstance(data, Mapping) else enumerate(_items(data), 1)
    for key, item in pairs:
        given = item.name if isinstance(item, Source) else item.stem if isinstance(item, Path) else f"study{key}"
        name = given if isinstance(key, int) else str(key)
        if name in found:
            msg = (
                f"two files are named {name!r}: their names tell studies apart, rename one, or give a mapping of names"
            )
            raise ValueError(msg)
        found[name] = item
    return found


def _of_mapping(data: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, item in data.items():
        inside = _items(item)
        if len(inside) != 1:
            msg = f"{name!r} stands for {len(inside)} data sets; a name stands for one: AnnData, a file or a store"
            raise ValueError(msg)
        yield str(name), replace(inside[0], name=str(name)) if isinstance(inside[0], Source) else inside[0]


def _items(data: Any) -> list[Any]:
    """AnnData, `Source`, existing files and stores; folders and lists opened."""
    if isinstance(data, (str, Path)):
        path = Path(data).expanduser()
        if not path.exists() and not path.is_symlink():  # a link to nothing is refused as one, or skipped
            msg = f"{path} does not exist; give h5ad files, zarr stores, a folder of them, or AnnData"
            raise FileNotFoundError(msg)
        return _below(path) if path.is_dir() and not is_store(path) else [path]
    if isinstance(data, (list, tuple)):
        return [item for part in data for item in _items(part)]
    return [data]


def _below(folder: Path) -> list[Path]:
    """All h5ad files and zarr stores of a folder, what is hidden left out; stores are not entered.

    What is called one of them and is none, a link to nothing among others, is there too, so that it is refused by name.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if is_store(path):
            found.append(path)
        elif path.is_dir():
            found += _below(path)
        elif path.suffix.lower() in (".h5ad", ".zarr"):
            found.append(path)
    return found


def _weights(weights: Mapping[str, float], items: Mapping[str, Any]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in items:
            msg = f"weights names the study {name!r}, which the corpus does not have; {nearest(name, items)}"
            raise ValueError(msg)
        check_weight(name, weight)
        if weight == 0:
            logger.warning("study %r has the weight 0 and is left out", name)
    return {name: float(weight) for name, weight in weights.items()}


def _each(items: Mapping[str, A], make: Callable[[str, A], B], *, skip_bad: bool) -> dict[str, B]:
    """What is made of each item; those that cannot be used are left out, or the first of them stops all."""
    made = {}
    for name, item in items.items():
        try:
            made[name] = make(name, item)
        except (ValueError, OSError, KeyError, TypeError) as error:
            if not skip_bad:
                raise
            logger.warning("%r is left out: %s", name, error.args[0] if isinstance(error, KeyError) else error)
    return made


def _look(name: str, item: Any, labels_key: str | None, batch_key: str | None, thoroughly: bool) -> _Looked | Source:
    if isinstance(item, Source):
        return item
    found = stored(item, name, thoroughly=thoroughly)
    labels = None if labels_key is None else types(found.column(labels_key))
    batches = None if batch_key is None else found.column(batch_key)
    if batches is not None and (missing := sum(batch is None for batch in batches)):
        msg = f"{found.said}: {missing:,} cells have no {batch_key!r}; drop them, or name their batch ('unknown')"
        raise ValueError(msg)
    return _Looked(found, labels, batches)


def _own_names(found: Mapping[str, _Looked | Source], table: GeneTable | None) -> dict[str, tuple[list[str], str]]:
    """Names that studies have in common, and the table that they are from."""
    columns = {name: columns_of(item.stored.named) for name, item in found.items() if isinstance(item, _Looked)}
    names: dict[str, tuple[list[str], str]] = {}
    for name, item in found.items():
        if isinstance(item, Source):
            names[name] = item.genes, str(item.manifest.get("table", ""))
        else:
            genes, used = canonical_names(columns[name], table=table)
            names[name] = genes, _source_of(table) if used else ""
    symbols = symbols_of_ids([(columns[name], names[name][0]) for name in columns])
    written = {name: written_names(columns[name]) if name in columns else names[name][0] for name in names}
    symbols |= familiar_names([(genes, written[name]) for name, (genes, _) in names.items()])
    return {
        name: ([symbols.get(gene, gene) for gene in genes] if name in columns else genes, used)
        for name, (genes, used) in names.items()
    }


def _names_of(item: _Looked | Source, vocab: GeneVocab, table: GeneTable | None) -> tuple[list[str], str]:
    """Names in a model's vocabulary; "" where there is none."""
    if isinstance(item, Source):
        return item.genes, str(item.manifest.get("table", ""))
    match = genes_of(item.stored.named, vocab, table=table)
    share = max(match.share, len(np.unique(match.ids[match.ids >= 0])) / len(vocab.genes))
    if share < LEAST_SHARE:
        first = ", ".join(map(repr, match.unmatched[:3]))
        msg = (
            f"{item.stored.said}: {match.n_matched:,} of {len(match.ids):,} genes are in the model's vocabulary, at "
            f"least {LEAST_SHARE:.0%} are needed (first without a match: {first}; species by their spelling: "
            f"{match.species}); pp.harmonize_genes finds Ensembl ids, previous symbols and aliases"
        )
        raise ValueError(msg)
    return match.names.tolist(), "" if set(match.how.tolist()) <= {"symbol", "unmatched"} else _source_of(table)


def _source_of(table: GeneTable | None) -> str:
    return "" if table is None else Path(table.source).name


def _together(names: dict[str, tuple[list[str], str]], *, skip_bad: bool) -> dict[str, tuple[list[str], str]]:
    """The studies, if every two of them share a gene; else without those that share with the fewest."""
    genes = {name: set(found) - {""} for name, (found, _) in names.items()}
    while apart := [(a, b) for a, b in combinations(genes, 2) if genes[a].isdisjoint(genes[b])]:
        first, second = apart[0]
        said = " and ".join(f"{name!r} ({', '.join(sorted(genes[name])[:3])}, ...)" for name in (first, second))
        cure = "they must name the genes of one species in one way"
        if any(ensembl_id(next(iter(genes[name]), "")) for name in (first, second)):
            cure += f": put HGNC's table at ${DATA_VARIABLE}/{LOCAL}, or symbols into .var['gene_symbols']"
        if not skip_bad:
            msg = f"no gene is shared by {said}: {cure}; skip_bad=True leaves one of them out"
            raise ValueError(msg)
        worst = Counter(name for pair in apart for name in pair).most_common(1)[0][0]
        logger.warning("%r is left out: it shares no gene with %s", worst, _others(worst, apart))
        del genes[worst]
    return {name: names[name] for name in genes}


def _others(name: str, pairs: list[tuple[str, str]]) -> str:
    others = [b if a == name else a for a, b in pairs if name in (a, b)]
    return ", ".join(map(repr, others[:3])) + (", ..." if len(others) > 3 else "")


def _source(name: str, item: _Looked | Source, genes: tuple[list[str], str], *, many: bool) -> Source:
    if isinstance(item, Source):
        return replace(item, genes=genes[0])
    at, batches = item.stored, item.batches
    n_cells, n_genes = at.matrix.shape
    if many and batches is not None:
        batches = np.array([f"{name}:{batch}" for batch in batches], dtype=object)
    manifest: dict[str, Any] = {"name": name, "file": None if at.path is None else at.path.name, "sha256": at.sha256()}
    manifest |= {"cells": n_cells, "genes": n_genes, "weight": 1.0, "table": genes[1]}
    return Source(name, genes[0], at.open, n_cells, labels=item.labels, batches=batches, manifest=manifest)


def _weighted(source: Source, weight: float) -> Source:
    return replace(source, weight=weight, manifest={**source.manifest, "weight": weight})


def _tell_of_columns(sources: Mapping[str, Source], labels_key: str | None) -> None:
    """Say what is allowed and may surprise: missing labels, batches of one cell."""
    missing = {name: sum(label is None for label in s.labels) for name, s in sources.items() if s.labels is not None}
    if any(missing.values()):
        each = ", ".join(f"{name}: {n:,} of {sources[name].n_cells:,}" for name, n in missing.items() if n)
        logger.warning("cells have no label in .obs[%r] and are shown without one (%s)", labels_key, each)
    cells = Counter(batch for source in sources.values() if source.batches is not None for batch in source.batches)
    alone = [batch for batch, n in cells.items() if n == 1]
    if alone:
        logger.warning(
            "batches of a single cell, from which nothing about them can be learned: %s", ", ".join(alone[:5])
        )

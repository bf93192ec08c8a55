"""`pp.check_input`: what a model will make of a data set, before any long work.

The matrix is read once, by blocks of sparse rows, whatever it is stored in; memory does not grow with the cells but for
one number each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scgpt_tl._slots import check_anndata
from scgpt_tl.genes.bundle import read_bundle, vocab_of
from scgpt_tl.genes.match import INDEX, is_foreign
from scgpt_tl.pp._blocks import Matrix, open_layer
from scgpt_tl.pp._genes import genes_of
from scgpt_tl.pp._report import InputReport as InputReport
from scgpt_tl.pp._report import Values

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

    from scgpt_tl.genes.match import GeneMatch
    from scgpt_tl.genes.vocab import GeneVocab

#: Below this share of the genes that could match, names are of another kind or species than the model's.
LEAST_SHARE = 0.2
#: Share of the CPU's matrix rate that embedding reaches, for the estimate of time.
EFFICIENCY = 0.7
_ROWS = 4096  # read at a time
_GUESS_ROWS = 2000  # looked at to tell counts from logs
_LARGEST_LOG = 30.0  # exp(30) is 1e13: no count
_TOKENS_AT_ONCE = 3072  # of a minibatch on a CPU, for the estimate of memory


def check_input(adata: AnnData, model: Any, *, layer: str | None = None, max_length: int | None = None) -> InputReport:
    """Look at a data set with a model's eyes: genes, values, lengths, time and memory. Nothing is changed.

    Genes are those that `pp.harmonize_genes` found for this model, or else names compared exactly.

    Parameters
    ----------
    adata
        In memory, backed, a view; dense, sparse, zarr or dask.
    model
        A model's name or folder, or a loaded model.
    layer
        Layer to read; None is `.X`.
    max_length
        Tokens to read of a cell, `<cls>` included; None is the model's.

    Returns
    -------
    Its `errors` hold only what cannot work: no cells or genes, no such layer, negative, infinite or missing values, or
    fewer than 20 % of the genes that could match (all of the data's, or all of the model's where these are fewer).
    `raise_for_errors()` raises them. Time and memory are estimates: FLOPs over a matrix product measured here.

    Raises
    ------
    FileNotFoundError
        No such model.
    ValueError
        `max_length` is smaller than 2 (`<cls>` and a gene); a damaged file.
    TypeError
        `adata` is no AnnData, `model` no model, `max_length` no whole number.
    """
    return look(adata, model, layer=layer, max_length=max_length)


def look(
    adata: AnnData, model: Any, *, layer: str | None, max_length: int | None,
    watch: Callable[[sparse.csr_matrix], None] | None = None,
) -> InputReport:  # fmt: skip
    """As `check_input`; `watch` is shown each block of rows, so that nobody need read them again."""
    model = read_bundle(model) if isinstance(model, (str, Path)) else model
    sizes, vocab = _sizes(model), vocab_of(model)
    limit = sizes.max_length if max_length is None else _checked_length(max_length, sizes.max_length)
    check_anndata(adata, "adata")
    report = InputReport(sizes.name, adata.n_obs, adata.n_vars, layer, max_length=limit)
    if 0 in adata.shape:
        empty = f"the data set is empty ({adata.n_obs} cells x {adata.n_vars} genes); check how it was filtered"
        return replace(report, errors=(empty,))
    match = genes_of(adata, vocab)
    report = _with_genes(report, adata, match, vocab)
    try:
        matrix = open_layer(adata, layer)
    except (KeyError, ValueError, TypeError) as error:
        return _add(report, errors=[str(error.args[0])])
    scan = _scan(matrix, match, watch)
    return _with_estimate(_with_values(report, adata, scan), scan, sizes, n_names=len(vocab))


@dataclass(frozen=True)
class _Sizes:
    name: str
    d_model: int
    n_layers: int
    d_ff: int
    max_length: int


@dataclass
class _Scan:
    """What one pass over the matrix finds."""

    lengths: np.ndarray
    """(n_obs,) int32: genes of the vocabulary that a cell expresses."""
    least: float = 0.0
    most: float = 0.0
    whole: bool = True
    """No value but whole numbers, in the rows looked at."""
    n_nonfinite: int = 0
    n_negative: int = 0
    first_nonfinite: int = -1
    first_negative: int = -1


def _sizes(model: Any) -> _Sizes:
    """Sizes of a `Bundle` or a loaded model."""
    config = getattr(model, "config", model)
    try:
        sizes = [int(getattr(config, field)) for field in ("d_model", "n_layers", "d_ff", "max_length")]
    except AttributeError:
        msg = f"model is {type(model).__name__}; give a model's name or folder, or a loaded model"
        raise TypeError(msg) from None
    return _Sizes(str(getattr(model, "name", "unnamed")), *sizes)


def _checked_length(max_length: Any, own: int) -> int:
    """What compiled kernels and files can take."""
    if isinstance(max_length, bool) or not isinstance(max_length, (int, np.integer)):
        msg = f"max_length={max_length!r}; give a whole number, 2 or more, or None (the model's: {own})"
        raise TypeError(msg)
    if max_length < 2:
        msg = f"max_length={max_length} leaves no room for a gene beside <cls>; give at least 2 (the model's: {own})"
        raise ValueError(msg)
    return int(max_length)


def _scan(matrix: Matrix, match: GeneMatch, watch: Callable[[sparse.csr_matrix], None] | None) -> _Scan:
    found = _Scan(np.zeros(matrix.shape[0], dtype=np.int32))
    distinct = len(match.duplicates) == 0
    for start, block in matrix.blocks(_ROWS):
        stop = start + block.shape[0]
        if watch is not None:
            watch(block)
        found.lengths[start:stop] = _lengths(block, match.ids, distinct=distinct)
        data = block.data
        if len(data) == 0:
            continue
        least, most = float(data.min()), float(data.max())  # NaN comes through both
        if not (np.isfinite(least) and np.isfinite(most)):
            bad = ~np.isfinite(data)
            found.n_nonfinite += int(bad.sum())
            if found.first_nonfinite < 0:
                found.first_nonfinite = start + _first(block, bad)
            data = np.where(bad, 0, data)
            least, most = float(data.min()), float(data.max())
        if least < 0:
            found.n_negative += int((data < 0).sum())
            if found.first_negative < 0:
                found.first_negative = start + _first(block, data < 0)
        found.least, found.most = min(found.least, least), max(found.most, most)
        if start < _GUESS_ROWS and found.whole and data.dtype.kind == "f":
            some = data[: block.indptr[min(_GUESS_ROWS - start, block.shape[0])]]
            found.whole = bool((some == np.rint(some)).all())
    return found


def _lengths(block: sparse.csr_matrix, ids: np.ndarray, *, distinct: bool) -> np.ndarray:
    """Genes of the vocabulary in each cell; variables that are one gene count once."""
    genes = ids[block.indices]
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[genes >= 0]
    if not distinct:
        width = int(ids.max(initial=0)) + 1
        rows = np.unique(rows * width + genes[genes >= 0]) // width
    return np.bincount(rows, minlength=block.shape[0]).astype(np.int32)


def _first(block: sparse.csr_matrix, bad: np.ndarray) -> int:
    """Row of the first value that is bad."""
    return int(np.searchsorted(block.indptr, np.flatnonzero(bad)[0], side="right")) - 1


def _with_genes(report: InputReport, adata: AnnData, match: GeneMatch, vocab: GeneVocab) -> InputReport:
    n_held = len(np.unique(match.ids[match.ids >= 0]))
    report = replace(
        report,
        n_matched=match.n_matched,
        share=match.share,
        vocab_share=n_held / len(vocab.genes),
        gene_column=match.column,
        species=match.species,
        duplicate_genes=match.duplicates,
        ambiguous_genes=match.ambiguous,
        n_duplicate_var_names=int(adata.var_names.duplicated().sum()),
        n_duplicate_obs_names=int(adata.obs_names.duplicated().sum()),
    )
    foreign = is_foreign(match, vocab)
    return _add(report, errors=_gene_errors(report, match, foreign), warnings=_gene_warnings(report, match, foreign))


def _gene_errors(report: InputReport, match: GeneMatch, foreign: bool) -> Iterator[str]:
    if max(report.share, report.vocab_share) >= LEAST_SHARE:
        return
    given = ", ".join(map(repr, [name for name in match.unmatched if name][:5])) or "no text"
    column = "var_names" if match.column == INDEX else f"var[{match.column!r}]"
    yield (
        f"{report.n_matched:,} of {report.n_vars:,} genes ({report.share:.1%}) are in the vocabulary of "
        f"{report.model!r}, at least {LEAST_SHARE:.0%} are needed. First without a match, from {column}: {given}. "
        f"Species by their spelling: {match.species}. {_gene_cure(foreign)}"
    )


def _gene_cure(foreign: bool) -> str:
    if foreign:
        return (
            "A human model reads human genes: put the symbols of human orthologues into .var['gene_symbols'] first, "
            "then pp.harmonize_genes(adata, model)"
        )
    return "pp.harmonize_genes(adata, model) finds Ensembl ids, previous symbols and aliases"


def _gene_warnings(report: InputReport, match: GeneMatch, foreign: bool) -> Iterator[str]:
    if LEAST_SHARE <= max(report.share, report.vocab_share) < 0.5:
        yield f"only {report.share:.1%} of the genes are in the model's vocabulary. {_gene_cure(foreign)}"
    if foreign and match.n_matched:
        yield "the names look like mouse genes: a human model reads them as their human namesakes, if at all"
    for n, what, names in (
        (len(match.duplicates), "genes of the model stand in several variables; they are summed", match.duplicates),
        (len(match.ambiguous), "names could mean several genes of the model; they are left out", match.ambiguous),
    ):
        if n:
            yield f"{n:,} {what}: {', '.join(names[:5])}{', ...' if n > 5 else ''}"
    if report.n_duplicate_var_names:
        yield f"{report.n_duplicate_var_names:,} var names are repeated; where the model has the gene they are summed"
    if report.n_duplicate_obs_names:
        yield (
            f"{report.n_duplicate_obs_names:,} obs names are repeated; results are by position, so nothing is lost "
            "(adata.obs_names_make_unique() mends the names)"
        )


def _with_values(report: InputReport, adata: AnnData, scan: _Scan) -> InputReport:
    kind: Values = "floats"
    if scan.n_negative:
        kind = "scaled"
    elif scan.whole:
        kind = "counts"
    elif scan.most <= _LARGEST_LOG:
        kind = "logs"
    room = report.max_length - 1
    n_empty, n_long = int((scan.lengths == 0).sum()), int((scan.lengths > room).sum())
    report = replace(
        report,
        values=kind,
        n_empty=n_empty,
        n_long=n_long,
        median_length=float(np.median(scan.lengths)) + 1,
        n_tokens=int(np.minimum(scan.lengths, room).sum(dtype=np.int64)) + report.n_obs,
    )
    empty = (
        f"{n_empty:,} cells express no gene of the model: they are embedded as <cls> alone, all alike; "
        "sc.pp.filter_cells(adata, min_genes=...) drops them"
    )
    return _add(
        report,
        errors=_value_errors(report, adata, scan),
        warnings=[empty] if n_empty else [],
        notes=_value_notes(report),
    )


def _value_errors(report: InputReport, adata: AnnData, scan: _Scan) -> Iterator[str]:
    read = ".X" if report.layer is None else f"layer {report.layer!r}"
    if scan.n_nonfinite:
        yield (
            f"{read} holds {scan.n_nonfinite:,} values that are NaN or infinite, the first in cell "
            f"{adata.obs_names[scan.first_nonfinite]!r}; finite values are needed: look for a division by zero, or "
            "drop these cells"
        )
    if scan.n_negative:
        there = ", ".join(map(repr, adata.layers)) or "none"
        raw = "adata.raw.to_adata()" if adata.raw is not None else "counts (adata.raw.to_adata() where a .raw was kept)"
        yield (
            f"{read} holds {scan.n_negative:,} negative values (least {scan.least:.3g}), the first in cell "
            f"{adata.obs_names[scan.first_negative]!r}: scaled data cannot be read. Use {raw}, or layer= with counts "
            f"or log-normalised values (layers: {there})"
        )


def _value_notes(report: InputReport) -> Iterator[str]:
    if report.values == "logs":
        yield (
            "the values look like logarithms, not counts: that works as well, since a model reads the ranks of values "
            "within a cell"
        )
    if report.values == "floats":
        yield "the values are neither counts nor logarithms (normalised?): a model reads their ranks within a cell"
    if report.n_long:
        yield (
            f"{report.n_long:,} cells ({report.n_long / report.n_obs:.1%}) have more than max_length - 1 = "
            f"{report.max_length - 1:,} genes of the model: a sample of them is kept, the same in every run with the "
            "same seed"
        )


def _with_estimate(report: InputReport, scan: _Scan, sizes: _Sizes, *, n_names: int) -> InputReport:
    """FLOPs that embedding executes: the last block needs queries, output and MLP for `<cls>` alone."""
    d, inner, blocks = sizes.d_model, sizes.d_ff, sizes.n_layers
    length = np.minimum(scan.lengths, report.max_length - 1).astype(np.float64) + 1
    tokens, squares, cells = length.sum(), (length**2).sum(), len(length)
    whole = (blocks - 1) * (tokens * (8 * d * d + 4 * d * inner) + 4 * d * squares)
    last = tokens * (4 * d * d + 4 * d) + cells * (4 * d * d + 4 * d * inner)
    weights = n_names * d + blocks * (4 * d * d + 2 * d * inner)
    floats = weights + cells * d + min(_TOKENS_AT_ONCE, tokens) * (8 * d + inner)
    report = replace(
        report,
        flops=float(whole + last),
        seconds=float(whole + last) / (EFFICIENCY * _matrix_rate()),
        memory_bytes=int(4 * floats),
    )
    return _add(report, notes=["time and memory are estimates, from a matrix product measured here"])


def _matrix_rate(size: int = 512) -> float:
    """FLOPs a second of a float32 product, the best of a few."""
    a = np.ones((size, size), dtype=np.float32)
    best = np.inf
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _add(
    report: InputReport, *, errors: Iterable[str] = (), warnings: Iterable[str] = (), notes: Iterable[str] = ()
) -> InputReport:
    """More errors, warnings or notes."""
    return replace(
        report,
        errors=(*report.errors, *errors),
        warnings=(*report.warnings, *warnings),
        notes=(*report.notes, *notes),
    )

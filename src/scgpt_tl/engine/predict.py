"""Inference: rows in, embeddings out, in bounded memory. Knows no Lightning and no AnnData."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from scgpt_tl._nearest import refuse_unknown
from scgpt_tl.engine._fields import parse_bytes
from scgpt_tl.tokens.tokenize import TokenBlock, Tokenizer, ahead

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor, nn

    from scgpt_tl.core.encoders import Tables
    from scgpt_tl.core.scgpt import ScGPT
    from scgpt_tl.engine.config import TrainConfig
    from scgpt_tl.tokens.batch import CellBatch

logger = logging.getLogger(__name__)
T = TypeVar("T")

ROWS = 1024  # read and tokenised at a time; no result depends on it
_CPU_TOKENS = 3072  # per minibatch: activations of the 51 M model then stay near the caches
_GPU_TOKENS = 131_072
#: Options of training that say how cells are embedded too, by a model that learns or has learned.
AS_IN_TRAINING = ("device", "max_memory", "max_tokens", "progress")


@dataclass(frozen=True)
class Compute:
    """Where and how to compute; none of it changes a result beyond rounding."""

    device: str = "auto"
    """`auto`: CUDA where there is one, else the CPU."""
    dtype: str = "auto"
    """`float32`, `bfloat16` or `float16`; `auto`: float32 on the CPU, bfloat16 autocast on CUDA."""
    max_memory: int | str | None = None
    """Bytes, or text like "4GB", that activations may take; sets the tokens per minibatch."""
    max_tokens: int | None = None
    """Tokens per minibatch, in place of `max_memory`."""
    progress: bool = True
    """Show a bar with cells per second and the time left."""

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            msg = f"dtype={self.dtype!r}; give 'auto', 'float32', 'bfloat16' or 'float16'"
            raise ValueError(msg)
        if self.max_tokens is not None and self.max_tokens < 1:
            msg = f"max_tokens={self.max_tokens}; give 1 or more"
            raise ValueError(msg)
        if self.max_memory is not None:
            parse_bytes(self.max_memory)

    @classmethod
    def of(cls, options: Mapping[str, Any], *, beside: Iterable[str] = ()) -> Compute:
        """Build from keywords; an unknown one is refused with the nearest name, of ours or of those `beside` them."""
        refuse_unknown(options, [f.name for f in fields(cls)], beside=beside)
        return cls(**options)

    @classmethod
    def like(cls, train: TrainConfig) -> Compute:
        """As a training computes."""
        return cls(**{name: getattr(train, name) for name in AS_IN_TRAINING})

    def torch_device(self) -> torch.device:
        """The device, checked to be there.

        Raises
        ------
        ValueError
            It is none, or not on this machine.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            msg = f"device={self.device!r} is not a device; give 'auto', 'cpu', 'cuda' or 'cuda:0'"
            raise ValueError(msg) from error
        if not _is_here(device):
            kind = "CUDA device" if device.type == "cuda" else "device"
            msg = f"device={self.device!r}: no usable {kind} here; device='auto' or 'cpu' computes on this machine"
            raise ValueError(msg)
        return device

    def torch_dtype(self, device: torch.device) -> torch.dtype:
        """The type of matrix products."""
        if self.dtype == "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return getattr(torch, self.dtype)

    def tokens(self, backbone: ScGPT, device: torch.device) -> int:
        """Tokens per minibatch."""
        if self.max_tokens is not None:
            return self.max_tokens
        if self.max_memory is None:
            return _GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS
        return max(1, parse_bytes(self.max_memory) // token_bytes(backbone))

    def bar(self, total: int) -> tqdm[Any]:
        """Progress over `total` cells."""
        return tqdm(total=total, unit="cell", disable=not self.progress, smoothing=0.1)


def _is_here(device: torch.device) -> bool:
    """Whether a device that torch knows by name computes on this machine."""
    if device.type == "cuda":  # asked without starting CUDA: processes that are forked later could not use it
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # each backend has its own way of being absent
        return False
    return device.type != "meta"  # which holds no numbers


class Sink(Protocol):
    """Receives embeddings by rows; an array will do."""

    def __setitem__(self, rows: Any, values: np.ndarray) -> None: ...


@dataclass
class Seen:
    """What a pass met."""

    n_cells: int = 0
    n_empty: int = 0
    """Cells without any gene of the vocabulary: `<cls>` alone."""
    n_sampled: int = 0
    """Cells longer than the model's length, of which a sample of genes was read."""
    n_tokens: int = 0
    halved: int = 0
    """How often the minibatch was halved for want of memory."""

    def add(self, block: TokenBlock) -> None:
        """Count a block."""
        self.n_cells += len(block.keys)
        self.n_empty += int((block.n_genes == 0).sum())
        self.n_sampled += int((block.n_genes > block.lengths - 1).sum())
        self.n_tokens += len(block.gene_ids)


@dataclass
class Budget:
    """Tokens of a minibatch, halved where an accelerator is out of memory."""

    tokens: int
    seen: Seen = field(default_factory=Seen)

    def spent(self, run: Callable[[np.ndarray], T], cells: np.ndarray) -> Iterator[tuple[np.ndarray, T]]:
        """`run` of a minibatch's cells (n,), or of parts of them, in order, each with what it gives.

        `run` must leave nothing behind where it fails.

        Raises
        ------
        torch.OutOfMemoryError
            A cell alone does not fit.
        """
        yield from self._spent(run, cells, self.tokens)

    def _spent(self, run: Callable[[np.ndarray], T], cells: np.ndarray, tokens: int) -> Iterator[tuple[np.ndarray, T]]:
        try:
            found = run(cells)
        except torch.OutOfMemoryError:
            if len(cells) == 1:
                raise
        else:
            yield cells, found
            return
        torch.cuda.empty_cache()  # out of the handler, whose traceback holds what the network had made
        if not self.seen.halved:
            logger.warning(
                "out of memory with %d tokens: going on with half as many; max_memory= avoids this", self.tokens
            )
        self.seen.halved += 1
        self.tokens = min(self.tokens, tokens // 2)
        for half in np.array_split(cells, 2):
            yield from self._spent(run, half, tokens // 2)


@dataclass
class Contexts:
    """Running sums of contextual gene embeddings: mean token embedding of each gene over the cells of a group."""

    groups: np.ndarray
    """(n_obs,) int64 group of each cell, -1: none."""
    genes: np.ndarray
    """(n_genes,) vocabulary ids to collect."""
    width: int
    """D."""
    sums: Tensor = field(init=False)
    """(n_groups, n_genes, D)."""
    counts: Tensor = field(init=False)
    """(n_groups, n_genes) cells that express the gene."""

    def __post_init__(self) -> None:
        self.sums = torch.zeros(int(self.groups.max(initial=-1)) + 1, len(self.genes), self.width)
        self.counts = torch.zeros(self.sums.shape[:2])
        self.place = torch.full((int(self.genes.max(initial=0)) + 1,), -1)
        self.place[torch.from_numpy(self.genes)] = torch.arange(len(self.genes))

    def add(self, batch: CellBatch, tokens: Tensor, rows: np.ndarray) -> None:
        """Add a minibatch, cells `rows` (B,) of the data."""
        ids = batch.gene_ids.cpu()
        gene = self.place[ids.clamp(max=len(self.place) - 1)].where(ids < len(self.place), -1)
        group = torch.from_numpy(self.groups[rows])[batch.cell_index.cpu()]
        keep = (group >= 0) & (gene >= 0)  # <cls> is no gene
        flat = group[keep] * len(self.genes) + gene[keep]
        self.sums.view(-1, self.width).index_add_(0, flat, tokens.float().cpu()[keep])
        self.counts.view(-1).index_add_(0, flat, torch.ones(len(flat)))

    def mean(self) -> np.ndarray:
        """(n_groups, n_genes, D) float32; NaN where no cell of the group expresses the gene."""
        return (self.sums / self.counts[..., None]).numpy()


def embed_rows(
    backbone: ScGPT,
    rows: Iterator[tuple[int, csr_matrix]],
    tokenizer: Tokenizer,
    out: Sink,
    *,
    compute: Compute,
    total: int,
    unit_norm: bool = True,
    contexts: Contexts | None = None,
    batches: np.ndarray | None = None,
    seen: Seen | None = None,
) -> Seen:
    """Embed every row and write it to `out`; returns what was met.

    Parameters
    ----------
    backbone
        In eval mode.
    rows
        (first row, CSR block) in order, as `Matrix.blocks` gives.
    out
        (n_obs, D), written a block at a time.
    total
        Cells to come, for the bar.
    unit_norm
        Scale each embedding to length 1, as published.
    contexts
        Collects contextual gene embeddings where they are asked for.
    batches
        (n_obs,) int64 sequencing batch of each row, for a network that normalises each apart.
    seen
        Counts to add to, before the rows are written: `out` may then record both.

    Raises
    ------
    ValueError
        Batches that are missing where the network needs them, or are none of its batches.
    """
    check_batches(backbone, batches, total)
    seen = Seen() if seen is None else seen
    with placed(backbone, compute) as device, compute.bar(total) as bar:
        runner = _Runner(backbone, backbone.tables(), device, contexts, batches)
        budget = Budget(compute.tokens(backbone, device), seen)
        for start, block in ahead(rows, tokenizer):
            result = np.empty((len(block.keys), backbone.config.d_model), np.float32)
            for cells in minibatches(block.lengths, budget.tokens):
                for some, embeddings in budget.spent(partial(runner, block, start), cells):
                    result[some] = embeddings
                    bar.update(len(some))
            if unit_norm:
                result = normalize(torch.from_numpy(result)).numpy()
            seen.add(block)
            out[start : start + len(result)] = result
    return seen


@contextmanager
def placed(network: nn.Module, compute: Compute) -> Iterator[torch.device]:
    """Inference where and in what type `compute` says; afterwards the network is where it was."""
    device = compute.torch_device()
    dtype = compute.torch_dtype(device)
    home = next(network.parameters()).device
    network.to(device)
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield device
    finally:
        network.to(home)


@dataclass(frozen=True)
class _Runner:
    """Runs minibatches of a block whose first row is `start`."""

    backbone: ScGPT
    tables: Tables
    device: torch.device
    contexts: Contexts | None
    batches: np.ndarray | None

    def __call__(self, block: TokenBlock, start: int, cells: np.ndarray) -> np.ndarray:
        """Embeddings (B, D) of some cells."""
        batch, rows = block.batch(cells), cells + start
        if self.batches is not None:
            batch = replace(batch, batch=torch.from_numpy(self.batches[rows]))
        batch = batch.to(self.device)
        encoded = self.backbone.encode(batch, cell_only=self.contexts is None, tables=self.tables)
        if self.contexts is not None and encoded.tokens is not None:
            self.contexts.add(batch, encoded.tokens, rows)
        return encoded.cell.float().cpu().numpy()


def check_batches(backbone: ScGPT, batches: np.ndarray | None, total: int) -> None:
    """Each row's statistics must be known before the first is read; another one's would go unnoticed.

    Raises
    ------
    ValueError
        Batches that are missing where the network needs them, or are none of its batches.
    """
    if batches is None:
        if backbone.config.input_norm == "domain":
            msg = "this network normalises each batch apart: batches= must say which batch each row is of"
            raise ValueError(msg)
        return
    n = backbone.config.n_batches
    if (
        batches.shape != (total,)
        or batches.dtype != np.int64
        or (total and not 0 <= batches.min() <= batches.max() < n)
    ):
        msg = f"batches {batches.dtype} {batches.shape}; {total} int64 numbers from 0 to {n - 1} are needed"
        raise ValueError(msg)


def minibatches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cells of a block, longest first, in runs of at most `budget` tokens (a longer cell goes alone).

    Cells of like length go together, so that a kernel which pads wastes little.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        totals = np.cumsum(lengths[order[start:]])
        n = max(1, int(np.searchsorted(totals, budget, side="right")))
        yield order[start : start + n]
        start += n


def token_bytes(backbone: ScGPT) -> int:
    """Bytes of activations per token at the widest point of a block, with torch's temporaries."""
    config = backbone.config
    return 4 * (8 * config.d_model + 2 * config.d_ff)

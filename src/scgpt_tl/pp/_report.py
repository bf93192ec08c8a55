"""`InputReport`: what `pp.check_input` found, readable by people and by programs."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

Values = Literal["counts", "logs", "floats", "scaled", "unknown"]


@dataclass(frozen=True)
class InputReport:
    """What a model will make of a data set.

    `errors` cannot work, `warnings` should be looked at, `notes` say what will happen. All of them name the way out.
    """

    model: str
    n_obs: int
    n_vars: int
    layer: str | None
    """None is `.X`."""
    n_matched: int = 0
    """Variables that are a gene of the vocabulary."""
    share: float = 0.0
    """The same as a part of `n_vars`."""
    vocab_share: float = 0.0
    """Part of the vocabulary's genes that the data hold."""
    gene_column: str = "index"
    """Column of `.var` with the names that matched; "index" is `.var_names`."""
    species: str = "unknown"
    """A guess from the spelling of names."""
    duplicate_genes: tuple[str, ...] = ()
    """Genes of the vocabulary that several variables stand for; summed at tokenisation."""
    ambiguous_genes: tuple[str, ...] = ()
    """Names that could mean several genes of the vocabulary; left out."""
    n_duplicate_var_names: int = 0
    n_duplicate_obs_names: int = 0
    values: Values = "unknown"
    """`counts` (whole numbers), `logs`, `floats` (neither), `scaled` (some negative); a guess but for the last."""
    n_empty: int = 0
    """Cells without any value in a gene of the vocabulary."""
    max_length: int = 0
    """Tokens of a cell that the model reads, `<cls>` included."""
    median_length: float = 0.0
    """Tokens of the median cell before it is cut, `<cls>` included."""
    n_long: int = 0
    """Cells with more tokens than `max_length`."""
    n_tokens: int = 0
    """Tokens of all cells after cutting."""
    flops: float = 0.0
    """Floating-point operations of embedding all cells."""
    seconds: float = 0.0
    """Estimate of the time on this machine's CPU."""
    memory_bytes: int = 0
    """Estimate of the memory beside the data: weights, activations, result."""
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing stands in the way."""
        return not self.errors

    def raise_for_errors(self) -> None:
        """Do nothing where all is well.

        Raises
        ------
        ValueError
            With every error, one to a line.
        """
        if self.errors:
            msg = "\n".join(self.errors)
            raise ValueError(msg)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self._facts())
        lines = [f"{name:<{width}}  {text}" for name, text in self._facts()]
        return "\n".join([*lines, *(f"{kind}: {text}" for kind, text in self._remarks())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self._facts())
        items = "".join(f"<li><b>{kind}</b> {escape(text)}</li>" for kind, text in self._remarks())
        return f"<table>{rows}</table><ul>{items}</ul>"

    def _facts(self) -> list[tuple[str, str]]:
        read = ".X" if self.layer is None else f"layer {self.layer!r}"
        gigabytes, cells = self.memory_bytes / 1e9, max(1, self.n_obs)
        return [
            ("model", self.model),
            ("data", f"{self.n_obs:,} cells x {self.n_vars:,} genes, {read}: {self.values}"),
            (
                "genes",
                f"{self.n_matched:,} matched by {self.gene_column!r} ({self.share:.1%} of the data's, "
                f"{self.vocab_share:.1%} of the model's); species: {self.species}",
            ),
            (
                "length",
                f"{self.median_length:,.0f} tokens in the median cell; {self.n_long:,} cells "
                f"({self.n_long / cells:.1%}) are longer than {self.max_length:,}",
            ),
            (
                "estimate",
                f"{_duration(self.seconds)} on this CPU ({self.flops / 1e12:,.1f} TFLOP), {gigabytes:.1f} GB beside "
                "the data",
            ),
            ("verdict", "ready" if self.ok else f"{len(self.errors)} thing(s) to mend first"),
        ]

    def _remarks(self) -> list[tuple[str, str]]:
        kinds = (("error", self.errors), ("warning", self.warnings), ("note", self.notes))
        return [(kind, text) for kind, texts in kinds for text in texts]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than a second"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Over-representation of gene sets in lists of genes: GSEApy counts, all tests are corrected together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from scgpt_tl._compat import need
from scgpt_tl._nearest import check_choice, refuse_unknown

if TYPE_CHECKING:
    from scgpt_tl.tl._gene_sets import GeneSets

logger = logging.getLogger(__name__)

Correction = Literal["bonferroni", "fdr"]
COLUMNS = ("program", "pathway", "overlap", "size", "n_program", "p_value", "adjusted", "odds_ratio", "genes")


@dataclass(frozen=True)
class PathwayTest:
    """Which pathways are tested, and what counts as a hit."""

    correction: Correction = "bonferroni"
    cutoff: float = 0.05
    min_size: int = 3
    max_size: int | None = None

    def __post_init__(self) -> None:
        check_choice("correction", self.correction, ("bonferroni", "fdr"))
        cutoff: Any = self.cutoff
        if not (isinstance(cutoff, Real) and 0 < float(cutoff) <= 1):
            msg = f"cutoff={cutoff!r}: an adjusted p is a number above 0 and at most 1"
            raise ValueError(msg)
        sizes: list[Any] = [1, self.min_size] + ([] if self.max_size is None else [self.max_size])
        if not all(isinstance(size, Integral) for size in sizes) or sizes != sorted(sizes):
            said = f"min_size={self.min_size!r} and max_size={self.max_size!r}"
            msg = f"{said}: give whole numbers, 1 <= min_size <= max_size"
            raise ValueError(msg)

    @classmethod
    def of(cls, options: Mapping[str, Any], *, beside: Iterable[str] = ()) -> PathwayTest:
        """Build from keywords; an unknown one is refused with the nearest name, of ours or of those `beside` them."""
        refuse_unknown(options, [f.name for f in fields(cls)], beside=beside)
        return cls(**options)

    def pathways(self, sets: GeneSets, background: frozenset[str]) -> GeneSets:
        """The pathways to be tested, cut down to the background.

        Raises
        ------
        ValueError
            None has a size within the bounds.
        """
        cut = {name: genes & background for name, genes in sets.items()}
        most = len(background) if self.max_size is None else self.max_size
        kept = {name: genes for name, genes in cut.items() if self.min_size <= len(genes) <= most}
        if not kept:
            sizes = sorted(map(len, cut.values()))
            msg = (
                f"none of {len(cut):,} pathways has {self.min_size} to {most:,} of the {len(background):,} genes of "
                f"the background (they have {sizes[0]:,} to {sizes[-1]:,}): change min_size= or max_size=, or choose "
                "more genes"
            )
            raise ValueError(msg)
        return kept


def over_representation(
    lists: Mapping[str, frozenset[str]], sets: GeneSets, background: frozenset[str], testing: PathwayTest
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Test each list for each pathway.

    Parameters
    ----------
    lists
        Name -> genes; those outside the background do not count, and a list that has no other is named and left out.
    sets
        Pathways.
    background
        Genes that could have been in a list and are in a pathway.
    testing
        Sizes and correction.

    Returns
    -------
    A row for each pair with a gene in common, columns `COLUMNS`, by list, the surest first; and how many genes, lists,
    pathways, tests and hits there were.

    Raises
    ------
    ValueError
        No pathway of such a size, or no list with a gene of the background.
    """
    pathways = testing.pathways(sets, background)
    inside = {name: genes & background for name, genes in lists.items()}
    if outside := [name for name, genes in inside.items() if not genes]:
        said = ", ".join(outside[:5]) + (", ..." if len(outside) > 5 else "")
        msg = f"{len(outside)} of {len(lists)} lists have no gene of the background's {len(background):,}: {said}"
        if len(outside) == len(lists):
            raise ValueError(msg + "; are they in another kind of name?")
        logger.warning("%s; they are not tested", msg)
    inside = {name: genes for name, genes in inside.items() if genes}
    table = _table([row for name, genes in inside.items() for row in _tested(name, genes, pathways, background)])
    n_tests = len(inside) * len(pathways)
    table["adjusted"] = _adjusted(table["p_value"].to_numpy(np.float64), n_tests, testing.correction)
    table["order"] = table["program"].map({name: place for place, name in enumerate(inside)})
    table = table.sort_values(["order", "p_value", "overlap", "pathway"], ascending=[True, True, False, True])
    counts = {"n_background": len(background), "n_programs": len(inside), "n_pathways": len(pathways)}
    counts |= {"n_tests": n_tests, "n_hits": int((table["adjusted"] <= testing.cutoff).sum())}
    return table.drop(columns="order").reset_index(drop=True), counts


def _tested(
    name: str, genes: frozenset[str], pathways: GeneSets, background: frozenset[str]
) -> Iterator[tuple[Any, ...]]:
    """Rows of one list, `COLUMNS`, not corrected yet.

    GSEApy reads meaning into names: numbers are Entrez ids to it, and where nine in ten names of the pathways are in
    capitals it turns a list into capitals that is less so (C1orf43), and the background with it. So genes go there by
    number.
    """
    common = {pathway: members for pathway, members in pathways.items() if members & genes}
    if not common:
        return
    order = sorted(background)
    code = {gene: f"G{number}" for number, gene in enumerate(order)}
    with np.errstate(divide="ignore"):  # its combined score takes the logarithm of p, which may be 0
        done = need("gseapy", extra="enrich").enrich(
            gene_list=[code[gene] for gene in sorted(genes)],
            gene_sets={pathway: [code[gene] for gene in members] for pathway, members in common.items()},
            background=list(code.values()),
            outdir=None,
            no_plot=True,
        )
    done.close()  # each call opens a log of its own
    found = done.results.set_index("Term").loc[list(common)]
    for (pathway, members), p, odds in zip(common.items(), found["P-value"], found["Odds Ratio"], strict=True):
        both = sorted(members & genes)
        yield name, pathway, len(both), len(members), len(genes), p, p, odds, ";".join(both)


def _table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    kinds = dict.fromkeys(("overlap", "size", "n_program"), np.int64)
    numbers = dict.fromkeys(("p_value", "adjusted", "odds_ratio"), np.float64)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(kinds | numbers)


def _adjusted(p: np.ndarray, n_tests: int, correction: Correction) -> np.ndarray:
    """p corrected for all tests, of which those that are not listed have p = 1."""
    if correction == "bonferroni":
        return np.minimum(1.0, p * n_tests)
    every = np.ones(n_tests)
    every[: len(p)] = p
    return false_discovery_control(every)[: len(p)]

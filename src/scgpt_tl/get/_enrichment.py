"""Pathways of gene programs as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scgpt_tl._slots import MAKERS, SLOTS
from scgpt_tl.get._result import result, strings

if TYPE_CHECKING:
    from anndata import AnnData


def enrichment_df(
    adata: AnnData, *, key: str = SLOTS.enrichment, cutoff: float | None = None, program: str | int | None = None
) -> pd.DataFrame:
    """Pathways that programs, or lists of genes, were tested for, the surest of each first.

    Parameters
    ----------
    adata
        Carries a result of `scgpt_tl.tl.scgpt_enrich`.
    key
        The result's name: the `key_added` of the call.
    cutoff
        Adjusted p at most; 0.05 is the preprint's (section 4.7). None: every pair that was tested.
    program
        One program, or list of genes, that was tested. None: all.

    Returns
    -------
    One row per program and pathway: `program`, an ordered categorical; `pathway`; `overlap`, the genes that both have;
    `size` of the pathway and `n_program` of the program, in genes of the background; `p_value` and `adjusted`;
    `odds_ratio`; and `genes`, those of the overlap, joined by semicolons. Empty where nothing passes.

    Raises
    ------
    KeyError
        Where the result or the program is missing; the message names what makes it.
    ValueError
        On a cutoff outside [0, 1].
    """
    if cutoff is not None and not 0 <= cutoff <= 1:
        msg = f"cutoff is {cutoff}; an adjusted p is within [0, 1]"
        raise ValueError(msg)
    run = result(adata, key, default=SLOTS.enrichment)
    if "table" not in run:
        msg = f"adata.uns[{key!r}] holds no table of pathways; {MAKERS[SLOTS.enrichment]} makes one"
        raise KeyError(msg)
    table = pd.DataFrame(run["table"]).reset_index(drop=True)
    tested = strings(run.get("params", {}).get("tested", table["program"]))
    table["program"] = pd.Categorical(table["program"].astype(str), _in_order(tested), ordered=True)
    if program is not None:
        if str(program) not in table["program"].cat.categories:
            msg = f"{key!r} has no program {str(program)!r}; there are {', '.join(table['program'].cat.categories)}"
            raise KeyError(msg)
        table = table[table["program"] == str(program)]
    if cutoff is not None:
        table = table[table["adjusted"] <= cutoff]
    return table.sort_values(["program", "adjusted", "p_value", "pathway"], ignore_index=True)


def _in_order(names: list[str]) -> list[str]:
    """Numbers by size, other names as they come."""
    found = list(dict.fromkeys(names))
    return sorted(found, key=int) if all(name.isdigit() for name in found) else found

"""One plain sentence on a table of scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: Differences below this are called level: see docs/evaluation.md for how much seeds and cells move AvgBIO.
LEVEL = 0.01


def verdict(table: pd.DataFrame, *, by: str = "AvgBIO") -> str:
    """Where the first row stands beside each other row, the best of them first, by the score in column `by`."""
    subject = table.index[0]
    own = float(table[by].iloc[0])
    others = table[by].iloc[1:].astype(float).sort_values(ascending=False, kind="stable")
    parts = []
    for place, (other, theirs) in enumerate(others.items()):
        gap = own - theirs
        stand = "level with" if abs(gap) < LEVEL else "above" if gap > 0 else "below"
        best = ", the best of them" if place == 0 and len(others) > 1 else ""
        parts.append(f"{stand} {other} ({theirs:.2f}{best})")
    head = f"{subject}: {by} {own:.2f} on {int(table['n_cells'].iloc[0]):,} labelled cells"
    return head + (", " + " and ".join(parts) if parts else "") + "."

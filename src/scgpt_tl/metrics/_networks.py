"""How far a gene network agrees with known regulators and their targets. Frames and names in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import hypergeom
from sklearn.metrics import average_precision_score, roc_auc_score

_SHOWN = 3  # names that a message gives as examples


@dataclass(frozen=True)
class NetworkScores:
    """What `network_scores` found. Scores are higher where better; both ratios are 1 for a random order."""

    auprc: float
    """Area under the precision-recall curve, as average precision; at most 1."""
    auprc_ratio: float
    """AUPRC over the share of true edges, which is what a random order gives."""
    early_precision: float
    """Share of true edges among the `n_true` heaviest, ties counted as their expectation; at most 1."""
    early_precision_ratio: float
    """Early precision over the share of true edges."""
    auroc: float
    """Probability that a true edge is heavier than another; 0.5 for a random order."""
    n_edges: int
    """Candidates to which the network gives a weight."""
    n_true: int
    """Candidates that are true edges."""
    n_candidates: int
    """Pairs of a regulator and another gene."""
    n_regulators: int
    """Regulators with a true target among the genes."""

    def to_dict(self) -> dict[str, float | int]:
        """Plain values, scores under the names that tables show."""
        shown = {
            "auprc": "AUPRC",
            "auprc_ratio": "AUPRC ratio",
            "early_precision": "early precision",
            "early_precision_ratio": "early precision ratio",
            "auroc": "AUROC",
        }
        return {shown.get(name, name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class TargetOverlap:
    """What `target_overlap` found."""

    n_top: int
    """Genes looked at."""
    n_found: int
    """Targets among them."""
    expected: float
    """Targets among as many genes drawn at random."""
    p_value: float
    """Probability of at least as many at random (hypergeometric)."""
    genes: tuple[str, ...]
    """The targets found, best first."""


def network_scores(
    net: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    genes: Iterable[str] | None = None,
    regulators: Iterable[str] | None = None,
) -> NetworkScores:
    """AUPRC, early precision and AUROC of a ranked network against known edges, as in BEELINE (Pratapa et al. 2020).

    Candidates are all pairs of a regulator that has a true target and a gene, a gene with itself left out; every method
    is to be judged on the same ones, so give `genes` and `regulators` where methods list different edges. A candidate
    that the network does not list comes last, tied with the others of its kind. Known edges outside the candidates
    count neither for nor against. What no data base lists may still be true: scores compare methods and are no absolute
    measure.

    Parameters
    ----------
    net
        Columns source, target and weight (heavier is surer), as `get.grn_df` gives one group and setting. NaN counts as
        not listed.
    truth
        Columns source and target; its own weights, signs and repeats are left aside.
    genes
        Genes that could have been targets. None: the targets in `net`.
    regulators
        Regulators to be judged. None: the sources in `net`.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        An edge is listed twice, the tables have no edge in common (names of another kind), or all candidates are true.
    """
    edges, known = _edges(net, "net", "weight"), _edges(truth, "truth")
    if (repeated := edges.duplicated(["source", "target"])).any():
        one = edges[repeated].iloc[0]
        msg = f"net lists {one.source} -> {one.target} more than once: give one group and one setting"
        raise ValueError(msg)
    columns = _distinct(edges["target"] if genes is None else genes)
    asked = _distinct(edges["source"] if regulators is None else regulators)
    known = known[known["source"].isin(asked) & known["target"].isin(columns) & (known["source"] != known["target"])]
    rows = asked[asked.isin(known["source"])]
    if not len(rows):
        msg = (
            f"no edge of truth ({_some(truth['source'])}) joins the {len(asked)} regulators ({_some(asked)}) with the "
            f"{len(columns)} genes ({_some(columns)}): are both names of one kind?"
        )
        raise ValueError(msg)
    weight = np.full((len(rows), len(columns)), np.nan)
    _fill(weight, edges, rows, columns, edges["weight"].to_numpy(np.float64))
    true = np.zeros(weight.shape, dtype=bool)
    _fill(true, known, rows, columns, True)
    pairs = rows.to_numpy()[:, None] != columns.to_numpy()[None]
    return _scored(weight[pairs], true[pairs], n_regulators=len(rows))


def target_overlap(
    ranked: Sequence[str], targets: Iterable[str], *, n_top: int = 20, background: Iterable[str] | None = None
) -> TargetOverlap:
    """How many known targets are among the first genes of a ranking, and how surprising that is (preprint, 4.7).

    Parameters
    ----------
    ranked
        Genes, likeliest target first; the regulator itself left out.
    targets
        Known targets, of a ChIP experiment say; those outside the background are left aside.
    n_top
        How many genes to look at; the paper takes 20.
    background
        Genes that could have been ranked. None: those of `ranked`, which must then be the whole ranking.

    Raises
    ------
    ValueError
        A gene is ranked twice or lies outside the background, there are fewer than `n_top`, or the background holds no
        target (names of another kind).
    """
    order = pd.Index(ranked)
    universe = order if background is None else _distinct(background)
    known = universe.intersection(_distinct(targets))
    if order.has_duplicates:
        msg = f"ranked has {order[order.duplicated()][0]!r} more than once: give one ranking of one regulator"
        raise ValueError(msg)
    if not 1 <= n_top <= len(order):
        msg = f"n_top={n_top}, and {len(order)} genes are ranked: give 1 to {len(order)}"
        raise ValueError(msg)
    if len(strange := order.difference(universe)):
        msg = f"{len(strange)} ranked genes ({_some(strange)}) are not in the background: give all that could be ranked"
        raise ValueError(msg)
    if not len(known):
        msg = f"none of the targets is among the {len(universe)} genes ({_some(universe)}): are both names of one kind?"
        raise ValueError(msg)
    found = order[:n_top][order[:n_top].isin(known)]
    return TargetOverlap(
        n_top=n_top,
        n_found=len(found),
        expected=n_top * len(known) / len(universe),
        p_value=float(hypergeom.sf(len(found) - 1, len(universe), len(known), n_top)),
        genes=tuple(map(str, found)),
    )


def early_precision(levels: np.ndarray, true: np.ndarray) -> float:
    """Share of true edges among the k heaviest, k the number of true ones; ties at the border as their expectation.

    `levels` (n,), heavier is larger; `true` (n,) bool with at least one.
    """
    k = int(true.sum())
    border = np.partition(levels, len(levels) - k)[len(levels) - k]
    above, tied = levels > border, levels == border
    return float((true[above].sum() + (k - above.sum()) * true[tied].mean()) / k)


def _scored(weight: np.ndarray, true: np.ndarray, *, n_regulators: int) -> NetworkScores:
    """Scores of candidates `(n,)`, NaN where the network lists none."""
    listed, share = ~np.isnan(weight), float(true.mean())
    if share == 1:
        msg = f"all {len(true)} candidates are true edges: there is nothing to be told apart; give more genes="
        raise ValueError(msg)
    levels = np.zeros(len(weight), dtype=np.int64)  # what is not listed comes last, infinite weights are allowed
    levels[listed] = np.unique(weight[listed], return_inverse=True)[1] + 1
    auprc, early = float(average_precision_score(true, levels)), early_precision(levels, true)
    return NetworkScores(
        auprc=auprc,
        auprc_ratio=auprc / share,
        early_precision=early,
        early_precision_ratio=early / share,
        auroc=float(roc_auc_score(true, levels)),
        n_edges=int(listed.sum()),
        n_true=int(true.sum()),
        n_candidates=len(true),
        n_regulators=n_regulators,
    )


def _edges(table: pd.DataFrame, what: str, *more: str) -> pd.DataFrame:
    """The columns that are read, names as plain strings."""
    wanted = ["source", "target", *more]
    if absent := [name for name in wanted if name not in table]:
        msg = f"{what} has no column {absent[0]!r}; needed are {wanted}, there are {list(table.columns)}"
        raise KeyError(msg)
    return table[wanted].astype({"source": object, "target": object})  # categoricals of two tables do not compare


def _distinct(names: Iterable[str]) -> pd.Index:
    if isinstance(names, str):
        msg = f"{names!r} is one name: give a sequence, [{names!r}]"
        raise ValueError(msg)
    return pd.Index(pd.unique(pd.Series(list(names), dtype=object)))


def _fill(
    matrix: np.ndarray, edges: pd.DataFrame, rows: pd.Index, columns: pd.Index, values: np.ndarray | bool
) -> None:
    """Write a value per edge into `(rows, columns)`; edges outside are left aside."""
    i, j = rows.get_indexer(edges["source"]), columns.get_indexer(edges["target"])
    inside = (i >= 0) & (j >= 0)
    matrix[i[inside], j[inside]] = values if isinstance(values, bool) else values[inside]


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "") if found else "none"

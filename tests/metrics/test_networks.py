from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact
from sklearn import metrics as sk

from scgpt_tl import metrics
from scgpt_tl.metrics._networks import early_precision, network_scores, target_overlap

GENES = [f"G{i}" for i in range(12)]
REGULATORS = ["G0", "G1", "TF"]


def frame(pairs, weights=None):
    table = pd.DataFrame(list(pairs), columns=["source", "target"])
    return table if weights is None else table.assign(weight=weights)


def every_pair():
    return [(r, g) for r, g in product(REGULATORS, GENES) if r != g]


@pytest.fixture
def network():
    """All pairs of three regulators and twelve genes, coarse weights so that many tie, and eight true edges."""
    rng = np.random.default_rng(0)
    pairs = every_pair()
    net = frame(pairs, rng.integers(0, 5, len(pairs)).astype(float))
    return net, frame([pairs[i] for i in rng.choice(len(pairs), 8, replace=False)])


def test_by_hand():
    net = frame([("A", "x"), ("A", "y"), ("A", "z"), ("A", "w")], [4.0, 3.0, 2.0, 1.0])
    scores = network_scores(net, frame([("A", "x"), ("A", "z"), ("A", "elsewhere"), ("B", "x")]))
    assert (scores.n_edges, scores.n_true, scores.n_candidates, scores.n_regulators) == (4, 2, 4, 1)
    assert scores.auprc == pytest.approx((1 / 1 + 2 / 3) / 2)  # precision where a true edge is found
    assert scores.auprc_ratio == pytest.approx(scores.auprc / 0.5)
    assert scores.early_precision == 0.5  # x of x and y
    assert scores.early_precision_ratio == 1
    assert scores.auroc == 3 / 4  # of the four pairs of a true and another edge, z is below y


def test_against_scikit_learn(network):
    net, truth = network
    scores = network_scores(net, truth)
    true = pd.MultiIndex.from_frame(net[["source", "target"]]).isin(pd.MultiIndex.from_frame(truth))
    judged = net["source"].isin(truth["source"])
    true, weight = true[judged], net["weight"][judged]
    assert scores.n_candidates == judged.sum()
    assert scores.auprc == pytest.approx(sk.average_precision_score(true, weight))
    assert scores.auroc == pytest.approx(sk.roc_auc_score(true, weight))
    assert scores.auprc_ratio == pytest.approx(scores.auprc / true.mean())


def test_order_of_rows_repeats_of_the_truth_and_infinite_weights_change_nothing(network):
    net, truth = network
    scores = network_scores(net, truth, genes=GENES, regulators=REGULATORS)
    mixed = net.sample(frac=1, random_state=1).astype({"source": "category", "target": "category"})
    mixed["weight"] = mixed["weight"].replace(4.0, np.inf).replace(0.0, -np.inf)
    again = pd.concat([truth, truth[::-1]]).assign(weight=-1, mode="Repression")
    assert network_scores(mixed, again, genes=GENES[::-1], regulators=REGULATORS[::-1]) == scores


def test_a_pair_that_is_not_listed_comes_last(network):
    net, truth = network
    full = net.assign(weight=net["weight"].where(net["weight"] > 1, -1.0))
    listed = net[net["weight"] > 1]
    short = network_scores(listed, truth, genes=GENES, regulators=REGULATORS)
    told = network_scores(full, truth, genes=GENES, regulators=REGULATORS)
    unknown = full.assign(weight=full["weight"].replace(-1.0, np.nan))
    assert network_scores(unknown, truth, genes=GENES, regulators=REGULATORS) == short
    assert (short.auprc, short.auroc, short.early_precision) == (told.auprc, told.auroc, told.early_precision)
    regulators = truth["source"].nunique()
    assert (
        short.n_candidates
        == told.n_candidates
        == regulators * len(GENES) - truth["source"].isin(GENES).any() * len(set(truth["source"]) & set(GENES))
    )
    assert short.n_edges == listed["source"].isin(truth["source"]).sum()


def test_a_gene_and_itself_are_no_pair():
    net = frame([("A", "A"), ("A", "x"), ("A", "y")], [9.0, 2.0, 1.0])
    scores = network_scores(net, frame([("A", "A"), ("A", "x")]))
    assert (scores.n_candidates, scores.n_true, scores.auroc) == (2, 1, 1)


def test_regulators_that_are_asked_for_are_the_only_ones(network):
    net, truth = network
    truth = pd.concat([truth, frame([("G0", "G5"), ("TF", "G5")])])
    assert network_scores(net, truth, regulators=["G0"]).n_regulators == 1
    alone = network_scores(net[net["source"] == "G0"], truth)
    assert network_scores(net, truth, regulators=["G0"]) == alone


def test_a_random_order_scores_one():
    rng = np.random.default_rng(0)
    pairs = list(product([f"R{i}" for i in range(40)], [f"G{i}" for i in range(100)]))
    truth = frame([pairs[i] for i in rng.choice(len(pairs), 400, replace=False)])
    scores = network_scores(frame(pairs, rng.random(len(pairs))), truth)
    assert scores.auprc_ratio == pytest.approx(1, abs=0.15)
    assert scores.early_precision_ratio == pytest.approx(1, abs=0.35)
    assert scores.auroc == pytest.approx(0.5, abs=0.05)
    tied = network_scores(frame(pairs, np.zeros(len(pairs))), truth)  # no order at all: exactly chance
    assert (tied.auprc_ratio, tied.auroc) == (pytest.approx(1), pytest.approx(0.5))
    assert tied.early_precision_ratio == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_early_precision_is_the_mean_over_orders_of_ties(n, n_levels, seed):
    rng = np.random.default_rng(seed)
    levels, true = rng.integers(0, n_levels, n), rng.random(n) < 0.4
    true[0] = True
    k = int(true.sum())
    # a tie is broken by a random order: over many of them the mean share of true edges among the first k
    drawn = [true[np.lexsort((rng.random(n), -levels))[:k]].mean() for _ in range(400)]
    assert early_precision(levels, true) == pytest.approx(np.mean(drawn), abs=0.1)
    assert 0 <= early_precision(levels, true) <= 1
    untied = np.argsort(rng.random(n))
    assert early_precision(untied, true) == true[np.argsort(-untied)[:k]].mean()


@pytest.mark.parametrize("column", ["source", "target", "weight"])
def test_a_column_is_missing(network, column):
    net, truth = network
    with pytest.raises(KeyError, match=rf"net has no column '{column}'; needed are"):
        network_scores(net.drop(columns=column), truth)
    if column != "weight":
        with pytest.raises(KeyError, match=rf"truth has no column '{column}'"):
            network_scores(net, truth.drop(columns=column))


def test_bad_networks(network):
    net, truth = network
    with pytest.raises(ValueError, match=r"net lists G0 -> G1 more than once: give one group"):
        network_scores(pd.concat([net, net[:1]]), truth)
    ensembl = truth.assign(target="ENSG00000198851")
    with pytest.raises(ValueError, match=r"no edge of truth .* joins the 3 regulators \(G0, G1, TF\).*one kind"):
        network_scores(net, ensembl)
    with pytest.raises(ValueError, match="no edge of truth"):
        network_scores(net, truth, regulators=[])
    with pytest.raises(ValueError, match="'G0' is one name"):
        network_scores(net, truth, regulators="G0")
    everything = frame(every_pair())
    with pytest.raises(ValueError, match="all 34 candidates are true"):
        network_scores(net, everything)


def test_overlap_is_fishers_test():
    ranked = [f"G{i}" for i in range(100)]
    targets = ["G0", "G3", "G50", "G99", "outside"]
    found = target_overlap(ranked, targets, n_top=10)
    assert (found.n_top, found.n_found, found.genes) == (10, 2, ("G0", "G3"))
    assert found.expected == pytest.approx(10 * 4 / 100)
    assert found.p_value == pytest.approx(fisher_exact([[2, 8], [2, 88]], alternative="greater")[1])
    wider = target_overlap(ranked[:10], targets, n_top=10, background=[*ranked, "outside", *ranked])
    assert wider.expected == pytest.approx(10 * 5 / 101)
    assert wider.p_value == pytest.approx(fisher_exact([[2, 8], [3, 88]], alternative="greater")[1])
    none = target_overlap(ranked, ["G99"])
    assert (none.n_top, none.n_found, none.p_value, none.genes) == (20, 0, 1, ())


@pytest.mark.parametrize(
    ("ranked", "targets", "options", "says"),
    [
        (["a", "a"], ["a"], {"n_top": 1}, "'a' more than once"),
        (["a", "b"], ["a"], {}, "n_top=20, and 2 genes are ranked: give 1 to 2"),
        (["a", "b"], ["a"], {"n_top": 0}, "n_top=0"),
        (["a", "b"], ["c"], {"n_top": 1}, r"none of the targets is among the 2 genes \(a, b\).*one kind"),
        (["a", "b"], ["a"], {"n_top": 1, "background": ["a", "c"]}, r"1 ranked genes \(b\) are not in the background"),
        (["a", "b"], "a", {"n_top": 1}, "'a' is one name"),
    ],
)
def test_bad_overlaps(ranked, targets, options, says):
    with pytest.raises(ValueError, match=says):
        target_overlap(ranked, targets, **options)


def test_names_of_the_table(network):
    shown = metrics.network_scores(*network).to_dict()
    assert list(shown)[:5] == ["AUPRC", "AUPRC ratio", "early precision", "early precision ratio", "AUROC"]
    assert list(shown)[5:] == ["n_edges", "n_true", "n_candidates", "n_regulators"]
    assert metrics.target_overlap(["a", "b"], ["a"], n_top=1).n_found == 1

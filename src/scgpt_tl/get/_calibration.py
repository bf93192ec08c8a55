"""How far confidences can be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgpt_tl._slots import SLOTS, UNKNOWN
from scgpt_tl.get._annotation import annotation_df
from scgpt_tl.get._labels import truth_of
from scgpt_tl.metrics._reliability import reliability

if TYPE_CHECKING:
    from anndata import AnnData


def calibration_df(adata: AnnData, *, truth_key: str, key: str = SLOTS.label, n_bins: int = 15) -> pd.DataFrame:
    """Whether calls made with confidence p are right in p of the cases (a reliability diagram's numbers).

    Each cell counts with its likeliest type, called or held back as unknown; where the result has no probabilities of
    all types, with its call, and cells called unknown are left out. A type that the reference lacks cannot be told:
    such cells count as wrong.

    Parameters
    ----------
    adata
        Annotated by `scgpt_tl.tl.scgpt_annotate` or mapped by `scgpt_tl.tl.scgpt_map`.
    truth_key
        Column of `.obs` with the true types, named as the reference names them. Cells without one are left out.
    key
        The result's name: the `key_added` of the call, scgpt_mapped after `scgpt_map`.
    n_bins
        Bins of equal width over (0, 1].

    Returns
    -------
    One row per bin: its edges `low` and `high`, `n` cells, their mean `confidence` and `accuracy` (missing in an empty
    bin). `.attrs["ece"]` is the expected calibration error, the mean of `|accuracy - confidence|` over cells
    (Guo et al. 2017, equation 3); `n_cells` and `n_missing` are beside it.

    Raises
    ------
    KeyError
        Where a slot is missing; the message names what makes it.
    ValueError
        Where probabilities and classes do not agree, probabilities are not in [0, 1], no cell can be judged, or there
        are no bins.
    """
    truth, (named, confidence) = truth_of(adata, truth_key), _likeliest(adata, key)
    kept = (truth.notna() & named.notna()).to_numpy() & np.isfinite(confidence)
    if not kept.any():
        msg = f"no cell has both a true type in .obs[{truth_key!r}] and a probability of {key!r}"
        raise ValueError(msg)
    confidence = confidence[kept]
    if confidence.min() < 0 or confidence.max() > 1:
        msg = f"probabilities of {key!r} run from {confidence.min():.3g} to {confidence.max():.3g}, not within [0, 1]"
        raise ValueError(msg)
    right = (truth[kept].astype(str) == named[kept].astype(str)).to_numpy()
    found = reliability(confidence, right, n_bins)
    some = np.where(found.n > 0, found.n, np.nan)
    table = pd.DataFrame({"low": found.edges[:-1], "high": found.edges[1:], "n": found.n}).rename_axis("bin")
    table["confidence"], table["accuracy"] = found.confidence / some, found.right / some
    table.attrs = {"ece": found.ece, "n_cells": len(right), "n_missing": int((~kept).sum())}
    return table


def _likeliest(adata: AnnData, key: str) -> tuple[pd.Series, np.ndarray]:
    """Each cell's likeliest type and its probability, float64."""
    found = annotation_df(adata, key=key)
    if found["first"].notna().any():
        return found["first"], found["first_probability"].to_numpy(dtype=np.float64)
    return found["pred"].where(found["pred"].astype(str) != UNKNOWN), found["probability"].to_numpy(dtype=np.float64)

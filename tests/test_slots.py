"""Names of slots: whose they are, and which cannot be kept."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest

from scgpt_tl._slots import OWNER, SLOTS, copied, refuse_embed_s, refuse_foreign, stored_x
from scgpt_tl.pp._blocks import open_layer, sources

OPTIONS = {"key": "k", "maker": "tl.f", "argument": "key_added"}


def test_what_another_wrote_is_refused():
    adata = SimpleNamespace(uns={}, obsm={"k": 1})
    with pytest.raises(ValueError, match=r"\.obsm\['k'\] was not written by tl\.f: give another key_added"):
        refuse_foreign(adata, {"obsm": ["k"], "uns": ["k"]}, overwrite=False, **OPTIONS)
    refuse_foreign(adata, {"obsm": ["k"]}, overwrite=True, **OPTIONS)
    adata.uns["k"] = {OWNER: "tl.f"}
    refuse_foreign(adata, {"obsm": ["k"], "uns": ["k"]}, overwrite=False, **OPTIONS)


def test_of_an_earlier_run_only_what_it_wrote_may_go():
    adata = SimpleNamespace(uns={"k": {OWNER: "tl.f"}}, obsm={"k": 1}, varm={"k": 1})
    places = {"obsm": ["k"], "varm": ["k"], "uns": ["k"]}
    refuse_foreign(adata, places, overwrite=False, earlier=places, **OPTIONS)
    with pytest.raises(ValueError, match=r"^\.obsm\['k'\] was not written by tl\.f"):
        refuse_foreign(adata, places, overwrite=False, earlier={"varm": ["k"], "uns": ["k"]}, **OPTIONS)
    refuse_foreign(adata, places, overwrite=True, earlier={"uns": ["k"]}, **OPTIONS)
    adata.uns.clear()
    with pytest.raises(ValueError, match=r"\.obsm\['k'\] and \.varm\['k'\] was not"):
        refuse_foreign(adata, places, overwrite=False, earlier=places, **OPTIONS)


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", 5, None])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_that_a_file_cannot_keep_is_refused(name, overwrite):
    adata = SimpleNamespace(uns={}, obsm={})
    with pytest.raises(
        ValueError, match=rf"\.obsm\[{re.escape(repr(name))}\] cannot be kept: .* '/'.*give another key_added"
    ):
        refuse_foreign(adata, {"uns": ["k"], "obsm": [name]}, overwrite=overwrite, **OPTIONS)


@pytest.mark.parametrize("name", [SLOTS.embedding, SLOTS.run])
def test_the_zero_shot_embedding_keeps_its_place(name):
    with pytest.raises(ValueError, match=f"key_added='{name}' is where"):
        refuse_embed_s(name)
    refuse_embed_s(None)
    refuse_embed_s("mine")


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)])
def test_a_file_without_x(tmp_path: Path, rows: slice):
    counts = np.arange(12.0).reshape(4, 3)
    adata = ad.AnnData(counts, layers={"counts": counts}, obsm={"X_pca": counts}, uns={"note": {"by": "me"}})
    adata.raw = adata.copy()
    adata.X = None
    adata.write_h5ad(tmp_path / "x.h5ad")
    part = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")[rows]
    assert stored_x(part) is None
    with pytest.raises(ValueError, match=r"\.X is empty \(None\); name a layer with layer= \(there: 'counts'\)"):
        open_layer(part)
    assert sources(part) == set()  # the layers of a file that is opened backed are in memory
    copy = copied(part)
    assert not copy.isbacked
    assert copy.X is None
    for held in (copy.layers["counts"], copy.obsm["X_pca"], copy.raw.X):
        np.testing.assert_array_equal(held, counts[rows])
    copy.layers["counts"][:], copy.uns["note"]["by"] = 0, "you"
    np.testing.assert_array_equal(part.layers["counts"], counts[rows])
    assert part.uns["note"]["by"] == "me"

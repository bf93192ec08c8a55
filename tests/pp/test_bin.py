from __future__ import annotations

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from scgpt_tl._random import as_seed, name_keys
from scgpt_tl._slots import OWNER
from scgpt_tl.pp import bin_values
from scgpt_tl.pp._quantiles import bin_csr

FORMATS = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
    "fortran": np.asfortranarray,
}


def make(x, genes=None):
    genes = [f"gene{i}" for i in range(x.shape[1])] if genes is None else genes
    return ad.AnnData(x, obs=pd.DataFrame(index=[f"cell{i}" for i in range(x.shape[0])]), var=pd.DataFrame(index=genes))


def dense_counts(seed=0, shape=(30, 20), dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = (1 + rng.poisson(1.5, shape)) * (rng.random(shape) < 0.5)
    x[2] = 0
    return x.astype(dtype)


def expected(x, **options):
    m = sparse.csr_matrix(x)
    keys = name_keys(f"gene{i}" for i in range(x.shape[1]))
    bins = bin_csr(m.indptr, m.indices, m.data, keys, **{"n_bins": 51, "ties": "spread", "seed": 0} | options)
    return sparse.csr_matrix((bins, m.indices, m.indptr), shape=x.shape).toarray()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, dtype) for kind in FORMATS for dtype in (np.float32, np.float64, np.int64, np.uint8)]
    + [("dense", np.float16)],  # scipy has no sparse half floats
)
def test_every_storage_gives_the_same_bins_and_leaves_x_alone(kind, dtype):
    x = dense_counts()
    adata = make(FORMATS[kind](x.astype(dtype)))
    stored = adata.X
    before = stored.copy()
    assert bin_values(adata) is None
    layer = adata.layers["binned"]
    np.testing.assert_array_equal(layer.toarray(), expected(x))
    assert layer.dtype == np.uint8
    assert layer.format == ("csc" if "csc" in kind else "csr")
    assert isinstance(layer, sparse.sparray) == ("array" in kind)
    assert layer.has_canonical_format
    assert (layer.data > 0).all()
    assert adata.X is stored
    if sparse.issparse(stored):
        assert stored.dtype == before.dtype
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(stored, part), getattr(before, part))
            assert not np.shares_memory(getattr(stored, part), getattr(layer, part))
    else:
        np.testing.assert_array_equal(stored, before)
    assert adata.uns["binned"] == {
        OWNER: "pp.bin_values", "n_bins": 51, "ties": "spread", "layer": "X", "seed": 0, "n_empty": 1,
    }  # fmt: skip


def test_bool():
    x = dense_counts()
    flags = make(sparse.csr_matrix(x > 0))
    bin_values(flags)
    np.testing.assert_array_equal(flags.layers["binned"].toarray(), expected((x > 0).astype(float)))


def raw_csr(x):
    """Rows backwards, every value in two halves, explicit zeros: all that CSR allows."""
    data, indices, indptr = [], [], [0]
    for row in x:
        there = np.flatnonzero(row)[::-1]
        zeros = np.flatnonzero(row == 0)[:2]
        indices += [*there, *zeros, *there]
        data += [*(row[there] / 2), *np.zeros(len(zeros)), *(row[there] / 2)]
        indptr.append(len(indices))
    return sparse.csr_matrix(
        (np.array(data, np.float32), np.array(indices, np.int32), np.array(indptr, np.int32)), x.shape
    )


def test_raw_csr_is_read_right_and_not_tidied():
    x = dense_counts()
    adata = make(raw_csr(x))
    before = raw_csr(x)
    bin_values(adata)
    np.testing.assert_array_equal(adata.layers["binned"].toarray(), expected(x))
    np.testing.assert_array_equal(adata.X.indices, before.indices)
    np.testing.assert_array_equal(adata.X.data, before.data)


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_backed(tmp_path, kind):
    x = dense_counts()
    path = tmp_path / "a.h5ad"
    make(FORMATS[kind](x)).write_h5ad(path)
    content = path.read_bytes()
    adata = ad.read_h5ad(path, backed="r")
    bin_values(adata)
    np.testing.assert_array_equal(adata.layers["binned"].toarray(), expected(x))
    assert adata.isbacked
    copied = bin_values(adata, key_added="other", copy=True)
    assert not copied.isbacked
    assert "other" not in adata.layers
    np.testing.assert_array_equal(copied.layers["other"].toarray(), expected(x))
    adata.file.close()
    assert path.read_bytes() == content


def test_result_survives_a_file(tmp_path):
    adata = make(FORMATS["csr"](dense_counts()))
    bin_values(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as f:
        assert f["layers/binned/data"].dtype == np.uint8
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.layers["binned"].toarray(), adata.layers["binned"].toarray())
    bin_values(again, n_bins=11)  # still known as ours
    assert again.uns["binned"]["n_bins"] == 11


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_view_becomes_its_own_and_its_parent_stays(kind):
    x = dense_counts()
    adata = make(FORMATS[kind](x))
    view = adata[5:15, ::-1]
    with pytest.warns(ad.ImplicitModificationWarning):
        bin_values(view)
    np.testing.assert_array_equal(view.layers["binned"].toarray(), expected(x)[5:15, ::-1])
    assert "binned" not in adata.layers
    assert view.layers["binned"].format == ("csc" if kind == "csc" else "csr")


def test_layers_keys_and_copies():
    x = dense_counts()
    adata = make(np.zeros_like(x))
    adata.layers["counts"] = sparse.csc_matrix(x)
    assert bin_values(adata, layer="counts", key_added="b", n_bins=11, ties="upper", rng=5) is None
    np.testing.assert_array_equal(adata.layers["b"].toarray(), expected(x, n_bins=11, ties="upper"))
    assert adata.layers["b"].format == "csc"
    assert adata.uns["b"]["layer"] == "counts"
    copied = bin_values(adata, layer="counts", copy=True)
    assert set(adata.layers) == {"counts", "b"}
    np.testing.assert_array_equal(copied.layers["binned"].toarray(), expected(x))
    bin_values(adata)  # X: all zeros
    assert adata.layers["binned"].nnz == 0
    assert adata.uns["binned"]["n_empty"] == adata.n_obs


def test_rng():
    x = dense_counts()
    adata = make(x)
    bin_values(adata, rng=3)
    np.testing.assert_array_equal(adata.layers["binned"].toarray(), expected(x, seed=3))
    bin_values(adata, rng=np.random.default_rng(1))
    assert adata.uns["binned"]["seed"] == as_seed(np.random.default_rng(1))
    with pytest.raises(ValueError, match="negative"):
        bin_values(adata, rng=-1)


def test_many_bins_are_not_wrapped():
    x = np.arange(1.0, 401.0, dtype=np.float32)[None]
    for n_bins, dtype in ((256, np.uint8), (257, np.uint16), (400, np.uint16), (70_000, np.uint32)):
        adata = make(x)
        bin_values(adata, n_bins=np.int64(n_bins))
        assert adata.layers["binned"].dtype == dtype
        assert adata.layers["binned"].max() == n_bins - 1
        assert adata.layers["binned"].data.min() == 1


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_nothing_to_bin(shape, kind):
    adata = make(FORMATS[kind](np.zeros(shape, np.float32)))
    bin_values(adata)
    assert adata.layers["binned"].shape == shape
    assert adata.layers["binned"].nnz == 0
    assert adata.uns["binned"]["n_empty"] == shape[0]


@pytest.mark.filterwarnings("ignore:.* names are not unique:UserWarning")
def test_duplicate_names():
    x = dense_counts()
    adata = make(x, genes=["same"] * x.shape[1])
    adata.obs_names = ["cell"] * x.shape[0]
    bin_values(adata)
    upper = expected(x, ties="upper")
    assert (adata.layers["binned"].toarray() <= upper).all()
    assert ((adata.layers["binned"].toarray() > 0) == (x > 0)).all()


def test_mudata():
    x = dense_counts()
    mdata = md.MuData({"rna": make(sparse.csr_matrix(x)), "adt": make(x[:, :4], genes=list("abcd"))})
    assert bin_values(mdata, mod="rna") is None
    np.testing.assert_array_equal(mdata.mod["rna"].layers["binned"].toarray(), expected(x))
    assert mdata.mod["rna"].uns["binned"]["n_bins"] == 51
    assert "binned" not in mdata.mod["adt"].layers
    copied = bin_values(mdata, mod="adt", copy=True)
    assert isinstance(copied, md.MuData)
    assert "binned" in copied.mod["adt"].layers
    assert "binned" not in mdata.mod["adt"].layers
    with pytest.raises(ValueError, match=r"say which modality with mod= \(there: 'rna', 'adt'\)"):
        bin_values(mdata)
    with pytest.raises(KeyError, match=r"'protein' is not in the MuData \(there: 'rna', 'adt'\)"):
        bin_values(mdata, mod="protein")
    with pytest.raises(ValueError, match="leave mod out"):
        bin_values(mdata.mod["rna"], mod="rna")


@pytest.mark.parametrize("rows", [slice(None), slice(5, 15)])
def test_mudata_on_disk_is_copied_into_memory(tmp_path, rows):
    x = dense_counts()
    mdata = md.MuData({"rna": make(sparse.csr_matrix(x)), "adt": make(x[:, :4], genes=list("abcd"))})
    mdata.obs["depth"], mdata.uns["note"], mdata.obsm["X_pca"] = np.arange(30), "mine", x[:, :2]
    mdata.write_h5mu(tmp_path / "m.h5mu")
    backed = md.read_h5mu(tmp_path / "m.h5mu", backed="r")[rows]
    copied = bin_values(backed, mod="rna", copy=True)
    assert not copied.isbacked
    np.testing.assert_array_equal(copied.mod["rna"].layers["binned"].toarray(), expected(x)[rows])
    np.testing.assert_array_equal(copied.mod["adt"].X, x[rows, :4])
    np.testing.assert_array_equal(copied.obs["depth"], np.arange(30)[rows])
    np.testing.assert_array_equal(copied.obsm["X_pca"], x[rows, :2])
    assert copied.uns["note"] == "mine"
    assert "binned" not in backed.mod["rna"].layers


def test_a_view_of_a_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    md.MuData({"rna": make(dense_counts())}).write_h5mu(tmp_path / "m.h5mu")
    make(dense_counts()).write_h5ad(tmp_path / "a.h5ad")
    monkeypatch.setattr("scgpt_tl.pp._bin._bin_layer", lambda *_, **__: pytest.fail("the matrix was read"))
    with pytest.raises(ValueError, match=r"data is a view of a backed object, .* copy=True"):
        bin_values(ad.read_h5ad(tmp_path / "a.h5ad", backed="r")[:4])
    with pytest.raises(ValueError, match=r"data\.mod\['rna'\] is a view of a backed object, .* copy=True"):
        bin_values(md.read_h5mu(tmp_path / "m.h5mu", backed="r")[:4], mod="rna")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_bins": 1}, ValueError, "n_bins=1: at least 2"),
        ({"n_bins": -3}, ValueError, "n_bins=-3"),
        ({"n_bins": 51.0}, TypeError, r"n_bins=51.0 is float; an integer is expected"),
        ({"n_bins": "51"}, TypeError, "is str"),
        ({"n_bins": True}, TypeError, "is bool"),
        ({"ties": "lower"}, ValueError, "ties='lower' is unknown; give one of 'spread', 'upper'"),
        ({"layer": "count"}, KeyError, r"layer 'count' is not in .layers \(there: 'counts'"),
        ({"layer": "counts", "key_added": "counts"}, ValueError, "both 'counts'"),
        ({"key_added": "counts"}, ValueError, r"\.layers\['counts'\] was not written by pp.bin_values.*overwrite=True"),
        ({"key_added": "note"}, ValueError, r"\.uns\['note'\] was not written"),
        ({"key_added": "scgpt"}, ValueError, r"\.uns\['scgpt'\] was not written"),
    ],
)
def test_errors_come_before_anything_is_written(options, error, message):
    adata = make(dense_counts())
    adata.layers["counts"] = adata.X.copy()
    adata.uns["note"] = "mine"
    adata.uns["scgpt"] = {OWNER: "tl.scgpt_embed"}  # ours, but another function's
    with pytest.raises(error, match=message):
        bin_values(adata, **options)
    assert set(adata.layers) == {"counts"}
    assert set(adata.uns) == {"note", "scgpt"}


def test_overwrite():
    x = dense_counts()
    adata = make(x)
    adata.layers["binned"] = x.copy()
    with pytest.raises(ValueError, match="was not written by"):
        bin_values(adata)
    np.testing.assert_array_equal(adata.layers["binned"], x)
    bin_values(adata, overwrite=True)
    bin_values(adata, n_bins=5)  # now it is ours
    assert adata.layers["binned"].max() == 4


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.5, r"\.X holds -1.5 in cell 'cell7'; .*adata\.raw\.to_adata\(\), .*layer=.*layers: 'counts'"),
        (np.nan, r"\.X holds nan in cell 'cell7'; values must be finite"),
        (np.inf, r"\.X holds inf in cell 'cell7'; values must be finite"),
        (-np.inf, r"\.X holds -inf in cell 'cell7'; values must be finite"),
    ],
)
def test_values_that_have_no_bin(monkeypatch, kind, value, message):
    monkeypatch.setattr("scgpt_tl.pp._bin._ROWS", 3)  # the cell is named wherever blocks begin
    x = dense_counts()
    x[7, 3] = value
    adata = make(FORMATS[kind](x))
    adata.layers["counts"] = dense_counts()
    with pytest.raises(ValueError, match=message):
        bin_values(adata)
    assert set(adata.layers) == {"counts"}
    with pytest.raises(ValueError, match="layer 'bad' holds"):
        bin_values(ad.AnnData(dense_counts(), layers={"bad": FORMATS[kind](x)}, obs=adata.obs), layer="bad")


def test_wrong_objects():
    with pytest.raises(TypeError, match="data is ndarray; AnnData or MuData is expected"):
        bin_values(dense_counts())
    with pytest.raises(TypeError, match="data is DataFrame; AnnData or MuData is expected"):
        bin_values(pd.DataFrame(dense_counts()))
    with pytest.raises(ValueError, match=r"\.X is empty"):
        bin_values(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])))
    with pytest.raises(TypeError, match="complex"):
        bin_values(make(dense_counts().astype(complex)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 50), shuffler=st.randoms(use_true_random=False),
    kind=st.sampled_from(sorted(FORMATS)), rows=st.integers(1, 40),
)  # fmt: skip
def test_same_bins_whatever_the_order_subset_storage_and_chunking(monkeypatch, seed, shuffler, kind, rows):
    x = dense_counts(seed)
    whole = expected(x)
    cells = shuffler.sample(range(len(x)), shuffler.randint(1, len(x)))
    genes = shuffler.sample(range(x.shape[1]), x.shape[1])
    monkeypatch.setattr("scgpt_tl.pp._bin._ROWS", rows)
    adata = make(FORMATS[kind](x[np.ix_(cells, genes)]), genes=[f"gene{i}" for i in genes])
    adata.obs_names = [f"renamed{i}" for i in range(len(cells))]
    bin_values(adata)
    np.testing.assert_array_equal(adata.layers["binned"].toarray(), whole[np.ix_(cells, genes)])


@pytest.mark.data
def test_real_counts(data):
    adata = ad.read_h5ad(data("pbmc3k/pbmc3k.h5ad"))[:200].copy()
    bin_values(adata)
    layer = adata.layers["binned"]
    x = sparse.csr_matrix(adata.X)
    assert layer.nnz == x.nnz
    for i in range(0, 200, 20):
        values, bins = x[i].data, layer[i].data
        edges = np.quantile(values, np.linspace(0, 1, 50))
        upper, lower = np.digitize(values, edges), np.digitize(values, edges, right=True) + 1
        assert ((np.minimum(lower, upper) <= bins) & (bins <= upper)).all()

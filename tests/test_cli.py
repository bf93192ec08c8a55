from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import zarr

import scgpt_tl
from scgpt_tl import cli, tl

SRC = Path(scgpt_tl.__file__).parents[1]


@pytest.fixture
def stored(counts, tmp_path):
    """The 40 toy cells as a file, with a slot of the user's own."""
    counts.obsm["mine"] = np.arange(80.0).reshape(40, 2)
    counts.layers["raw"] = counts.X.copy()
    path = tmp_path / "cells.h5ad"
    counts.write_h5ad(path)
    return path


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for the embedding: it keeps what it was called with and writes three small slots."""
    seen = []

    def embed(adata, *, model, key_added=None, out=None, **options):
        seen.append({"model": model, "key_added": key_added, "out": out, "backed": adata.isbacked, **options})
        emb = np.arange(adata.n_obs * 3, dtype=np.float32).reshape(-1, 3)
        if out is not None:
            zarr.save_array(out, emb)
            return
        adata.obsm[key_added or "X_scGPT"] = emb
        adata.varm[key_added or "scGPT"] = np.zeros((adata.n_vars, 3), np.float32)
        adata.uns[key_added or "scgpt"] = {"scgpt_tl": "0", "params": {"model": str(model)}}

    monkeypatch.setitem(vars(tl), "scgpt_embed", embed)
    return seen


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys\nfrom scgpt_tl.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'anndata', 'numpy', 'matplotlib') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_embed_copies_the_input_and_adds_the_result(stored, calls, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    assert cli.main(["embed", str(stored), "--out", str(out), "--model", "m", "--max-length", "64"]) == 0
    assert calls == [{"model": "m", "key_added": None, "out": None, "backed": True, "max_length": 64}]
    before, after = ad.read_h5ad(stored), ad.read_h5ad(out)
    assert "X_scGPT" not in before.obsm
    assert after.obsm["X_scGPT"].dtype == np.float32
    assert after.obsm["X_scGPT"].shape == after.varm["scGPT"][:40].shape == (40, 3)
    assert after.uns["scgpt"]["params"]["model"] == "m"
    np.testing.assert_array_equal(after.obsm["mine"], before.obsm["mine"])
    assert (after.X != before.X).nnz == (after.layers["raw"] != before.layers["raw"]).nnz == 0
    assert files(tmp_path) == ["cells.h5ad", "out.h5ad"]
    assert "40 cells" in capsys.readouterr().out


def test_options_reach_the_function(stored, calls, tmp_path):
    given = {"layer": "raw", "key_added": "k", "max_memory": "4GB", "device": "cpu", "dtype": "float32"}
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "o.h5ad"), *flags, "--overwrite"]) == 0
    assert calls[0].items() >= {**given, "overwrite": True}.items()
    assert set(ad.read_h5ad(tmp_path / "o.h5ad").obsm) == {"mine", "k"}


def test_embedding_alone_as_npy_and_zarr(stored, calls, tmp_path):
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "e.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy")[:, 0], 3 * np.arange(40))
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "e.zarr")]) == 0
    assert calls[1]["out"] == tmp_path / "e.zarr"


@pytest.mark.filterwarnings("ignore")  # zarr and anndata warn of each other's changes
def test_zarr_input_is_not_read_whole(stored, calls, tmp_path):
    store = tmp_path / "cells.zarr"
    ad.read_h5ad(stored).write_zarr(store)
    opened = cli.open_data(store, "raw")
    assert "CSRDataset" in type(opened.X).__name__
    assert "CSRDataset" in type(opened.layers["raw"]).__name__
    assert cli.main(["embed", str(store), "--out", str(tmp_path / "o.h5ad")]) == 0
    after = ad.read_h5ad(tmp_path / "o.h5ad")
    assert (after.X != ad.read_h5ad(stored).X).nnz == 0
    assert after.obsm["X_scGPT"].shape == (40, 3)
    assert cli.main(["embed", str(store), "--layer", "absent", "--out", str(tmp_path / "p.npy")]) == 1


def test_what_an_earlier_run_left_and_this_one_dropped_is_gone(stored, tiny, tmp_path):
    first, out = ad.read_h5ad(stored), tmp_path / "o.h5ad"
    tl.scgpt_embed(first, model=tiny, groupby="batch", progress=False, device="cpu")
    first.write_h5ad(stored)
    assert cli.main(["embed", str(stored), "--out", str(out), "--model", str(tiny), "--device", "cpu"]) == 0
    written = ad.read_h5ad(out)
    assert set(written.varm) == {"scGPT"}
    assert "groups" not in written.uns["scgpt"]
    assert set(written.obsm) == {"mine", "X_scGPT"}


def test_suffixes_in_capitals(stored, calls, tmp_path):
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "e.NPY")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "e.NPY")[:, 0], 3 * np.arange(40))
    assert files(tmp_path) == ["cells.h5ad", "e.NPY"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("out", "how"), [("cells.zarr", "is"), ("cells.zarr/e.zarr", "lies in"), ("cells.zarr/e.npy", "lies in")]
)
def test_a_store_that_is_read_is_no_target(stored, calls, tmp_path, capsys, out, how):
    store = tmp_path / "cells.zarr"
    ad.read_h5ad(stored).write_zarr(store)
    assert cli.main(["embed", str(store), "--out", str(tmp_path / out), "--overwrite"]) == 1
    assert f"{how} what is read" in capsys.readouterr().err
    assert calls == []
    assert ad.read_zarr(store).shape == (40, 60)


def test_input_can_be_replaced_when_said(stored, calls, capsys):
    assert cli.main(["embed", str(stored), "--out", str(stored)]) == 1
    assert "exists" in capsys.readouterr().err
    assert calls == []
    assert cli.main(["embed", str(stored), "--out", str(stored), "--overwrite"]) == 0
    assert set(ad.read_h5ad(stored).obsm) == {"mine", "X_scGPT"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "absent.h5ad", "--out", "o.h5ad"], "no file absent.h5ad"),
        (["embed", "cells.h5ad", "--out", "o.csv"], "ends in .h5ad, .zarr or .npy"),
        (["embed", "cells.h5ad", "--out", "absent/o.h5ad"], "make it"),
        (["embed", ".", "--out", "o.h5ad"], "is a folder"),
        (["check", "absent.h5ad"], "no file absent.h5ad"),
        (["demo", "--data", "absent.h5ad"], "no file absent.h5ad"),
        (["pretrain", "absent.h5ad", "--out", "m"], "no file absent.h5ad"),
        (["pretrain", "cells.h5ad", "--validate", "absent", "--out", "m"], "no file absent"),
        (["finetune", "cells.h5ad", "absent", "--model", "m", "--out", "m"], "no file absent"),
        (["pretrain", "cells.h5ad", "--out", "m", "--config", "absent.yaml"], "no file absent.yaml"),
        (["pretrain", "cells.h5ad", "--out", "m", "--epochs", "0"], "TrainConfig(epochs=0): 1 or more is needed"),
    ],
)
def test_errors_are_one_line_before_any_work(stored, calls, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(stored.parent)
    assert cli.main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("scgpt-tl: error: ")
    assert says in lines[0]
    assert calls == []


def failing(error):
    def embed(adata, **_):
        adata.obsm["X_scGPT"] = np.zeros((adata.n_obs, 2))
        raise error

    return embed


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyError("two\nlines"), 1, "error: two lines"),
        (RuntimeError(), 1, "error: RuntimeError"),
        (KeyboardInterrupt(), 130, "scgpt-tl: interrupted; no half file is left"),
        (KeyboardInterrupt("saved after step 3"), 130, "scgpt-tl: saved after step 3\n"),
        (SystemExit("saved after step 3"), 143, "scgpt-tl: saved after step 3\n"),
        (SystemExit(143), 143, "scgpt-tl: terminated; no half file is left"),
        (SystemExit(7), 7, "terminated"),
    ],
)
def test_failure_leaves_no_half_file(stored, monkeypatch, tmp_path, capsys, error, code, says):
    monkeypatch.setitem(vars(tl), "scgpt_embed", failing(error))
    bytes_before = stored.read_bytes()
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "o.h5ad")]) == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert files(tmp_path) == ["cells.h5ad"]
    assert stored.read_bytes() == bytes_before


@pytest.mark.parametrize("suffix", ["h5ad", "npy"])
def test_interrupted_while_writing(stored, calls, monkeypatch, tmp_path, suffix):
    def half(*_, **__):
        list(tmp_path.glob(".o.*"))  # the half file has a name of its own
        raise KeyboardInterrupt

    monkeypatch.setattr("anndata.io.write_elem", half)
    monkeypatch.setattr("numpy.save", half)
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / f"o.{suffix}")]) == 130
    assert files(tmp_path) == ["cells.h5ad"]


def test_debug_shows_the_traceback(stored, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(vars(tl), "scgpt_embed", failing(ValueError("why")))
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "o.h5ad"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_termination_is_an_exception_and_the_old_handler_returns(stored, monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(vars(tl), "scgpt_embed", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["embed", str(stored), "--out", str(tmp_path / "o.h5ad")]) == 143
    assert files(tmp_path) == ["cells.h5ad"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_wrong_command_line_is_2():
    for arguments in ([], ["embed"], ["nonsense"], ["pretrain", "x", "--out", "o", "--size", "huge"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["embed", "x.h5ad", "--out", "o.npy", "--max-len", "5"],
            "unknown option '--max-len'; did you mean",
        ),
        (["pretrain", "x", "--out", "m", "--epoch=3"], "unknown option '--epoch'; did you mean '--epochs'?"),
        (["finetune", "x", "--model", "m", "--out", "m", "--labels", "t"], "did you mean '--labels-key'?"),
        (["pretrain", "x", "--out", "m", "--max_length", "3"], "did you mean '--max-length'?"),
        (["pretrain", "x", "--out", "m", "--no-progres"], "did you mean '--no-progress'?"),
        (["check", "x", "y"], "unexpected 'y'"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest(capsys, arguments, says):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert says in capsys.readouterr().err


@pytest.mark.filterwarnings("default::UserWarning")
def test_processes_beside_the_first_say_nothing_but_errors(stored, calls, monkeypatch, tmp_path, capsys):
    def embed(adata, **_):
        logging.getLogger("scgpt_tl").warning("of the log")
        warnings.warn("of the warnings", UserWarning, stacklevel=2)
        msg = "broken"
        raise ValueError(msg)

    monkeypatch.setitem(vars(tl), "scgpt_embed", embed)
    arguments = ["embed", str(stored), "--out", str(tmp_path / "o.npy")]
    assert cli.main(arguments) == 1
    first = capsys.readouterr().err.splitlines()
    assert first == ["of the log", "scgpt-tl: warning: of the warnings", "scgpt-tl: error: broken"]
    monkeypatch.setenv("RANK", "2")
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.splitlines() == ["scgpt-tl: error in process 2: broken"]
    monkeypatch.setitem(vars(tl), "scgpt_embed", failing(KeyboardInterrupt("saved")))
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err == ""


def test_check_prints_the_report(counts, stored, tiny, tmp_path, capsys):
    assert cli.main(["check", str(stored), "--model", str(tiny)]) == 0
    assert "40 cells x 60 genes, .X: counts" in capsys.readouterr().out
    counts.X.data[0] = -1
    counts.write_h5ad(tmp_path / "bad.h5ad")
    assert cli.main(["check", str(tmp_path / "bad.h5ad"), "--model", str(tiny)]) == 1
    shown = capsys.readouterr()
    assert "verdict" in shown.out
    assert "negative" in shown.err


@pytest.mark.parametrize("suffix", ["h5ad", "npy", "zarr"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # zarr says that its v3 format is young
def test_embed_for_real(counts, stored, tiny, tmp_path, suffix):
    out = tmp_path / f"o.{suffix}"
    assert cli.main(["embed", str(stored), "--out", str(out), "--model", str(tiny), "--device", "cpu"]) == 0
    tl.scgpt_embed(counts, model=tiny, progress=False)
    if suffix == "h5ad":
        written = ad.read_h5ad(out)
        found = written.obsm["X_scGPT"]
        np.testing.assert_array_equal(written.varm["scGPT"], counts.varm["scGPT"])
        assert written.uns["scgpt"]["params"]["weights_sha256"] == counts.uns["scgpt"]["params"]["weights_sha256"]
    else:
        found = np.load(out) if suffix == "npy" else zarr.open_array(out, mode="r")[:]
    np.testing.assert_allclose(found, counts.obsm["X_scGPT"], atol=1e-6)


def test_models_lists_names(capsys):
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert "pbmc-mini" in out
    assert "whole-human  (12 x 512; many, 33,000,000 cells)" in out

"""Small toys, the golden numbers, and the skips that say why."""

from __future__ import annotations

import os

# Before numba and torch are loaded by any test: one thread a process for matrix products, two for numba,
# so that a test can ask whether the number of threads changes an answer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")

import json
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

GOLDEN = Path(__file__).parent / "golden"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where anndata is absent (a bare GPU machine), open only the files and folders that hold GPU tests."""
    if find_spec("anndata") is not None:
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return not any("mark.gpu" in file.read_text(encoding="utf-8") for file in files) or None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason."""
    if item.get_closest_marker("data") and _data_folder() is None:
        pytest.skip("real data are absent: SCGPT_TL_DATA names no folder")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def _data_folder() -> Path | None:
    folder = Path(os.environ.get("SCGPT_TL_DATA", ""))
    return folder if os.environ.get("SCGPT_TL_DATA") and folder.is_dir() else None


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the numbers that the published package gave."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny() -> Path:
    """An official-format model folder: 2 layers, 4 heads, 64 wide, 1,003 tokens."""
    return GOLDEN / "tiny" / "ckpt"


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """`data("pbmc3k/pbmc3k.h5ad")` -> its path, or the test is skipped with a reason."""

    def find(name: str) -> Path:
        folder = _data_folder()
        if folder is None:
            pytest.skip("real data are absent: SCGPT_TL_DATA names no folder")
        if not (folder / name).exists():
            pytest.skip(f"{name} is not in the folder that SCGPT_TL_DATA names")
        return folder / name

    return find


@pytest.fixture(scope="session")
def tiny_genes() -> list[str]:
    """Gene names of the tiny model, in the order of their ids."""
    tokens = json.loads((GOLDEN / "tiny" / "ckpt" / "vocab.json").read_text(encoding="utf-8"))
    return [name for name in sorted(tokens, key=tokens.__getitem__) if not name.startswith("<")]


@pytest.fixture(scope="session")
def toy_rows() -> Callable[..., sparse.csr_matrix]:
    """`toy_rows(n_obs, n_vars, density=, seed=)` -> counts >= 1 at random places; needs no anndata."""

    def make(n_obs: int = 40, n_vars: int = 60, *, density: float = 0.3, seed: int = 0) -> sparse.csr_matrix:
        rng = np.random.default_rng(seed)
        counts = (1 + rng.poisson(rng.gamma(0.6, 3.0, size=(n_obs, n_vars)))) * (rng.random((n_obs, n_vars)) < density)
        counts[:, 0] += counts.sum(axis=1) == 0  # no empty cell unless a test makes one
        return sparse.csr_matrix(counts.astype(np.float32))

    return make


@pytest.fixture
def signals_heard() -> Iterator[None]:
    """SIGINT and SIGTERM act as in a terminal: a test run in the background may have been told to ignore them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def toy_study(toy_rows: Callable[..., sparse.csr_matrix]) -> Callable[..., Any]:
    """`toy_study(name, n_obs, tokenizer)` -> Study in memory; needs no anndata."""

    def make(name: str, n_obs: int, tokenizer: Any, *, n_vars: int = 60, density: float = 0.5, **options: Any) -> Any:
        from scgpt_tl.engine.study import Study

        rows = toy_rows(max(n_obs, 1), n_vars, density=density, seed=n_obs)[:n_obs]
        return Study(name, rows, tokenizer, **options)

    return make


@pytest.fixture(scope="session")
def toy_cells() -> Callable[..., AnnData]:
    """`toy_cells(n_obs, n_vars, seed=, first=)` -> AnnData of two kinds of cells that express different genes."""

    def make(n_obs: int = 48, n_vars: int = 50, *, seed: int = 0, first: int = 0) -> AnnData:
        import anndata as ad
        import pandas as pd

        rng = np.random.default_rng(seed)
        kind = np.arange(n_obs)[:, None] % 2 == np.arange(n_vars)[None] % 2
        counts = (1 + rng.poisson(4, (n_obs, n_vars))) * (rng.random((n_obs, n_vars)) < np.where(kind, 0.7, 0.1))
        var = pd.DataFrame(index=[f"G{first + i}" for i in range(n_vars)])
        obs = pd.DataFrame(index=[f"c{i}" for i in range(n_obs)])
        return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs, var)

    return make


@pytest.fixture(scope="session")
def toy(toy_rows: Callable[..., sparse.csr_matrix], tiny_genes: list[str]) -> Callable[..., AnnData]:
    """`toy(n_obs, n_vars, density=, seed=)` -> AnnData of sparse counts; its genes are the tiny model's first ones."""

    def make(n_obs: int = 40, n_vars: int = 60, *, density: float = 0.3, seed: int = 0) -> AnnData:
        import anndata as ad
        import pandas as pd

        rng = np.random.default_rng(seed)
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical(rng.choice(["B", "NK", "T"], n_obs)),
                "batch": pd.Categorical(rng.choice(["a", "b"], n_obs)),
            },
            index=[f"cell{i}" for i in range(n_obs)],
        )
        return ad.AnnData(
            toy_rows(n_obs, n_vars, density=density, seed=seed), obs=obs, var=pd.DataFrame(index=tiny_genes[:n_vars])
        )

    return make


@pytest.fixture
def counts(toy: Callable[..., AnnData]) -> AnnData:
    """40 cells x 60 genes of sparse counts, fresh for every test."""
    return toy()


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """`torch_threads(n)` sets torch's threads; what was there before comes back after the test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def similar_genes() -> Callable[..., AnnData]:
    """`similar_genes(n_programs, names=)` -> AnnData in the slots of `tl.scgpt_grn(method="embedding", groupby=)`.

    Six genes a program and one gene in none; genes of a program are joined, as are first genes of programs that follow.
    """

    def make(n_programs: int = 3, *, names: str = "G{}", groups: tuple[str, ...] = ("B", "NK/x", "T")) -> AnnData:
        import anndata as ad
        import pandas as pd

        rng, n = np.random.default_rng(0), 6 * n_programs + 1
        program = np.append(np.repeat(np.arange(n_programs), 6), -1)
        joined = (program[:, None] == program) & (program >= 0)
        joined[np.arange(6, n - 1, 6), np.arange(0, n - 7, 6)] = True
        upper = np.triu(np.where(joined | joined.T, rng.uniform(0.3, 0.9, (n, n)), 0), k=1).astype(np.float32)
        labels = [str(i + 1) for i in range(n_programs)]
        genes = np.array([names.format(i) for i in range(n)], dtype=object)
        data = ad.AnnData(np.ones((len(groups), n), np.float32), var=pd.DataFrame(index=genes))
        data.var["scgpt_program"] = pd.Categorical.from_codes(program, labels)
        data.varm["scgpt_program"] = np.stack([np.minimum(program, 0), program], axis=1).astype(np.int32)
        data.obsm["scgpt_program"] = rng.normal(size=(len(groups), n_programs)).astype(np.float32)
        data.varp["scgpt_grn"] = sparse.csr_matrix(upper + upper.T)
        tried = {"resolution": [1.0, 5.0], "n_programs": [1, n_programs], "n_genes": n - 1, "modularity": [0.2, 0.8]}
        data.uns["scgpt_grn"] = {
            "scgpt_tl": "tl.scgpt_grn", "method": "embedding", "params": {"model": "pbmc-mini", "context": False},
            "groups": np.array(groups), "n_cells": np.ones(len(groups), np.int64), "control": "",
            "regulators": np.array([], dtype=str), "genes": genes.astype(str), "resolution": 5.0,
            "resolutions": pd.DataFrame(tried),
            "activity": pd.DataFrame(rng.normal(size=(len(groups), n_programs)), index=list(groups), columns=labels),
        }  # fmt: skip
        return data

    return make


@pytest.fixture(scope="session")
def regulating_genes() -> Callable[..., AnnData]:
    """`regulating_genes(n_vars, regulators=, groups=, control=)` -> AnnData in the slots of a pairwise `tl.scgpt_grn`.

    The last gene was not chosen. Regulators are genes 0, 1, ...; None: all chosen genes are.
    """

    def make(
        n_vars: int = 8, *, regulators: int | None = 2, groups: tuple[str, ...] = ("ctrl", "stim"),
        control: str = "ctrl", names: str = "G{}", seed: int = 0,
    ) -> AnnData:  # fmt: skip
        import anndata as ad
        import pandas as pd

        rng, n = np.random.default_rng(seed), regulators or n_vars - 1
        genes = np.array([names.format(i) for i in range(n_vars)], dtype=object)
        data = ad.AnnData(np.ones((2, n_vars), np.float32), var=pd.DataFrame(index=genes))
        weights = rng.uniform(0, 1, (n_vars, len(groups), n)).astype(np.float32)
        weights[-1] = np.nan
        if regulators:
            data.varm["scgpt_grn"] = weights
        else:
            for number in range(len(groups)):
                name = f"scgpt_grn_{number}" if len(groups) > 1 else "scgpt_grn"
                data.varp[name] = sparse.csr_matrix(np.pad(weights[:-1, number], ((0, 1), (0, 1))))
        data.uns["scgpt_grn"] = {
            "scgpt_tl": "tl.scgpt_grn", "method": "attention", "params": {"model": "pbmc-mini"},
            "groups": np.array(groups), "n_cells": np.full(len(groups), 5), "control": control,
            "regulators": genes[: regulators or 0].astype(str), "genes": genes[:-1].astype(str),
        }  # fmt: skip
        return data

    return make


@pytest.fixture(scope="session")
def enrichment_table() -> Callable[..., Any]:
    """`enrichment_table(n_programs, n_pathways, names=)` -> the table of `tl.scgpt_enrich`, in no order."""

    def make(n_programs: int = 3, n_pathways: int = 6, *, names: str = "Pathway {}", seed: int = 0) -> Any:
        import pandas as pd

        rng = np.random.default_rng(seed)
        n = n_programs * n_pathways
        p = 10 ** -rng.uniform(0.5, 12, n)
        table = pd.DataFrame(
            {
                "program": np.repeat([str(i + 1) for i in range(n_programs)], n_pathways),
                "pathway": [names.format(i) for i in range(n_pathways)] * n_programs,
                "overlap": rng.integers(1, 20, n),
                "size": rng.integers(20, 300, n),
                "n_program": rng.integers(20, 60, n),
                "p_value": p,
                "adjusted": np.minimum(1, p * n),
                "odds_ratio": rng.uniform(1, 30, n),
                "genes": "G1;G2",
            }
        )
        return table.iloc[rng.permutation(n)].sort_values("program", key=lambda c: c.astype(int), kind="stable")

    return make

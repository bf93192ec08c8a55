"""The house keeps its own rules: what is public, how it is called, what an import costs, how long a file may be."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import scgpt_tl
from scgpt_tl._lazy import attach

SRC = Path(scgpt_tl.__file__).parent
ROOMS = ("pp", "tl", "pl", "get", "metrics", "models", "datasets")
DATA_NAMES = {"adata", "data", "query", "mdata", "model"}  # what a function of the manners' rooms takes first


def _names(room: str) -> list[str]:
    """What a room offers: its `__all__`, or, in a room of one file, what that file defines without an underscore."""
    if not find_spec(f"scgpt_tl.{room}"):
        return []
    module = import_module(f"scgpt_tl.{room}")
    return sorted(getattr(module, "__all__", _own(module)))


def _own(module: ModuleType) -> set[str]:
    return {n for n, v in vars(module).items() if n[0] != "_" and getattr(v, "__module__", None) == module.__name__}


PUBLIC = [("", name) for name in scgpt_tl.__all__] + [(room, name) for room in ROOMS for name in _names(room)]
LAZY = sorted(path for path in SRC.rglob("__init__.py") if "attach(" in path.read_text(encoding="utf-8"))
SOURCES = sorted(SRC.rglob("*.py"))


def _named(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def _get(room: str, name: str) -> object:
    return getattr(import_module(f"scgpt_tl.{room}" if room else "scgpt_tl"), name)


def _modules(*rooms: str) -> list[str]:
    files = [p for p in SOURCES if _named(p).partition("/")[0].removesuffix(".py") in rooms]
    return [".".join(("scgpt_tl", *p.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__") for p in files]


def _run(code: str) -> str:
    """Run in a fresh interpreter that finds the same scgpt_tl."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SRC.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_the_standard_library_alone():
    code = "import sys; before = set(sys.modules); import scgpt_tl; print(*sorted(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in _run(code).split()}
    assert loaded - sys.stdlib_module_names == {"scgpt_tl"}


@pytest.mark.parametrize(
    ("rooms", "absent"),
    [
        (("genes", "pp"), ("torch", "lightning")),
        (("get", "pl"), ("torch", "lightning", "scgpt_tl.tl", "scgpt_tl.engine")),
        (("genes", "pp", "tokens", "core", "objectives", "models", "engine"), ("anndata", "scanpy", "mudata")),
        (("tokens", "core", "objectives", "models", "metrics"), ("lightning",)),
    ],
)
def test_rooms_open_without(rooms: tuple[str, ...], absent: tuple[str, ...]):
    code = f"import sys, importlib; sys.modules.update(dict.fromkeys({absent!r}))\n"
    _run(code + f"for name in {_modules(*rooms)!r}: importlib.import_module(name)")


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_every_public_name_opens(room: str, name: str):
    assert _get(room, name) is not None


@pytest.mark.parametrize("path", LAZY, ids=_named)
def test_type_checkers_see_what_opens(path: Path):
    """The imports under TYPE_CHECKING and the lazy table are one list, written twice for two readers."""
    package = ".".join(("scgpt_tl", *path.relative_to(SRC).parent.parts))
    module = import_module(package)
    seen = [
        (alias.asname, alias.name)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]
    assert all(shown == name for shown, name in seen)
    assert {name for _, name in seen} == set(module.__all__) - {"__version__"}
    assert dir(module) == sorted(module.__all__)


@pytest.mark.parametrize("room", [room for room in ROOMS if find_spec(f"scgpt_tl.{room}")])
def test_nothing_is_public_by_accident(room: str):
    """What a room's own file defines is in `__all__`; the files of pp, tl, pl and get are private."""
    module = import_module(f"scgpt_tl.{room}")
    assert _own(module) <= set(_names(room))
    if room in {"pp", "tl", "pl", "get"}:
        assert [p.name for p in (SRC / room).glob("*.py") if not p.name.startswith("_")] == []


@pytest.mark.parametrize(("room", "name"), [(room, name) for room, name in PUBLIC if room or name == "load_model"])
def test_public_functions_have_scanpy_manners(room: str, name: str):
    """Data first, what is optional by keyword only, few arguments, every option in the docstring."""
    function = _get(room, name)
    doc = inspect.getdoc(function) or ""
    assert doc, f"{name} has no docstring"
    if not inspect.isfunction(function):
        return
    arguments = list(inspect.signature(function).parameters.values())
    positional = [a for a in arguments if a.kind is not a.KEYWORD_ONLY]
    assert len(positional) <= 3
    # functions of tl and pp that have these mean the same by them: read once
    manners = {"overwrite", "copy", "layer", "key_added", "return_model", "rng"}
    assert len([a for a in arguments if a.name not in manners]) <= 10
    assert [a.name for a in positional if a.default is not a.empty and a.name != "model"] == []
    assert [a.name for a in arguments if a.kind is a.KEYWORD_ONLY and a.name not in doc] == []
    if room in {"pp", "tl", "pl", "get"}:
        assert positional[0].name in DATA_NAMES


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_every_public_name_is_on_the_api_page(room: str, name: str):
    page = SRC.parents[1] / "docs" / "api.md"
    if not page.exists():
        pytest.skip("installed without its docs")
    if name.startswith("__") or (not room and name in ROOMS):
        return
    listed = set(page.read_text(encoding="utf-8").split())
    assert f"{room}.{name}".removeprefix(".") in listed


@pytest.mark.parametrize("path", SOURCES, ids=_named)
def test_files_and_functions_stay_readable(path: Path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says at its head what it is for"
    assert text.count("\n") <= 400
    assert [f"{f.name}: {n} lines" for f, n in _bodies(tree) if n > 45] == []


def _bodies(tree: ast.Module) -> list[tuple[ast.FunctionDef, int]]:
    """Functions and the lines of their bodies, docstrings apart."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    docs = [len((ast.get_docstring(f, clean=False) or "").splitlines()) for f in functions]
    return [(f, f.end_lineno - f.body[0].lineno + 1 - doc) for f, doc in zip(functions, docs, strict=True)]


def test_a_function_may_not_hide_behind_its_own_file():
    with pytest.raises(ValueError, match=r"name the file _compare\.py"):
        attach("scgpt_tl.metrics", {"compare": "compare"})


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'scgpt_tl' has no attribute 'nonsense'"):
        _get("", "nonsense")


def test_scanpy_reads_the_neighbours_of_the_installed_pynndescent():
    """What scanpy takes above 8,192 cells, here on few: pynndescent 0.7 gives arrays that scanpy 1.11 cannot read."""
    adata = ad.AnnData(np.random.default_rng(0).standard_normal((60, 5)))
    sc.pp.neighbors(adata, use_rep="X", n_neighbors=5, transformer="pynndescent")
    assert adata.obsp["connectivities"].nnz


_BARE = """
import sys
from importlib.machinery import PathFinder

import pytest

found = PathFinder.find_spec.__func__
absent = {"anndata", "scanpy", "mudata", "zarr", "dask", "gseapy", "igraph", "leidenalg", "pooch", "umap"}
PathFinder.find_spec = classmethod(lambda cls, name, *more: None if name in absent else found(cls, name, *more))
sys.exit(pytest.main(["--collect-only", "-q", "-m", "gpu", "-p", "no:zarr", "-p", "no:cacheprovider"]))
"""


def test_gpu_tests_are_found_on_a_bare_machine():
    """benchmarks/gpu/run.sh runs them where torch, numba and h5py are, and no anndata: one error of import ends all."""
    done = subprocess.run(
        [sys.executable, "-c", _BARE], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests/core/test_cuda.py::" in done.stdout
    assert "tests/engine/test_train.py::" in done.stdout

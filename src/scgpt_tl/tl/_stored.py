"""One data set of a corpus: an AnnData, an h5ad file or a zarr store. Its counts stay where they are.

Errors name the data set, what is wrong with it and what mends it, and come before any training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scgpt_tl._files import sha256_of
from scgpt_tl._slots import SLOTS
from scgpt_tl.engine.study import wrong_values
from scgpt_tl.genes.match import KNOWN_COLUMNS
from scgpt_tl.metrics._checks import names
from scgpt_tl.pp._blocks import Fingerprint, Matrix, NoNumbersError, _parent, open_layer, open_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anndata import AnnData

_BLOCK = 4096  # rows looked at
_VAR = (*KNOWN_COLUMNS, SLOTS.gene, SLOTS.gene_how)
_PLACE = "copy or download it again, or leave it out with skip_bad=True"


@dataclass(frozen=True, eq=False)
class Stored:
    """A data set, and how any process opens its counts."""

    said: str
    """What messages call it."""
    open: Callable[[], Matrix]
    obs: Any
    """Columns by name: a data frame, or the group of a file that holds one."""
    var: pd.DataFrame
    """The variables, with the columns that may name genes."""
    uns: dict[str, Any]
    """What `pp.harmonize_genes` left, where it was run."""
    path: Path | None = None

    @cached_property
    def matrix(self) -> Matrix:
        """The counts, opened here."""
        return self.open()

    @property
    def named(self) -> Any:
        """What `pp._genes` reads of an AnnData."""
        return SimpleNamespace(var=self.var, var_names=self.var.index, uns=self.uns)

    def column(self, key: str) -> np.ndarray:
        """(n_cells,) object: a column of `.obs` as names, None where one is missing.

        Raises
        ------
        KeyError
            No such column; the message lists those there.
        """
        frame = isinstance(self.obs, pd.DataFrame)
        there = [str(name) for name in (self.obs.columns if frame else self.obs.attrs.get("column-order", ()))]
        if key not in there:
            msg = f"{self.said}: no column {key!r} in .obs (there: {', '.join(map(repr, there)) or 'none'})"
            raise KeyError(msg)
        return names(np.asarray(self.obs[key] if frame else ad.io.read_elem(self.obs[key]), dtype=object))

    def sha256(self) -> str:
        """Of a file; of a store's files in the order of their names; of the values of an AnnData, backed or not."""
        if self.path is None or isinstance(self.obs, pd.DataFrame):  # a view of a file is not all of it
            return digest(self.matrix)
        if self.path.is_file():
            return sha256_of(self.path)
        whole = sha256()
        for file in sorted(file for file in self.path.rglob("*") if file.is_file()):
            whole.update(f"{file.relative_to(self.path).as_posix()} {sha256_of(file)}\n".encode())
        return whole.hexdigest()


def digest(matrix: Matrix) -> str:
    """Of the values, however they are stored and cut into blocks."""
    found = Fingerprint()
    for _, block in matrix.blocks(_BLOCK):
        found.add(block)
    return found.hexdigest(matrix.shape)


def stored(item: AnnData | Path, name: str, *, thoroughly: bool = False) -> Stored:
    """Look at a data set, and refuse what cannot be trained on.

    Parameters
    ----------
    item
        In memory or backed, or a file or a store.
    name
        What messages call it where it has no path.
    thoroughly
        Look at all values, not at the first thousands alone.

    Raises
    ------
    TypeError
        Neither AnnData nor a path.
    ValueError
        Damaged, empty, or no AnnData; no counts in `.X`; negative or non-finite values among those looked at.
    OSError
        Another process is writing it, it may not be read, or a link to it leads nowhere.
    """
    path = item if isinstance(item, Path) else _file_of(item)
    try:
        return _checked(_of_file(item) if isinstance(item, Path) else _of_adata(item, name), thoroughly)
    except _RefusedError:
        raise
    except (OSError, ValueError, LookupError, RuntimeError, TypeError) as error:
        if path is None:
            raise
        raise _explained(path, error) from error


def is_store(path: Path) -> bool:
    """A folder that is one zarr store, and no folder of files."""
    return path.is_dir() and (
        path.suffix.lower() == ".zarr" or any((path / name).exists() for name in ("zarr.json", ".zgroup"))
    )


class _RefusedError(ValueError):
    """An error that says all there is to say."""


def _no_counts(said: str, found: str, layers: Iterable[str]) -> _RefusedError:
    """What `.X` is in place of counts, and what puts them there: training has no `layer=`."""
    names = sorted(layers, key=lambda name: name != "counts")
    cure = f"adata.X = adata.layers[{names[0]!r}]" if names else "training reads no other place"
    there = f" (layers: {', '.join(map(repr, names))})" if len(names) > 1 else ""
    return _RefusedError(f"{said} has no counts in .X: {found}; put them there: {cure}{there}")


def _of_adata(adata: Any, name: str) -> Stored:
    if not isinstance(adata, ad.AnnData):
        msg = (
            f"{name} is {type(adata).__name__}; AnnData or a path is expected (of a MuData, one modality: mdata['rna'])"
        )
        raise TypeError(msg)
    var, uns = adata.var[[column for column in _VAR if column in adata.var]], dict(adata.uns)
    if path := _file_of(adata):  # it is opened anew, so that the cells can be sent to other processes
        _, *part = _parent(adata)
        part = [None if index is None else np.arange(n)[index] for index, n in zip(part, _shape(path), strict=True)]
        return Stored(f"{name} ({path})", partial(_open, path.absolute(), *part), adata.obs, var, uns, path)
    if _parent(adata)[0].X is None:
        raise _no_counts(name, "it is empty (None)", adata.layers)
    try:
        matrix = open_layer(adata)
    except NoNumbersError as error:
        raise _no_counts(name, str(error), adata.layers) from error
    except ValueError as error:
        msg = f"{name}: {error}"
        raise _RefusedError(msg) from error
    return Stored(name, partial(_itself, matrix), adata.obs, var, uns)


def _file_of(adata: Any) -> Path | None:
    """The file that holds the counts of an AnnData that is not in memory."""
    return Path(str(adata.filename)) if isinstance(adata, ad.AnnData) and adata.isbacked else None


def _of_file(path: Path) -> Stored:
    root = _root(path)
    lacks = [part for part in ("X", "obs", "var") if part not in root]
    if lacks not in ([], ["X"]) or not hasattr(root["obs"], "keys"):
        what = f"it lacks {', '.join(lacks)}" if lacks else "its .obs is older than anndata 0.7"
        msg = f"{path} is no AnnData with counts in .X: {what}; write one with adata.write_h5ad()"
        raise _RefusedError(msg)
    var, uns = root["var"], root.get("uns", {})
    index = np.asarray(ad.io.read_elem(var[var.attrs["_index"]]))
    known = pd.DataFrame({column: ad.io.read_elem(var[column]) for column in _VAR if column in var}, index=None)
    frame = pd.DataFrame(index=index) if known.empty else known.set_index(index)
    left = {SLOTS.genes: ad.io.read_elem(uns[SLOTS.genes])} if SLOTS.genes in uns else {}
    return Stored(str(path), partial(_open, path.absolute()), root["obs"], frame, left, path)


def _root(path: Path) -> Any:
    """The open file or store."""
    if path.is_file():
        import h5py

        return h5py.File(path, "r")
    import zarr

    return zarr.open_group(path, mode="r")


def _open(path: Path, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> Matrix:
    root = _root(path)
    if "X" not in root:
        raise _no_counts(str(path), "there is none", root.get("layers", ()))
    try:
        return open_matrix(root["X"], rows=rows, columns=columns)
    except NoNumbersError as error:
        raise _no_counts(str(path), str(error), root.get("layers", ())) from error


def _shape(path: Path) -> tuple[int, int]:
    return _open(path).shape


def _itself(matrix: Matrix) -> Matrix:
    return matrix


def _checked(found: Stored, thoroughly: bool) -> Stored:
    """Refuse what is empty, incomplete or no counts."""
    n_cells, n_genes = found.matrix.shape
    if n_cells == 0 or n_genes == 0:
        msg = f"{found.said} is empty ({n_cells} cells x {n_genes} genes): check how it was filtered, or leave it out"
        raise _RefusedError(msg)
    n_obs = len(found.obs) if isinstance(found.obs, pd.DataFrame) else found.obs[found.obs.attrs["_index"]].shape[0]
    if (n_obs, len(found.var)) != found.matrix.shape:
        msg = f"{found.said}: .X holds {found.matrix.shape} cells and genes, .obs and .var {(n_obs, len(found.var))}"
        raise _RefusedError(msg)
    if found.path is not None and not found.path.is_file():
        _check_chunks(found.path, _root(found.path)["X"])
    for _, block in found.matrix.blocks(min(_BLOCK, n_cells)):
        if wrong := wrong_values(block):
            msg = f"{found.said} {wrong}"
            raise _RefusedError(msg)
        if not thoroughly:  # the rest is looked at while it is read
            break
    return found


def _check_chunks(path: Path, x: Any) -> None:
    """A lost chunk of a zarr array reads as zeros, without an error."""
    for array in (x["indices"], x["data"]) if hasattr(x, "keys") else ():
        missing = array.nchunks - array.nchunks_initialized
        if missing:
            msg = f"{path} is truncated: {missing} of {array.nchunks} chunks of {array.path} are missing; {_PLACE}"
            raise _RefusedError(msg)


def _explained(path: Path, error: Exception) -> Exception:
    """What a reader's error means, and what to do."""
    text = " ".join(str(error).split())
    if path.is_symlink() and not path.exists():
        return FileNotFoundError(f"{path} is a link to {path.readlink()}, which is not there; {_PLACE}")
    if isinstance(error, BlockingIOError) or "unable to lock" in text:
        return OSError(f"{path} is locked: another process is writing it; wait until it has closed the file ({text})")
    if isinstance(error, PermissionError):
        return PermissionError(f"{path} may not be read: {text}")
    if path.is_file() and path.stat().st_size == 0:
        return ValueError(f"{path} is an empty file (0 bytes); {_PLACE}")
    if "truncated" in text:
        return ValueError(f"{path} is truncated: {text}; {_PLACE}")
    if "signature not found" in text or type(error).__name__ == "GroupNotFoundError":
        return ValueError(f"{path} is no AnnData: it is neither an HDF5 file nor a zarr store; write_h5ad() makes one")
    return ValueError(f"{path} cannot be read ({type(error).__name__}: {text}); {_PLACE}")

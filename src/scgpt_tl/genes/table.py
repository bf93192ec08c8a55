"""The HGNC table: which names a human gene has and had."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from scgpt_tl.genes.folders import DATA_VARIABLE, cache_folder, data_folder

logger = logging.getLogger(__name__)

#: One dated month of HGNC's complete set (Seal et al. 2023, Nucleic Acids Res 51:D1003; CC0). HGNC publishes no
#: checksum: this one was recorded for this release by two projects independently of each other and of us.
URL = (
    "https://storage.googleapis.com/public-download-files/hgnc/archive/archive/monthly/tsv/"
    "hgnc_complete_set_2026-10-06.txt"
)
SHA256 = "8bf6f686e640dbc864a346484626953621b0500d900d26cd085a35c2782d725d"

#: Where a copy lies inside the folder that SCGPT_TL_DATA names.
LOCAL = Path("gene_resources", "hgnc_mapping.tsv.gz")
_COLUMNS = ("symbol", "prev_symbol", "alias_symbol", "ensembl_gene_id")


@dataclass(frozen=True)
class GeneTable:
    """Names of human genes. Withdrawn entries are left out.

    Attributes
    ----------
    names
        Approved symbol -> (its previous symbols, its aliases).
    previous, alias, ensembl
        Previous symbol, alias, Ensembl id without version -> the approved symbols that it stands for.
    source
        The file that was read.
    """

    names: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    previous: dict[str, tuple[str, ...]]
    alias: dict[str, tuple[str, ...]]
    ensembl: dict[str, tuple[str, ...]]
    source: str

    def __repr__(self) -> str:
        return f"GeneTable({len(self.names):,} genes from {self.source})"


def hgnc_table(
    *, path: str | Path | None = None, url: str = URL, sha256: str = SHA256, download: bool = True
) -> GeneTable | None:
    """Names of human genes, from the first of: `path`, `$SCGPT_TL_DATA`, the user's cache, one download.

    The table is read once per process.

    Parameters
    ----------
    path
        A table of your own: tab-separated, plain or gzipped, with HGNC's column names.
    url, sha256
        What to download where there is no copy yet, and its pinned hash.
    download
        Whether the network may be asked; without it a table is used where there is a copy.

    Returns
    -------
    None where there is no copy and no network; a warning says how to get one.

    Raises
    ------
    FileNotFoundError
        `path` does not exist.
    ValueError
        The download's hash is not `sha256`, or a file is not such a table.
    """
    local = data_folder()
    if path is not None:
        file = Path(path).expanduser()
    elif local is not None and (local / LOCAL).is_file():
        file = local / LOCAL
    elif not download and not _cached(url).is_file():
        return None
    else:
        downloaded = _download(url, sha256)
        if downloaded is None:
            return None
        file = downloaded
    return _read(file, file.stat().st_mtime_ns)


def _cached(url: str) -> Path:
    """Where pooch keeps a download."""
    import pooch

    return cache_folder() / "genes" / pooch.utils.unique_file_name(url)


def _download(url: str, sha256: str) -> Path | None:
    """A pinned file in the user's cache; None without a network. A file whose hash differs is not kept."""
    import pooch

    folder = cache_folder() / "genes"
    try:
        file = pooch.retrieve(url, sha256, path=folder, downloader=pooch.HTTPDownloader(timeout=30))
    except OSError as error:  # requests' errors are OSErrors
        logger.warning(
            "no table of gene names: %s could not be fetched (%s). Ensembl ids, previous symbols and aliases stay "
            "unmatched; put a copy of the HGNC complete set at $%s/%s",
            url, error, DATA_VARIABLE, LOCAL,
        )  # fmt: skip
        return None
    return Path(file)


@lru_cache(maxsize=2)
def _read(file: Path, _changed: int) -> GeneTable:
    names: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    previous: dict[str, tuple[str, ...]] = {}
    alias: dict[str, tuple[str, ...]] = {}
    ensembl: dict[str, tuple[str, ...]] = {}
    for symbol, before, also, stable_id in _rows(file):
        names[symbol] = (_several(before), _several(also))
        for index, keys in ((previous, names[symbol][0]), (alias, names[symbol][1]), (ensembl, _several(stable_id))):
            for key in keys:
                if symbol not in index.get(key, ()):
                    index[key] = (*index.get(key, ()), symbol)
    return GeneTable(names, previous, alias, ensembl, source=str(file))


def _rows(file: Path) -> Iterator[tuple[str, str, str, str]]:
    """The four columns that matter, of entries that are not withdrawn."""
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        msg = f"{file} is damaged ({error}); remove it and fetch it again"
        raise ValueError(msg) from error
    head, *lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    header = head.split("\t")
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        msg = f"{file} lacks the columns {', '.join(missing)}; expected HGNC's complete set (tab-separated)"
        raise ValueError(msg)
    at = [header.index(name) for name in _COLUMNS]
    status = header.index("status") if "status" in header else None
    for line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            msg = f"{file} has a row of {len(fields)} fields where the header has {len(header)}: {line[:60]!r}"
            raise ValueError(msg)
        if status is None or fields[status] == "Approved":
            yield fields[at[0]], fields[at[1]], fields[at[2]], fields[at[3]]


def _several(field: str) -> tuple[str, ...]:
    """Values between bars; HGNC puts quotes around a field that holds several."""
    return tuple(filter(None, (value.strip() for value in field.strip('"').split("|")))) if field else ()

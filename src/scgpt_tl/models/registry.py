"""Models by name: what there is, what to cite, where it comes from, and whether a download is what it should be."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scgpt_tl.genes.bundle import FILES, bundles, kind_of, read_bundle, roots
from scgpt_tl.genes.folders import bundled_folder, cache_folder
from scgpt_tl.models import official

if TYPE_CHECKING:
    import pandas as pd

    from scgpt_tl.genes.bundle import Bundle

_ZOO = "the table 'Pretrained scGPT Model Zoo' of https://github.com/bowang-lab/scGPT"
_RETRIES = 2
_DRIVE = "https://drive.google.com/drive/folders/"
_PAPER = "Cui et al. 2024, Nature Methods 21:1470-1480, doi:10.1038/s41592-024-02201-0"
_MIT = "MIT (the licence of the scGPT repository; no separate terms are given for the weights)"


@dataclass(frozen=True)
class Entry:
    """What is known of a model without having it."""

    name: str
    organ: str
    cells: int
    """Cells that it was pretrained on."""
    note: str = ""
    source: str = "comes with scgpt_tl"
    licence: str = "BSD-3-Clause"
    citation: str = "scgpt_tl, see CITATION.cff"
    n_tokens: tuple[int, ...] = ()
    """Vocabulary sizes that its releases have had, special tokens included; () where any will do."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """d_model, n_layers, n_heads, d_ff."""
    heads: tuple[str, ...] = ()
    """Heads that must be there."""
    url: str | None = None
    """Folder that holds `files`; None where the download is by hand."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name -> sha256."""


def _published(name: str, link: str, organ: str, cells: int, note: str, n_tokens: tuple[int, ...] = (60_697,)) -> Entry:
    sizes = {"d_model": 512, "n_layers": 12, "n_heads": 8, "d_ff": 512}
    source = f"{_DRIVE}{link} (link {name.replace('-pre', ' pre')!r} in {_ZOO})"
    return Entry(name, organ, cells, note, source, _MIT, _PAPER, n_tokens, sizes, ("gep", "gepc"))


#: Every model that has a name of its own.
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("pbmc-mini", "blood", 13_744, "small: for demonstrations, tests and laptops; see its MODEL_CARD.md"),
        _published("whole-human", "1oWh_-ZRdhtoGQ2Fw24HP41FgLoomVo-y", "many", 33_000_000, "the published default"),
        _published(
            "continual-pretrained", "1_GROJTzXiAV8HB4imruOTk6PEGuNOcgB", "many", 33_000_000,
            "whole-human trained further with cell type labels, for zero-shot cell embeddings",
        ),
        _published("brain", "1vf1ijfQSk7rGdDGpBntR5bi5g6gNt-Gx", "brain", 13_200_000, ""),
        _published(
            "blood", "1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU", "blood and bone marrow", 10_300_000,
            "the older release has a vocabulary of 36,574", (60_697, 36_574),
        ),
        _published("heart", "1GcgXrd7apn6y4Ze_iSCncskX3UsWPY2r", "heart", 1_800_000, ""),
        _published("lung", "16A1DJ30PT6bodt4bWLa4hpS7gbWZQFBG", "lung", 2_100_000, ""),
        _published("kidney", "1S-1AR65DF120kNFpEbWCvRHPhpkGK3kK", "kidney", 814_000, ""),
        _published("pan-cancer", "13QzLHilYUd0v3HTwa_9n4G4yEF-hdkqa", "cancers of many organs", 5_700_000, ""),
    )
}  # fmt: skip


def available() -> pd.DataFrame:
    """Every model that has a name: those at hand, and those that can be had.

    Returns
    -------
    One row a model, indexed by name: organ, cells, d_model, n_layers, n_heads, n_tokens (0 where not known yet),
    at_hand (bool), folder, source, licence, citation, note.
    """
    import pandas as pd

    here = bundles()
    rows = [_row(name, here.get(name)) for name in dict.fromkeys((*ENTRIES, *here))]
    return pd.DataFrame(rows).set_index("name")


def fetch(name: str) -> Path:
    """Folder of a named model, downloaded into the user's cache where it is not at hand.

    Every file is checked against its pinned sha256; the folder appears when it is whole. A download that broke off goes
    on with the files that are still missing.

    Raises
    ------
    FileNotFoundError
        The model is downloaded by hand; the message says from where, and where to put it.
    KeyError
        No such name.
    OSError, ValueError
        The download failed, or gave other bytes than were pinned.
    """
    entry = _entry(name)
    at_hand = bundles().get(name)
    if at_hand is not None:
        return at_hand
    if entry.url is None:
        raise FileNotFoundError(_by_hand(entry))
    return _download(entry, entry.url)


def verify(folder: str | Path, name: str) -> list[str]:
    """Hold a folder that was downloaded by hand against what the named model should be.

    Parameters
    ----------
    folder
        Holds args.json, best_model.pt, vocab.json.
    name
        A published model of `available()`.

    Returns
    -------
    What differs, a line each; empty where all is as it should be. Compared are sizes, vocabulary, ids of the special
    tokens, every weight's name and shape, and the checksums inside best_model.pt. Not compared: the numbers themselves,
    for which the authors give no checksum.

    Raises
    ------
    FileNotFoundError, ValueError
        The folder cannot be read at all.
    """
    entry = _entry(name)
    if not entry.sizes:
        msg = f"{name!r} is no published model; load_model checks it by its own checksums"
        raise ValueError(msg)
    folder = Path(folder).expanduser()
    if kind_of(folder) != "official":
        msg = f"{folder} is no folder of the published package, which holds {', '.join(FILES['official'])}"
        raise FileNotFoundError(msg)
    bundle = read_bundle(folder)
    return [*_sizes_differ(bundle, entry), *_vocabulary_differs(bundle, entry), *_weights_differ(bundle, entry)]


def _sizes_differ(bundle: Bundle, entry: Entry) -> list[str]:
    found = {key: getattr(bundle, key) for key in entry.sizes}
    return [
        f"args.json: {key} is {found[key]}, expected {size}" for key, size in entry.sizes.items() if found[key] != size
    ]


def _vocabulary_differs(bundle: Bundle, entry: Entry) -> list[str]:
    vocab, size = bundle.vocab, len(bundle.vocab)
    lines = []
    if size not in entry.n_tokens:
        lines.append(f"vocab.json: {size:,} tokens, expected {' or '.join(f'{n:,}' for n in entry.n_tokens)}")
    ids, last = (vocab.pad_id, vocab.cls_id, vocab.eoc_id), (size - 3, size - 2, size - 1)
    if ids != last:
        lines.append(f"vocab.json: <pad>, <cls>, <eoc> have the ids {ids}, expected the last three, {last}")
    return lines


def _weights_differ(bundle: Bundle, entry: Entry) -> list[str]:
    """Damage, then whatever loading minds, then heads that should be there."""
    file = bundle.weights_file
    if damaged := _damaged_record(file):
        return [f"{file.name}: the record {damaged} does not have its checksum: damaged, fetch it again"]
    try:
        config = official.read(bundle.path)["config"]
    except ValueError as error:
        return [str(error)]
    return [f"{file.name}: no weights of the head {head}" for head in entry.heads if head not in config.heads]


def _damaged_record(file: Path) -> str | None:
    """First record of the archive whose bytes do not have the checksum beside them; torch does not look."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except zipfile.BadZipFile:
        return None  # not an archive: loading will say what it is


def _entry(name: str) -> Entry:
    if name not in ENTRIES:
        msg = f"no model is called {name!r}; there are {', '.join(ENTRIES)}"
        raise KeyError(msg)
    return ENTRIES[name]


def _by_hand(entry: Entry) -> str:
    files = ", ".join(FILES["official"])
    if entry.url is None and not entry.sizes:
        return f"{entry.name} comes with scgpt_tl, yet {bundled_folder() / entry.name} is not there: install it again"
    places = " or ".join(str(root / entry.name) for root in roots() if root != bundled_folder())
    return (
        f"{entry.name} is not on this machine and is downloaded by hand, from its authors: {entry.source}. "
        f"Put its files {files} into {places}; then scgpt_tl.models.verify(folder, {entry.name!r}) checks them"
    )


def _download(entry: Entry, url: str) -> Path:
    import pooch

    unfinished = cache_folder() / "downloads" / entry.name
    target = cache_folder() / "models" / entry.name
    files = {name: f"sha256:{value}" for name, value in entry.files.items()}
    store = pooch.create(path=unfinished, base_url=url.rstrip("/") + "/", registry=files, retry_if_failed=_RETRIES)
    for name in files:
        try:
            store.fetch(name)
        except ValueError as error:  # pooch keeps no file of the wrong hash
            msg = f"{name} of {entry.name} has another sha256 than was pinned: broken off, or another file; {error}"
            raise ValueError(msg) from error
        except OSError as error:
            msg = f"{name} of {entry.name} could not be downloaded from {url} ({error}); call again to go on"
            raise OSError(msg) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(target)
    return target


def _row(name: str, folder: Path | None) -> dict[str, object]:
    entry = ENTRIES.get(name, Entry(name, "", 0, source="a folder of yours", licence="", citation=""))
    sizes = dict.fromkeys(("d_model", "n_layers", "n_heads"), 0) | {"n_tokens": max(entry.n_tokens, default=0)}
    sizes |= {key: value for key, value in entry.sizes.items() if key in sizes}
    note = entry.note
    if folder is not None:
        try:
            bundle = read_bundle(folder)
            sizes |= {key: getattr(bundle, key) for key in ("d_model", "n_layers", "n_heads")}
            sizes["n_tokens"] = len(bundle.vocab)
        except (OSError, ValueError) as error:  # a broken folder must not hide the others
            note = f"cannot be read: {error}"
    return {
        "name": name,
        "organ": entry.organ,
        "cells": entry.cells,
        **sizes,
        "at_hand": folder is not None,
        "folder": "" if folder is None else str(folder),
        "source": entry.source,
        "licence": entry.licence,
        "citation": entry.citation,
        "note": note,
    }

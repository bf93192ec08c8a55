"""Real data for examples and benchmarks.

One set comes with scanpy and is there offline. The others are read from the folder that the environment variable
`SCGPT_TL_DATA` names, or from this user's cache once they have a public address with a known sha256. `census` gives
cells of the CELLxGENE Census to train on, which stay where they are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scgpt_tl.genes.folders import DATA_VARIABLE, data_folder

if TYPE_CHECKING:
    from anndata import AnnData

    from scgpt_tl.engine.study import Source

__all__ = [
    "Entry",
    "census",
    "kang_ctrl12k",
    "kang_ifnb2000",
    "load",
    "locate",
    "mixology_3protocol",
    "pbmc3k",
    "pbmc68k_reduced",
    "pbmc_donor_a",
    "pbmc_sorted_ref",
]

#: Environment variable that names a folder with the files below.
DATA_FOLDER = DATA_VARIABLE


@dataclass(frozen=True)
class Entry:
    """Where a data set lies and where it comes from."""

    path: str
    """Relative to the data folder."""
    source: str
    """Study and public accession."""
    url: str | None = None
    sha256: str | None = None


REGISTRY: dict[str, Entry] = {
    "pbmc3k": Entry("pbmc3k/pbmc3k.h5ad", "10x Genomics, 3k PBMCs from a healthy donor (Cell Ranger 1.1.0), CC BY 4.0"),
    "pbmc_donor_a": Entry("pbmc_donorA/pbmc_donorA.h5ad", "10x Genomics, frozen PBMCs (donor A), CC BY 4.0"),
    "pbmc_sorted_ref": Entry(
        "pbmc_sorted_ref/pbmc_sorted_ref.h5ad", "Zheng et al. 2017, doi:10.1038/ncomms14049, 10x Genomics, CC BY 4.0"
    ),
    "kang_ctrl12k": Entry(
        "kang_ctrl12k/kang_ctrl12k.h5ad", "Kang et al. 2018, doi:10.1038/nbt.4042, GEO accession GSE96583"
    ),
    "kang_ifnb2000": Entry(
        "kang_ifnb2000/kang_ifnb2000.h5ad", "Kang et al. 2018, doi:10.1038/nbt.4042, GEO accession GSE96583"
    ),
    "mixology_3protocol": Entry(
        "mixology_3protocol/mixology_3protocol.h5ad",
        "Tian et al. 2019, doi:10.1038/s41592-019-0425-8, GEO accession GSE118767",
    ),
}


def pbmc68k_reduced() -> AnnData:
    """700 PBMCs x 765 genes, log-normalised, from scanpy's own files: needs no network.

    A sample of the 68k PBMCs of Zheng et al. 2017. scanpy's `.X` is scaled (negative values) and of no use to a model
    that bins expression, so `.X` here is its `.raw`: log-normalised values, not counts. Binning goes by rank, so these
    serve as well as counts do, but for ties.

    Returns
    -------
    `.X` sparse float32; `.obs` as scanpy has it: bulk_labels (10 types, given by correlation with sorted populations,
    not sorted themselves), louvain and more.
    """
    import anndata as ad
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # the file is older than today's format
        full = sc.datasets.pbmc68k_reduced()
    return ad.AnnData(full.raw.X.copy(), obs=full.obs.copy(), var=full.raw.var.copy())


def pbmc3k() -> AnnData:
    """2,700 PBMCs x 13,714 genes, counts; `.obs["cell_type"]`: 9 types, none for the 62 cells that failed QC."""
    return load("pbmc3k")


def pbmc_donor_a() -> AnnData:
    """2,896 PBMCs x 13,939 genes of one donor, counts, no labels."""
    return load("pbmc_donor_a")


def pbmc_sorted_ref() -> AnnData:
    """2,140 PBMCs x 8,863 genes, counts; `.obs["cell_type"]`: 9 types, sorted by antibody, so the truth."""
    return load("pbmc_sorted_ref")


def kang_ctrl12k() -> AnnData:
    """12,261 PBMCs x 1,287 genes of 8 lupus patients, counts; `.obs`: cell_type (8, the authors'), donor."""
    return load("kang_ctrl12k")


def kang_ifnb2000() -> AnnData:
    """1,941 PBMCs x 9,015 genes of that study, counts; `.obs["condition"]`: ctrl, or stim by interferon-beta."""
    return load("kang_ifnb2000")


def mixology_3protocol() -> AnnData:
    """1,394 cells x 889 genes of 3 lung cancer lines by 3 protocols, counts; `.obs`: cell_type (the truth), batch."""
    return load("mixology_3protocol")


def load(name: str) -> AnnData:
    """Read a data set by name, as the function of that name does.

    Raises
    ------
    KeyError
        On an unknown name.
    FileNotFoundError
        Where the file is neither in the data folder nor to be had from a pinned address; the message says where it
        comes from and where to put it.
    """
    import anndata as ad

    if name == pbmc68k_reduced.__name__:  # scanpy's, which has no file here
        return pbmc68k_reduced()
    return ad.read_h5ad(locate(name))


def locate(name: str) -> Path:
    """Path of a data set: the data folder first, then this user's cache, filled by pooch and checked by sha256.

    Raises
    ------
    KeyError, FileNotFoundError
        As `load`.
    """
    if name not in REGISTRY:
        msg = f"no file of a data set {name!r}; there are {sorted(REGISTRY)}, and load('pbmc68k_reduced') needs none"
        raise KeyError(msg)
    entry = REGISTRY[name]
    folder = data_folder()
    if folder is not None and (folder / entry.path).is_file():
        return folder / entry.path
    if entry.url is None or entry.sha256 is None:
        where = f"{folder} ({DATA_FOLDER})" if folder else f"a folder that the environment variable {DATA_FOLDER} names"
        msg = f"data set {name!r} has no download yet: put {entry.path} into {where}. It comes from {entry.source}"
        raise FileNotFoundError(msg)
    import pooch

    cache = Path(pooch.os_cache("scgpt_tl")) / "datasets" / entry.path
    return Path(pooch.retrieve(entry.url, f"sha256:{entry.sha256}", fname=cache.name, path=cache.parent))


def census(
    *,
    value_filter: str | None = None,
    organism: str = "homo_sapiens",
    uri: str | Path | None = None,
    census_version: str = "stable",
    layer: str = "raw",
    labels_key: str | None = None,
    batch_key: str | None = None,
    weight: float = 1.0,
    name: str = "census",
) -> Source:
    """Cells of the CELLxGENE Census as a study to train on; their counts are fetched while training, never whole.

    Needs the extra `census`. Training reads runs of neighbouring cells in any order: from a copy on a near disk it
    keeps up with a device, over the internet it waits.

    Parameters
    ----------
    value_filter
        Which cells, in SOMA's words: `"is_primary_data == True and tissue_general == 'blood'"`. Without
        `is_primary_data` a cell may come as often as there are data sets that hold it.
    organism
        "homo_sapiens" or "mus_musculus".
    uri
        A SOMA experiment, or a copy of the Census, of your own: a folder or an address.
    census_version
        A dated release, "stable" or "latest"; the manifest keeps the date that they mean today.
    layer
        Of the measurement "RNA".
    labels_key, batch_key
        Columns of its obs, e.g. "cell_type" and "dataset_id".
    weight
        How often an epoch shows each cell, on average.
    name
        Of the study.

    Returns
    -------
    A study for `tl.scgpt_pretrain` and `tl.scgpt_finetune`, alone or in a list with other data.

    Raises
    ------
    ImportError
        The extra is not installed.
    ValueError
        No cell passes the filter, or it is none.
    KeyError
        No such column or layer.

    Examples
    --------
    >>> blood = scgpt_tl.datasets.census(value_filter="is_primary_data == True and tissue_general == 'blood'")
    >>> scgpt_tl.tl.scgpt_pretrain(blood, out="blood-model", size="human")
    """
    from scgpt_tl._compat import need
    from scgpt_tl.tl._census import Experiment, census_source

    if uri is None:
        described = need("cellxgene_census", extra="census").get_census_version_description(census_version)
        census_version = str(described["release_build"])
    return census_source(
        value_filter=value_filter,
        experiment=Experiment("" if uri is None else str(uri), census_version, organism, layer),
        labels_key=labels_key,
        batch_key=batch_key,
        weight=weight,
        name=name,
    )

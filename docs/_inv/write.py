"""Write the intersphinx inventories: the names of other projects that our docstrings use, so that docs build offline.

`python docs/_inv/write.py` after editing the table; the .inv files are committed. Each line of the table is
`name role page`, where the anchor on the page is the name itself.
"""

from __future__ import annotations

import zlib
from pathlib import Path

NAMES = {
    "python": """
        bool class library/functions.html
        float class library/functions.html
        int class library/functions.html
        str class library/stdtypes.html
        dict class library/stdtypes.html
        list class library/stdtypes.html
        tuple class library/stdtypes.html
        pathlib.Path class library/pathlib.html
        os.PathLike class library/os.html
        typing.Any data library/typing.html
        typing.Literal data library/typing.html
        collections.abc.Callable class library/collections.abc.html
        collections.abc.Iterable class library/collections.abc.html
        collections.abc.Iterator class library/collections.abc.html
        collections.abc.Mapping class library/collections.abc.html
        collections.abc.Sequence class library/collections.abc.html
        FileNotFoundError exception library/exceptions.html
        ImportError exception library/exceptions.html
        KeyError exception library/exceptions.html
        TypeError exception library/exceptions.html
        ValueError exception library/exceptions.html
    """,
    "numpy": """
        numpy.ndarray class reference/generated/numpy.ndarray.html
        numpy.quantile function reference/generated/numpy.quantile.html
        numpy.random.Generator class reference/random/generator.html
    """,
    "scipy": """
        scipy.sparse.csr_matrix class reference/generated/scipy.sparse.csr_matrix.html
        scipy.sparse.csr_array class reference/generated/scipy.sparse.csr_array.html
    """,
    "pandas": """
        pandas.DataFrame class reference/api/pandas.DataFrame.html
        pandas.Series class reference/api/pandas.Series.html
        pandas.Categorical class reference/api/pandas.Categorical.html
    """,
    "anndata": """
        anndata.AnnData class generated/anndata.AnnData.html
        anndata.read_h5ad function generated/anndata.read_h5ad.html
    """,
    "scanpy": """
        scanpy.pp.highly_variable_genes function generated/scanpy.pp.highly_variable_genes.html
        scanpy.pp.neighbors function generated/scanpy.pp.neighbors.html
        scanpy.tl.leiden function generated/scanpy.tl.leiden.html
        scanpy.tl.umap function generated/scanpy.tl.umap.html
        scanpy.pl.embedding function generated/scanpy.pl.embedding.html
    """,
    "matplotlib": """
        matplotlib.axes.Axes class api/_as_gen/matplotlib.axes.Axes.html
    """,
    "torch": """
        torch.Tensor class tensors.html
        torch.nn.Module class generated/torch.nn.Module.html
    """,
}


def main() -> None:
    """Write one `.inv` per project, in version 2 of Sphinx's format."""
    for project, table in NAMES.items():
        rows = [line.split() for line in table.strip().splitlines()]
        lines = [f"{name} py:{role} 1 {page}#$ -\n" for name, role, page in sorted(rows)]
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        body = zlib.compress("".join(lines).encode(), 9)
        Path(__file__).with_name(f"{project}.inv").write_bytes(head.encode() + body)


if __name__ == "__main__":
    main()

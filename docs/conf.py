"""Sphinx settings. The docs build offline and without running a notebook: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))

import scgpt_tl  # noqa: E402 -- found through the line above

project = "scgpt_tl"
author = "the scgpt_tl developers"
copyright = f"2026, {author}"
version = release = scgpt_tl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_inv", "_templates", "**.ipynb_checkpoints"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed as they ran: what is shown is what was computed

autosummary_generate = True
autodoc_typehints = "signature"  # types and defaults stand in signatures, once
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

# The inventories are written by docs/_inv/write.py and hold only the names that we use.
intersphinx_mapping = {
    name: (url, f"_inv/{name}.inv")
    for name, url in {
        "python": "https://docs.python.org/3",
        "numpy": "https://numpy.org/doc/stable",
        "scipy": "https://docs.scipy.org/doc/scipy",
        "pandas": "https://pandas.pydata.org/docs",
        "anndata": "https://anndata.readthedocs.io/en/stable",
        "scanpy": "https://scanpy.readthedocs.io/en/stable",
        "matplotlib": "https://matplotlib.org/stable",
        "torch": "https://docs.pytorch.org/docs/stable",
    }.items()
}

html_theme = "sphinx_book_theme"
html_title = "scgpt_tl"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}


def setup(app: object) -> None:
    """A field's docstring is prose: napoleon, at 500, would take what stands before its first colon for a type."""
    whole: dict[str, list[str]] = {}

    def keep(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
        if what == "attribute":
            whole[name] = list(lines)

    def put_back(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:  # noqa: ARG001
        lines[:] = whole.pop(name, lines)

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", put_back, priority=600)

"""Where files come from: the user's own data folder, this package, and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "SCGPT_TL_DATA"


def data_folder() -> Path | None:
    """Folder that the environment variable SCGPT_TL_DATA names; None where it is unset or no folder."""
    value = os.environ.get(DATA_VARIABLE, "")
    folder = Path(value).expanduser()
    return folder if value and folder.is_dir() else None


def bundled_folder() -> Path:
    """Folder of the models that come with the package."""
    return Path(__file__).parents[1] / "_bundled"


def cache_folder() -> Path:
    """The user's cache of this package (not created here): downloads are kept in it."""
    import pooch

    return Path(pooch.os_cache("scgpt_tl"))

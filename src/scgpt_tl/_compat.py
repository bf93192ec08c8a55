"""What this installation can do: optional packages and compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


def need(package: str, *, extra: str | None = None) -> ModuleType:
    """Import an optional package.

    Parameters
    ----------
    package
        Name to import, dots allowed.
    extra
        The extra of scgpt_tl that brings it.

    Raises
    ------
    ImportError
        Where it is absent; the message is the line that installs it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        what = f"'scgpt_tl[{extra}]'" if extra else package.partition(".")[0]
        msg = f"{package} is needed here and is not installed: pip install {what}"
        raise ImportError(msg) from error


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` that caches where it can and compiles in memory where nothing may be written.

    numba refuses to decorate at all when neither the package's folder nor the user's cache is writable.
    """
    import numba

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return decorate

"""Rooms that open on use: a package's names are a table, and a name is imported when it is first asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def attach(
    package: str, homes: Mapping[str, str], *, rooms: Iterable[str] = (), also: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make `__getattr__`, `__dir__` and `__all__` of a package.

    Parameters
    ----------
    package
        The package's `__name__`.
    homes
        Public name -> module inside the package that defines it. The two must differ: importing a submodule sets it
        as an attribute of its package, so a function of the same name would vanish behind its own file.
    rooms
        Submodules that are public themselves.
    also
        Names that the package defines in its own file.

    Returns
    -------
    The three values, to be assigned to those names.

    Raises
    ------
    ValueError
        Where a name and its module are spelled alike.
    """
    for name, home in homes.items():
        if name == home:
            msg = f"{package}.{name} would be hidden by the module {home}.py that defines it: name the file _{home}.py"
            raise ValueError(msg)
    rooms = frozenset(rooms)
    public = sorted({*homes, *rooms, *also})

    def __getattr__(name: str) -> Any:  # noqa: N807 -- it becomes the package's own __getattr__
        if name in rooms:
            return import_module(f"{package}.{name}")  # the import itself sets the attribute
        if name not in homes:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)  # asked for once: the next access never comes here
        return value

    def __dir__() -> list[str]:  # noqa: N807 -- it becomes the package's own __dir__
        return public

    return __getattr__, __dir__, public

"""How `lib` and `book` open: a module is loaded when one of its names is first asked for.

The table of a door says where each name is: room -> module -> names, as `{"lib.devices": {"cluster": "Cluster"}}`.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType

Table = Mapping[str, Mapping[str, str]]


def homes(table: Table) -> dict[str, str]:
    """Name -> the module that holds it."""
    return {
        name: f"{room}.{module}"
        for room, modules in table.items()
        for module, names in modules.items()
        for name in names.split()
    }


class _Door(ModuleType):
    """A package whose names are never hidden by a room that is called alike, as `guest` would be by `lib.guest`."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.__all__ or not isinstance(value, ModuleType):  # Python sets a room when it is first loaded
            super().__setattr__(name, value)


def door(package: str, table: Table) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of `package`. AttributeError names all that it has."""
    home_of = homes(table)
    names = sorted(home_of)

    def find(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no {name!r}; it has {', '.join(names)}")
        return getattr(import_module(home_of[name]), name)

    sys.modules[package].__class__ = _Door
    return names, find, lambda: names

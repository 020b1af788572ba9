"""The guest's own modules: each device imports them anew, so their globals are the device's own.

Scripts keep their process groups in globals. Two devices in one module would overwrite each other's.
"""

import importlib
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from lib.devices.engine.wording import is_the_readers
from lib.guest import private_python
from lib.guest.callers import is_a_guests

# Packages that keep one state for the process in their modules. Each device imports them anew.
SINGLETONS = ("hydra", "omegaconf", "tqdm", "absl", "accelerate", "fire", "tyro", "draccus")


class Modules:
    """Owner of the modules under the folder `root`, of the packages `own`, and of `__main__`. It also stands among
    Python's finders, to see which modules these are."""

    def __init__(self, root: str | None, own: Iterable[str], size: int):
        self._root = f"{Path(root).resolve()}/" if root else None
        self._own = frozenset(own)
        self._names = {"__main__", "__mp_main__"} if root else set()
        self._mine: list[dict[str, types.ModuleType]] = [{} for _ in range(size)]
        self._caller: dict[str, types.ModuleType] | None = None

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Asked by Python at every import. None: the other finders are asked."""
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or not self._is_own(name, spec.origin or next(iter(spec.submodule_search_locations or ()), "")):
            return None
        self._names.add(name)
        return spec

    def take_up(self, rank: int) -> None:
        """The modules of device `rank` are those of the process."""
        if self._caller is None:
            self._begin()
        sys.modules.update(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """They are kept, and the next device finds none."""
        names = self._names
        if not names:
            return
        self._mine[rank] = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
        private_python.forget_import_locks(names)

    def give_back(self, failed: bool) -> None:
        """The modules are those from before; the guest's are gone."""
        if self._caller is None:
            return
        sys.meta_path.remove(self)
        for name in self._names:
            sys.modules.pop(name, None)
        sys.modules.update(self._caller)

    def _begin(self) -> None:
        sys.meta_path.insert(0, self)
        mine = {name for name, module in list(sys.modules.items()) if self._is_own(name, _file(module))}
        self._names |= mine
        self._caller = {
            name: sys.modules.pop(name) for name in mine | {"__main__", "__mp_main__"} if name in sys.modules
        }
        if not self._root:
            sys.modules["__main__"] = self._caller["__main__"]

    def _is_own(self, name: str, file: str) -> bool:
        if name.partition(".")[0] in self._own:
            return True
        installed = "/site-packages/" in file  # an environment may lie inside of the project
        return bool(self._root) and file.startswith(self._root) and is_the_readers(file) and not installed


def project_of(file: Path) -> Path:
    """The folder of the project that the script `file` belongs to: the next one above that says so; else its own."""
    signs = (".git", "pyproject.toml", "setup.py", "setup.cfg")
    return next((folder for folder in file.parents if any((folder / sign).exists() for sign in signs)), file.parent)


def run_as(path: str, name: str) -> types.ModuleType:
    """Executes the file at `path` as the module `name` of this device, e.g. "__main__"."""
    source = Path(path).read_bytes()
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = path
    exec(compile(source, path, "exec"), vars(module))
    return module


@dataclass(frozen=True)
class Main:
    """What a program runs as `__main__`: the file, and the name of the module where it is run by its name (`-m`)."""

    file: str
    name: str | None


def main_of(module: types.ModuleType | None) -> Main | None:
    """That of a process whose `__main__` is `module`. None where it is no program of the reader's, as in a notebook."""
    file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    return Main(file, spec and spec.name) if file and is_a_guests(file) else None


def found(module: str, name: str, main: Main | None) -> Any:
    """What a device finds under this name when it imports the module for itself, as a spawned process does: its
    `__main__` is the caller's, `main`, run again under another name."""
    if module not in ("__main__", "__mp_main__"):
        place: Any = importlib.import_module(module)
    elif main is None:
        place = sys.modules["__main__"]
    elif main.name:
        place = importlib.import_module(main.name)  # it runs by its name, as `-m package.train`
    elif "__mp_main__" in sys.modules:
        place = sys.modules["__mp_main__"]
    else:
        place = sys.modules["__main__"] = run_as(main.file, "__mp_main__")
    for part in name.split("."):
        place = getattr(place, part)
    return place


def _file(module: types.ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else next(iter(getattr(module, "__path__", ())), "")

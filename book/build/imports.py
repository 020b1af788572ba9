"""Which files a chapter's outputs come from: found by reading its imports, without running anything.

A door (the `__init__` of a package, as `lib` or `book`) only passes names on, by its imports or by its table. So
`from book import draw_bars` needs the file that defines `draw_bars`, and none of the other pictures.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lib.door import homes as homes_in

OURS = ("lib", "book")
TABLE = "ROOMS"  # of a door that loads lazily, see `lib.door`


class House:
    """The modules below `root`, and what each of them needs."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self._tree = cache(lambda file: ast.parse(file.read_text("utf-8")))
        self.direct = cache(lambda file: frozenset(self._needs(self._tree(file), file.parent)))  # what a file names
        self._homes = cache(self._read_door)

    def file(self, module: str) -> Path | None:
        """The file of a module or a package; None if it is not one of ours."""
        parts = module.split(".")
        if parts[0] not in OURS or not all(part.isidentifier() for part in parts):  # "lib." is the name of no module
            return None
        path = self.root.joinpath(*parts)
        return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)

    def named(self, source: str, folder: Path) -> set[Path]:
        """The files of the house that the program itself imports."""
        return {need for need in self._needs(ast.parse(source), folder) if isinstance(need, Path)}

    def behind(self, source: str, folder: Path) -> tuple[set[Path], set[str]]:
        """What the program `source`, run in `folder`, needs: files of the house, and names of other packages."""
        files, others = set(), set()
        waiting = list(self._needs(ast.parse(source), folder))
        while waiting:
            need = waiting.pop()
            if isinstance(need, str):
                others.add(need)
            elif need not in files:
                files.add(need)
                waiting += self.direct(need) if need.suffix == ".py" else []
        return files, others

    def _needs(self, tree: ast.Module, folder: Path) -> Iterator[Path | str]:
        """What one program names: a path for a file of ours, a word for a package of others."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for one in node.names:
                    yield from self._everything(one.name)
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    raise ValueError(f"'from {'.' * node.level}{node.module or ''} import': name the whole module")
                for one in node.names:
                    yield from self._name(node.module, one.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from self._text(node.value, folder)

    def behind_name(self, module: str, name: str) -> Path | str:
        """The file that defines a name which `module` offers."""
        return next(self._name(module, name))

    def _name(self, module: str, name: str) -> Iterator[Path | str]:
        """`from module import name`"""
        if name == "*":
            yield from self._everything(module)
        elif home := self._homes(module).get(name):  # before a room of this name, as `lib.guest`
            yield from self._name(*home)
        elif inner := self.file(f"{module}.{name}"):
            yield inner
        else:
            yield self.file(module) or module.split(".")[0]

    def _everything(self, module: str) -> Iterator[Path | str]:
        """`import module`: of a door, all that it passes on."""
        yield self.file(module) or module.split(".")[0]
        for home in self._homes(module).values():
            yield from self._name(*home)

    def _read_door(self, module: str) -> dict[str, tuple[str, str]]:
        """The names that a package passes on, with the module and the name they have there."""
        file = self.file(module)
        if file is None or file.name != "__init__.py":
            return {}
        homes = {}
        for node in self._tree(file).body:
            if isinstance(node, ast.ImportFrom):
                homes |= {one.asname or one.name: (node.module, one.name) for one in node.names if one.name != "*"}
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == TABLE:
                table = homes_in(ast.literal_eval(node.value))
                homes |= {name: (home, name) for name, home in table.items()}
        return homes

    def _text(self, text: str, folder: Path) -> Iterator[Path]:
        """A text that is the name of a module (of a program to start) or of a file beside the program."""
        if len(text) > 200 or not text.isprintable() or "." not in text:
            return
        path = (folder / text).resolve()
        if module := self.file(text):
            yield module
        elif path.is_relative_to(self.root) and path.is_file():
            yield path

"""Showing the source of `lib` in a chapter: the code that runs, never a copy of it."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Source:
    """The source text of functions or classes, with the file it stands in; a notebook shows it highlighted."""

    file: str
    code: str

    def _repr_markdown_(self) -> str:
        return f"`{self.file}`\n\n```python\n{self.code}\n```"

    def __repr__(self) -> str:
        return f"# {self.file}\n{self.code}"


def show_source(*objects: Any) -> Source:
    """The source of functions, classes or modules of one file of `lib`, in the order given.

    Raises TypeError for what has no Python source (a number, a built-in function), ValueError for objects of several
    files: show them one by one.
    """
    objects = tuple(map(inspect.unwrap, objects))  # of what a decorator has wrapped, what it wraps
    files = {inspect.getsourcefile(thing) for thing in objects}
    if len(files) != 1:
        raise ValueError(f"show_source takes objects of one file, these come from {len(files)}: show them one by one")
    file = Path(files.pop()).resolve()
    inside = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else Path(file.name)
    return Source(inside.as_posix(), "\n\n".join(inspect.getsource(thing).rstrip() for thing in objects))

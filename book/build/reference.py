"""The reference, written from the sources: a page for each module of `lib` and `book`, and the index of all of them.

The pages go to `reference/`, which is not committed. Sphinx fills each with the docstrings of its module.
"""

import ast
import json
from collections import defaultdict
from functools import cache
from pathlib import Path

from book.build.execute import notebooks, read
from book.build.imports import OURS, House
from book.build.record import ROOT, code, program

FOLDER = ROOT / "reference"
MOST_USED = 20
# Imports go down: to the left.
ROOMS = ("lib.devices", "lib.parallel", "lib.costs", "lib.real", "lib.guest", "lib.examples", "lib", "book")


def module_of(file: Path, root: Path = ROOT) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module with its file, in reading order: rooms as their names sort, `lib` before `book`. A package's
    `__init__` only passes names on, and has no page."""
    files = [file for part in OURS for file in sorted((root / part).rglob("*.py")) if file.name != "__init__.py"]
    return {module_of(file, root): file for file in files}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def for_table(text: str) -> str:
    """`text` in a cell: no bar ends the cell, and no star begins an emphasis. In code a star needs no escape."""
    parts = text.replace("|", r"\|").split("`")
    parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
    return "`".join(parts)


def front_matter(path: Path) -> dict:
    return read(path)["metadata"].get("book", {})


def shown_in(name: str) -> list[Path]:
    """The chapters whose front matter names the file."""
    return [path for path in notebooks() if name in front_matter(path).get("lib", [])]


def page(module: str, file: Path) -> str:
    name = file.relative_to(ROOT).as_posix()
    about = f"{module}: {first_line(tree(file))}"
    about = f"{about} With its source." if len(about) <= 180 else f"{about[:190].rsplit(' ', 1)[0]} ..."
    chapters = ", ".join(f"{{doc}}`/chapters/{path.stem}`" for path in shown_in(name))
    anchor = "file-" + module.replace(".", "-")
    return f"""---
orphan: true
myst:
  html_meta:
    description: {json.dumps(about, ensure_ascii=False)}
---

# {module}

{{doc}}`Reference </reference>` · [{name}]({anchor}){" · explained in " + chapters if chapters else ""}

```{{eval-rst}}
.. automodule:: {module}
   :members:
   :show-inheritance:
```

({anchor})=
## The file

```{{listing}} {name}
```
"""


def most_used() -> list[tuple[str, str]]:
    """The names of `lib` that most chapters import, with the module that defines each."""
    house, chapters = House(ROOT), defaultdict(set)
    for path in notebooks():
        for node in ast.walk(ast.parse("\n".join(map(program, code(read(path)))))):
            if isinstance(node, ast.ImportFrom) and node.module == "lib":
                for one in node.names:
                    chapters[one.name].add(path)
    names = sorted(chapters, key=lambda name: (-len(chapters[name]), name))[:MOST_USED]
    return [(name, module_of(house.behind_name("lib", name))) for name in names]


def place(room: str) -> int:
    """Which of ROOMS a room belongs to. Raises ValueError for one that belongs to none."""
    # The door of lib is a room for what stands beside the rooms; it does not take in what a new room holds.
    found = [n for n, name in enumerate(ROOMS) if room == name or (name != "lib" and room.startswith(f"{name}."))]
    if not found:
        raise ValueError(f"{room} belongs to none of {', '.join(ROOMS)}: say in {__name__} where it stands")
    return found[0]


def index() -> str:
    every = modules()
    lines = ["## What the chapters use most", "", "| Name | Does |", "|---|---|"]
    for name, module in most_used():
        found = [node for node in tree(every[module]).body if getattr(node, "name", "") == name]
        said = first_line(found[0]) if found else first_line(tree(every[module]))
        lines.append(f"| {{py:obj}}`{name} <{module}.{name}>` | {for_table(said)} |")
    rooms = defaultdict(list)
    for module in every:
        rooms[module.rpartition(".")[0]].append(module)
    for room in sorted(rooms, key=lambda room: (place(room), room)):
        door = ROOT.joinpath(*room.split("."), "__init__.py")
        lines += ["", f"## {room}", "", first_line(tree(door)), "", "| Module | Holds |", "|---|---|"]
        for module in rooms[room]:
            said = for_table(first_line(tree(every[module])))
            lines.append(f"| {{doc}}`{module.rpartition('.')[2]} <reference/{module}>` | {said} |")
    return "\n".join(lines) + "\n"


def generate() -> None:
    """Write what changed, remove what has no module any more."""
    texts = {f"{module}.md": page(module, file) for module, file in modules().items()} | {"index.inc": index()}
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        file = FOLDER / name
        if not file.is_file() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")

"""The house: imports go down only, and never in a circle, not even one inside a function or behind TYPE_CHECKING."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up.
FLOORS = ("lib.devices", "lib.parallel", "lib.costs", "lib.real", "lib.guest", "lib.examples", "book")
# What stands beside the rooms: a command on the floor of what it runs, what the door and all rooms use under all.
BESIDE = {"lib.simulate": "lib.guest"} | dict.fromkeys(("lib.command", "lib.door", "lib.partners"), "lib.devices")
MOST_LINES = 200  # of a file of lib: one idea


def name_of(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path, module: str, modules: set[str]) -> Iterator[str]:
    """The modules among `modules` that `file` imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if file.stem == "__init__" else module.rpartition(".")[0]
            above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            source = ".".join(filter(None, [above if node.level else "", node.module]))
            named = [f"{source}.{alias.name}" for alias in node.names]  # a module, or a name in one
        elif isinstance(node, ast.Call) and _is_import_module(node):
            named = [node.args[0].value]
        else:
            continue
        for name in named:
            found = name if name in modules else name.rpartition(".")[0]
            if found in modules and found != module:
                yield found


def _is_import_module(call: ast.Call) -> bool:
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return called in ("import_module", "__import__") and bool(call.args) and isinstance(call.args[0], ast.Constant)


def graph_of(root: Path) -> dict[str, set[str]]:
    """Module -> the modules it imports, for all of lib and book."""
    files = {name_of(file, root): file for top in ("lib", "book") for file in sorted((root / top).rglob("*.py"))}
    return {module: set(imports_of(file, module, set(files))) for module, file in files.items()}


def floor_of(module: str) -> int:
    """The height of a module; the door `lib` itself stands above all of lib, and below book."""
    module = BESIDE.get(module, module)
    for height, floor in enumerate(FLOORS):
        if module == floor or module.startswith(f"{floor}."):
            return height
    if module == "lib":
        return FLOORS.index("book") - 0.5
    raise ValueError(f"{module} is on no floor: the floors are {', '.join(FLOORS)}")


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    # Programs in lib/examples are readers' programs, so they go through the readers' door.
    return [
        f"{module} imports {other}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if floor_of(other) > floor_of(module) and not (module.startswith("lib.examples") and other == "lib")
    ]


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


@cache
def house() -> dict[str, set[str]]:
    return graph_of(ROOT)


def test_imports_go_down():
    assert not arrows_up(house())


def test_no_circle():
    assert not circle_in(house())


def test_a_file_of_lib_can_be_read_at_one_go():
    lines = {file: len(file.read_text("utf-8").splitlines()) for file in (ROOT / "lib").rglob("*.py")}
    assert not [f"{file.relative_to(ROOT)}: {n} lines" for file, n in lines.items() if n > MOST_LINES]


def test_the_whole_house_is_seen():
    graph = house()
    assert {floor_of(module) for module in graph} >= set(range(len(FLOORS)))
    assert "lib.devices.group" in graph["lib.devices.cluster"]  # `from x import y`
    assert "lib.devices.rooted" in graph["lib.devices.group"]  # `from package import module`


BROKEN = {
    "at the top": "from lib.parallel.b import y\n",
    "as a module": "import lib.parallel.b\n",
    "from the package": "from lib.parallel import b\n",
    "relative": "from ..parallel import b\n",
    "in a function": "def f():\n    from lib.parallel.b import y\n    return y\n",
    "behind TYPE_CHECKING": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lib.parallel.b import y\n",
    "by name": "from importlib import import_module\ndef f():\n    return import_module('lib.parallel.b')\n",
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_house_is_noticed(way, tmp_path):
    for package in ("lib", "lib/devices", "lib/parallel", "book"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "lib/devices/a.py").write_text(BROKEN[way])
    (tmp_path / "lib/parallel/b.py").write_text("from lib.devices.a import x\ny = x\n")
    graph = graph_of(tmp_path)
    assert arrows_up(graph) == ["lib.devices.a imports lib.parallel.b"]
    assert set(circle_in(graph)) == {"lib.devices.a", "lib.parallel.b"}


def test_lib_must_not_import_book(tmp_path):
    for package in ("lib", "lib/examples", "book"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "lib/examples/a.py").write_text("from book import explore\nfrom lib import Cluster\n")
    assert arrows_up(graph_of(tmp_path)) == ["lib.examples.a imports book"]

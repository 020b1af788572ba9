"""The record that stands beside a chapter: what its stored outputs were made with.

`chapters/executed/NAME.txt` has a line for the cells, one for the outputs, one for each file of `lib` and `book` that
the chapter imports, directly or not, and one for each other package. While all of them are true, nobody has to execute
the chapter again to show it. It is a file of its own, a line for each thing, so that two people who executed the same
chapter merge a list and not a notebook.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from book.build.imports import House

ROOT = Path(__file__).resolve().parents[2]
HEAD = "# `make outputs` writes this: what the stored outputs of {name} were made with.\n"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()[:16]


@cache
def house(root: Path) -> House:
    return House(root)


@cache
def pins(root: Path) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (root / "requirements.txt").read_text("utf-8").splitlines())
    found = (line.split("==") for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in found}


def code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def program(cell: dict) -> str:
    """The cell's source, without the lines that are for IPython and not for Python; empty if it is no Python."""
    lines = "".join(cell["source"]).splitlines()
    text = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
    try:
        ast.parse(text)
    except SyntaxError:  # as `draw_bars?` asks IPython for help
        return ""
    return text


def stands_for(path: Path, notebook: dict, root: Path = ROOT) -> dict[str, str]:
    """What a record of this notebook has to say now: fingerprint or version of each thing by its name."""
    cells = code(notebook)
    files, packages = house(root).behind("\n".join(map(program, cells)), path.parent)
    result = {
        "cells": digest(json.dumps(["".join(cell["source"]) for cell in cells])),
        "outputs": digest(json.dumps([cell["outputs"] for cell in cells], sort_keys=True)),
    }
    result |= {file.relative_to(root.resolve()).as_posix(): file_digest(file) for file in sorted(files)}
    named = {package: pins(root).get(package.lower().replace("_", "-")) for package in sorted(packages)}
    return result | {package: version for package, version in named.items() if version}


def record_of(path: Path) -> Path:
    chapters = path.parent if path.parent.name == "chapters" else path.parent / "chapters"
    return chapters / "executed" / f"{path.stem}.txt"


def write(path: Path, notebook: dict, record: Path, root: Path = ROOT) -> None:
    lines = [f"{value}  {name}\n" for name, value in stands_for(path, notebook, root).items()]
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(HEAD.format(name=path.name) + "".join(lines), "utf-8")


def said_by(record: Path) -> list[list[str]]:
    """The lines of a record: [fingerprint or version, name]."""
    return [line.split("  ", 1) for line in record.read_text("utf-8").splitlines() if not line.startswith("#")]


def pictures_changed(path: Path, notebook: dict, record: Path, root: Path = ROOT) -> bool:
    """Whether a file that draws is another one than when the outputs of `notebook` were made."""
    then = {line[-1]: line[0] for line in said_by(record)} if record.is_file() else {}
    now = stands_for(path, notebook, root)
    return any(name.startswith("book/pictures/") and now[name] != then[name] for name in now.keys() & then.keys())


def why_stale(path: Path, notebook: dict, record: Path, root: Path = ROOT) -> str:
    """The reason why the outputs of `notebook` cannot be shown, in words; empty if the record is true."""
    if not record.is_file():
        return "it has no record of an execution"
    lines = said_by(record)
    if any(len(line) != 2 for line in lines):
        return "its record cannot be read"
    said = {name: value for value, name in lines}
    now = stands_for(path, notebook, root)
    if said.get("cells") != now["cells"]:
        return "its cells changed"
    if said.get("outputs") != now["outputs"] or any(cell["execution_count"] is None for cell in code(notebook)):
        return "its outputs are not those that were executed"
    reasons = [f"{name} changed" for name in now if name in said and said[name] != now[name]]
    reasons += [f"it needs {name} now" for name in now if name not in said]
    reasons += [f"it needs {name} no more" for name in said if name not in now]
    if not reasons and len(lines) != len(said):
        return "its record says things twice"  # as after a merge
    return reasons[0] + (f", and {len(reasons) - 1} more" if reasons[1:] else "") if reasons else ""

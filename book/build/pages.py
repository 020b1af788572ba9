"""`make book`: the stored outputs where their record is true, fresh ones where not, and Sphinx over all of it.

Fresh outputs go to `_build/executed`, with a record of their own; `make outputs` stores them for good.
Sphinx reads again only the pages that changed. What it knows is kept from the last build that ended well, so after a
failure or an interruption the same pages are read, and complain, again.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import yaml

from book.build import address, reference
from book.build.execute import execute_all, notebooks, read
from book.build.record import ROOT, code, record_of, why_stale, write

BUILD = ROOT / "_build"
FRESH = BUILD / "executed"
HTML = BUILD / "html"
KNOWN = BUILD / ".doctrees"  # what Sphinx knows about the pages
ENVIRONMENT = KNOWN / "environment.pickle"
GOOD = BUILD / "environment.good"  # ENVIRONMENT as the last good build left it
KEY = BUILD / "made-with"  # what all pages of the last good build were made with
UNFINISHED = BUILD / "unfinished"  # there while a build runs, and after one that did not end well

# The book's address without a page's name. Jupyter Book writes no icon here, and the browser would ask for one in vain.
INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="icon" href="_static/favicon.svg">
<meta http-equiv="Refresh" content="0; url={first}.html"></head>
<body><a href="{first}.html">{title}</a></body></html>
"""

# A change in any of these may change every page.
FILES = ("_config.yml", "_toc.yml", "references.bib", "requirements.txt")
FOLDERS = ("_ext", "_templates", "_assets", "book/build")


def fresh(path: Path) -> Path:
    """Where the outputs of a notebook stand that were executed for this build only."""
    return FRESH / path.name


def store(path: Path, text: str) -> str:
    fresh(path).parent.mkdir(parents=True, exist_ok=True)
    fresh(path).write_text(text, "utf-8")
    write(path, json.loads(text), fresh(path).with_suffix(".txt"))
    return "executed"


def shown(path: Path) -> dict:
    """The notebook as the page shows it: its own text and cells, and fresh outputs where there are any."""
    notebook = read(path)
    try:
        cells = code(read(fresh(path)))
    except (OSError, ValueError):  # nothing was executed, or it was interrupted while it was written
        return notebook
    if len(cells) == len(code(notebook)):
        for cell, executed in zip(code(notebook), cells, strict=True):
            cell["outputs"], cell["execution_count"] = executed["outputs"], executed["execution_count"]
    return notebook


def execute_stale() -> bool:
    """Execute what has neither true stored outputs nor true fresh ones. False if a cell failed."""
    stale = {}
    for path in notebooks():
        reason = why_stale(path, read(path), record_of(path))
        if not reason:
            fresh(path).unlink(missing_ok=True)
        elif why_stale(path, shown(path), fresh(path).with_suffix(".txt")):
            stale[path] = reason
    print(f"Executing {len(stale)} of {len(notebooks())} chapters" + (":" if stale else "; all have true outputs."))
    return execute_all(stale, store)


def made_with() -> str:
    digest = hashlib.sha256(str(address.repository()).encode())
    files = {file for name in (*FILES, *FOLDERS) for file in (ROOT / name, *(ROOT / name).rglob("*"))}
    for file in sorted(file for file in files if file.is_file() and file.suffix != ".pyc"):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def prepare(key: str) -> None:
    """Bring `_build` into a state from which Sphinx makes every page right, and mark it as unfinished."""
    if UNFINISHED.exists():
        print("The last build did not end well; its pages are made again.")
    BUILD.mkdir(exist_ok=True)
    UNFINISHED.touch()
    if GOOD.exists() and KEY.exists() and KEY.read_text() == key:
        KNOWN.mkdir(exist_ok=True)
        shutil.copyfile(GOOD, ENVIRONMENT)
    else:
        for folder in (KNOWN, HTML):
            shutil.rmtree(folder, ignore_errors=True)
        KEY.unlink(missing_ok=True)


class Progress:
    """Sphinx's report, shortened to what it does and how far it is: one line that grows, or a line for each fifth."""

    PLAIN = re.compile(r"\x1b\[[\d;]*m|\x1b\[K")
    STEP = re.compile(r"(reading sources|writing output)\.\.\. \[ *(\d+)%\]")
    NAMES = {"reading sources": "Reading pages", "writing output": "Writing pages"}

    def __init__(self, terminal):
        self.terminal, self.said = terminal, ("", -1)

    def write(self, text: str) -> None:
        for name, percent in self.STEP.findall(self.PLAIN.sub("", text)):
            step = (name, int(percent) if self.terminal.isatty() else int(percent) // 20 * 20)
            if step != self.said:
                end = "\r" if self.terminal.isatty() and int(percent) < 100 else "\n"
                self.terminal.write(f"{self.NAMES[name]}: {step[1]:3d} %{end}")
                self.terminal.flush()
            self.said = step

    def flush(self) -> None:
        self.terminal.flush()

    def isatty(self) -> bool:
        return False


def sphinx() -> bool:
    from jupyter_book.sphinx import build_sphinx

    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    overrides = {
        "external_toc_path": str(ROOT / "_toc.yml"),
        "latex_individualpages": False,
        "nitpicky": True,  # a reference to nothing is an error
        **address.sphinx_settings(),
    }
    with redirect_stdout(Progress(sys.stdout)):
        failed = build_sphinx(
            ROOT,
            HTML,
            noconfig=True,
            path_config=ROOT / "_config.yml",
            confoverrides=overrides,
            warningiserror=True,
            keep_going=True,
            tags=["published"] if address.repository() else [],  # of what is shown only where the book has an address
            jobs=min(processes, 4),
        )
    return not failed


def build() -> bool:
    """The pages, with the outputs that there are."""
    key = made_with()
    prepare(key)
    reference.generate()
    if not sphinx():
        print("The book was not built; the messages above say why.")
        return False
    title, first = address.settings()["title"], yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))["root"]
    replace_with(HTML / "index.html", INDEX.format(title=title, first=first).encode())
    replace_with(GOOD, ENVIRONMENT.read_bytes())
    replace_with(KEY, key.encode())
    UNFINISHED.unlink()
    return True


def replace_with(file: Path, content: bytes) -> None:
    """At once: an interruption leaves the old file or the new one."""
    half = file.with_suffix(".half")
    half.write_bytes(content)
    half.replace(file)


def main() -> int:
    if not execute_stale():
        print("The book was not built: the cell above fails.")
        return 1
    return 0 if build() else 1


if __name__ == "__main__":
    sys.exit(main())

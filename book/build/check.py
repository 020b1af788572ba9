"""`make check CHAPTER=name`: the tests of one idea, for the people who write it. `make test` has the last word.

Nothing is listed by hand. A chapter's front matter names its files of `lib`; its cells import its pictures and its
exercises. A room of `lib/parallel` belongs to the chapter that names most of its files, every other file to the first
chapter that names or imports it. The tests mirror `lib` and `book`. Beside them, the chapter's page is tried in the
browser; and its cells run and are compared with the stored outputs, unless the record says that they ran with these
very files.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from book.build.execute import notebooks, read
from book.build.record import ROOT, code, house, program, record_of, why_stale

TESTS = ROOT / "tests"
PLUGINS = ["-p", "book.build.order", "-p", "book.build.slowest", "-p", "book.build.kernels"]
PYTEST = [sys.executable, "-m", "pytest", "-q", *PLUGINS, "-n", "2"]


@cache
def files_of(chapter: Path) -> set[Path]:
    """The files of which the chapter speaks: those of its front matter, its pictures and its exercises."""
    notebook = read(chapter)
    named = {ROOT / name for name in notebook["metadata"]["book"].get("lib", [])}
    imported = house(ROOT).named("\n".join(map(program, code(notebook))), chapter.parent)
    pages = (ROOT / "book" / "pictures", ROOT / "book" / "exercises")
    return named | {file for file in imported if file.parent in pages}


@cache
def in_reading_order() -> list[Path]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    files = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    return [path for name in files if (path := ROOT / f"{name}.ipynb").is_file()]


def mirror(file: Path) -> Path:
    """The folder of tests that mirrors the folder of a file: tests/parallel/gpt for lib/parallel/gpt."""
    parts = file.relative_to(ROOT).parts[:-1]
    return TESTS.joinpath(*(parts[1:] if parts[0] == "lib" else parts))


@cache
def owner(thing: Path) -> Path | None:
    """The chapter that a room of lib/parallel, or a file elsewhere, belongs to."""
    if thing.is_dir():
        return max(in_reading_order(), key=lambda chapter: sum(file.parent == thing for file in files_of(chapter)))
    return next(chapter for chapter in in_reading_order() if thing in files_of(chapter))


def tests_of(chapter: Path) -> list[Path]:
    found = set()
    for file in files_of(chapter):
        tests = sorted(mirror(file).glob("test_*.py"))
        if file.parent.parent == ROOT / "lib" / "parallel":
            found |= set(tests) if owner(file.parent) == chapter else set()
        elif owner(file) == chapter:
            # Those named after the file; if there are none, those that import it.
            named = {test for test in tests if file.stem in test.stem.split("_")}
            found |= named or {test for test in tests if file in house(ROOT).direct(test)}
    return sorted(found)


def chosen(chapter: Path, tests: list[Path], stale: str) -> list[str]:
    """What pytest is asked to run. One run for all, since a start costs ten seconds."""
    page = chapter.relative_to(ROOT).with_suffix("")
    cells = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=220", str(chapter)] if stale else []
    # Of the tests in the browser, those of this page, and of the page on which all kinds of elements stand together.
    return [*cells, *map(str, tests), str(TESTS / "browser"), "-k", f"not browser or page_with_everything or {page}"]


def main() -> int:
    chapters = {path.stem: path for path in notebooks()}
    if len(sys.argv) != 2 or sys.argv[1] not in chapters:
        print(f"Say which chapter: make check CHAPTER=name, with one of {', '.join(chapters)}")
        return 1
    chapter = chapters[sys.argv[1]]
    tests, stale = tests_of(chapter), why_stale(chapter, read(chapter), record_of(chapter))
    print(f"{chapter.stem}: its cells " + (f"run again: {stale}" if stale else "have run with these very files"))
    print("Its page, and", *(str(test.relative_to(ROOT)) for test in tests), "")
    return 1 if subprocess.run([*PYTEST, *chosen(chapter, tests, stale)], cwd=ROOT).returncode else 0


if __name__ == "__main__":
    sys.exit(main())

"""What every later chapter has to keep: files that belong together stay together."""

import json
import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

import pytest
import yaml

from book.build.execute import normal_form, notebooks
from book.pictures.kit.language import PALETTE

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
FRONT_MATTER = {"description": str, "objectives": list, "prerequisites": list, "minutes": int, "lib": list}
each_notebook = pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_the_book_has_chapters():
    assert CHAPTERS


@each_notebook
def test_every_cell_was_executed_in_order(path):
    # nbval skips a cell without a count in silence.
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert counts


@each_chapter
def test_the_story_begins_below_its_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "_ext")
    from notebooks import LONG, only_imports

    first = "".join(code_cells(path)[0]["source"])
    assert len(first.splitlines()) <= LONG or only_imports(first), "the page folds a cell of imports and settings only"


@each_notebook
def test_outputs_are_clean(path):
    for cell in code_cells(path):
        stored = json.dumps(cell["outputs"])
        assert '"stderr"' not in stored
        assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work|farm|usr|opt)/", stored)
        assert "site-packages" not in stored
        assert not re.search(r" at 0x[0-9a-f]{6,}", stored), "an address changes with every run"
        assert not (cell["source"] and "".join(cell["source"]).rstrip().endswith(";"))


@each_notebook
def test_is_stored_in_normal_form(path):
    text = path.read_text("utf-8")
    assert text == normal_form(json.loads(text)), "run `make outputs`"


@each_chapter
def test_front_matter_is_complete(path):
    notebook = json.loads(path.read_text("utf-8"))
    front = notebook["metadata"].get("book", {})
    assert {key: type(value) for key, value in front.items()} == FRONT_MATTER
    assert 40 <= len(front["description"]) <= 200
    assert front["description"].endswith(".")
    assert front["objectives"]
    assert front["lib"]
    for file in front["lib"]:
        assert (ROOT / file).is_file(), file
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")


@each_chapter
def test_a_chapter_sums_up_in_five_lines_before_it_asks(path):
    text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"])
    before, asks, _ = text.partition("\n## Exercises\n")
    lines = re.findall(r"^(\d)\. ", before.partition("\n## In five lines\n")[2], re.M)
    assert lines == (list("12345") if asks else [])


@each_chapter
def test_a_chapter_names_the_files_that_it_shows(path):
    notebook = json.loads(path.read_text("utf-8"))
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    plain = ["".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
    shown = {match[1] for match in map(re.compile(r"# (lib/\S+\.py)$", re.M).match, plain) if match}
    assert shown <= set(notebook["metadata"]["book"]["lib"])


def in_order(words: list[str]) -> list[str]:
    """Sorted by their letters alone, and these without bars."""

    def letters(word: str) -> str:
        return re.sub(r"[^a-z0-9 ]", "", normalize("NFD", word.split(",")[0].lower()))

    return sorted(words, key=letters)


def test_words_that_are_looked_up_stand_in_order():
    blocks = re.findall(r"^```\{glossary\}\n(.*?)^```", read("glossary.md"), re.M | re.S)
    for entries in (block.split("\n\n") for block in blocks):
        words = [entry.splitlines()[0] for entry in entries]
        assert words == in_order(words)
    intro = "".join("".join(cell["source"]) for cell in json.loads(read("intro.ipynb"))["cells"])
    topics = re.findall(r"^\| (.+?) \| ", intro.partition("## By topic")[2], re.M)
    assert len(blocks) >= 5
    assert topics[1:] == in_order(topics[1:])


def test_toc_lists_every_chapter():
    toc = yaml.safe_load(read("_toc.yml"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert {f"chapters/{path.stem}" for path in CHAPTERS} == {name for name in listed if name.startswith("chapters/")}
    assert len(listed) == len(set(listed))


def test_figures_come_with_their_use():
    pages = "".join(path.read_text("utf-8") for path in [*ROOT.glob("*.md"), *notebooks()])
    for figure in (ROOT / "figures").glob("*.svg"):
        assert f"figures/{figure.name}" in pages, f"{figure.name} is in no page"


def test_readme_names_commands_that_exist():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", read("README.md"), re.M))
    assert {"book", "test", "bench"} <= named <= targets
    assert read(".ci/run").rstrip().endswith("make test")
    assert "run: make test" in read(".github/workflows/book.yml")


def pins(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in read(name).splitlines())
    found = {}
    for line in filter(None, lines):
        if not line.startswith("--"):
            package, version = line.split("==")  # a line without a pin fails here
            found[package.lower().replace("_", "-")] = version
    return found


def test_every_requirement_is_pinned():
    assert pins("requirements.txt")["torch"] == "2.13.0"
    wanted = (line.split("#")[0].split("==")[0].strip() for line in read("requirements.in").splitlines())
    assert set(filter(None, wanted)) <= pins("requirements.txt").keys()
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert {name.split("==")[0] for name in project["dependencies"]} <= pins("requirements.txt").keys()


def test_binder_is_in_step():
    everything = pins("requirements.txt")
    binder = pins("binder/requirements.txt")
    assert binder.pop("torch") == everything["torch"] + "+cpu"
    assert binder
    assert binder.items() <= everything.items()
    assert read("binder/runtime.txt").strip() == "python-3.11"


def test_licenses_stand():
    assert read("LICENSE").startswith("MIT License")
    assert "Creative Commons Attribution 4.0" in read("LICENSE-text")
    assert "LICENSE-text" in read("README.md")


def test_the_favicon_has_the_colors_of_the_devices():
    colors = re.findall(r'fill="(#\w+)"', read("_assets/favicon.svg"))
    assert colors == [fill for fill, *_ in PALETTE[:4]]
    assert yaml.safe_load(read("_config.yml"))["html"]["favicon"] == "_assets/favicon.svg"


def title(path: Path) -> str:
    return "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"]).splitlines()[0].removeprefix("# ")


def test_a_chapter_comes_after_those_that_it_needs():
    parts = yaml.safe_load(read("_toc.yml"))["parts"]
    assert all(part["caption"] for part in parts)
    order = [entry["file"] for part in parts for entry in part["chapters"] if entry["file"].startswith("chapters/")]
    places = {title(ROOT / f"{name}.ipynb"): count for count, name in enumerate(order)}
    needs = [
        (name, needed, count)
        for count, name in enumerate(order)
        for needed in json.loads(read(f"{name}.ipynb"))["metadata"]["book"]["prerequisites"]
    ]
    assert sum(needed in places for _, needed, _ in needs) >= 5
    assert [(name, needed) for name, needed, count in needs if places.get(needed, -1) >= count] == []
    nearly = [(needed, get_close_matches(needed, places)) for _, needed, _ in needs if needed not in places]
    assert [(needed, titles) for needed, titles in nearly if titles] == []  # a chapter by a name that it has not

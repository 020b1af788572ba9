"""Which chapters are stale after an edit: proved on a small house of the book's own form."""

import subprocess
import sys
from pathlib import Path

import pytest

from book.build.execute import normal_form, notebooks, read
from book.build.imports import House
from book.build.record import ROOT, record_of, stands_for, why_stale, write

FILES = {
    "lib/__init__.py": "from lib.cut import cut\nfrom lib.talk import talk\n",
    "lib/cut.py": '"""Names lib.talk only in a docstring."""\n\ndef cut():\n    return 1\n',
    "lib/talk.py": "import numpy\nfrom lib.deep.wire import wire as line\n\ndef talk():\n    from lib.cut import cut\n",
    "lib/deep/__init__.py": "",
    "lib/deep/wire.py": 'NAMES = ["words.txt", "lib.deep.child"]\n\ndef wire():\n    return 1\n',
    "lib/deep/words.txt": "one two",
    "lib/deep/child.py": "",
    "lib/unused.py": "",
    "book/__init__.py": 'ROOMS = {"book": {"bars": "draw_bars", "lines": "draw_lines"}}\n',
    "book/bars.py": "from lib import cut\n\ndef draw_bars(): ...\n",
    "book/lines.py": "import matplotlib.pyplot\n\ndef draw_lines(): ...\n",
    "lines.csv": "1,2",
    "requirements.txt": "numpy==1.0\nmatplotlib==2.0\n",
}
CELLS = {
    "bars": ["from book import draw_bars", "draw_bars()"],
    "talks": ["%matplotlib inline\nfrom lib import talk", "talk()"],
    "lines": ["from book import draw_lines", "draw_lines?", "open('../lines.csv')"],
}


def cell(count: int, source: str) -> dict:
    known = {"cell_type": "code", "id": f"cell-{count}", "metadata": {}, "source": source}
    return known | {"outputs": [], "execution_count": 1}


def notebook(sources: list[str]) -> dict:
    return {"cells": [cell(*one) for one in enumerate(sources)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def small(tmp_path):
    """A house with three chapters, all of them just executed."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "chapters").mkdir()
    for name, sources in CELLS.items():
        path = tmp_path / "chapters" / f"{name}.ipynb"
        path.write_text(normal_form(notebook(sources)))
        write(path, read(path), record_of(path), tmp_path)
    return tmp_path


def stale(root: Path) -> dict[str, str]:
    """As a new process sees it: what was read before is not remembered."""
    from book.build import record

    for remembered in (record.house, record.file_digest, record.pins):
        remembered.cache_clear()
    found = {path.stem: why_stale(path, read(path), record_of(path), root) for path in notebooks(root)}
    return {name: reason for name, reason in found.items() if reason}


def test_nothing_is_stale_after_an_execution(small):
    assert stale(small) == {}


@pytest.mark.parametrize(
    ("edited", "chapters"),
    [
        ("lib/cut.py", {"bars", "talks"}),  # through a door, and inside a function
        ("lib/talk.py", {"talks"}),
        ("lib/deep/wire.py", {"talks"}),  # not imported by the chapter itself
        ("lib/deep/words.txt", {"talks"}),  # read, not imported
        ("lib/deep/child.py", {"talks"}),  # started by its name
        ("lib/unused.py", set()),
        ("book/bars.py", {"bars"}),  # of a lazy door, only the picture that is used
        ("book/lines.py", {"lines"}),
        ("lines.csv", {"lines"}),  # read by a cell
    ],
)
def test_an_edited_file_makes_the_chapters_stale_that_need_it_and_no_others(small, edited, chapters):
    with (small / edited).open("a") as file:
        file.write("\n# edited\n")
    assert stale(small) == dict.fromkeys(chapters, f"{edited} changed")


def test_another_version_of_a_package_makes_stale_what_imports_it(small):
    (small / "requirements.txt").write_text("numpy==1.1\nmatplotlib==2.0\n")
    assert stale(small) == {"talks": "numpy changed"}


def test_an_edited_cell_makes_its_chapter_stale_and_an_edited_text_does_not(small):
    path = small / "chapters" / "lines.ipynb"
    edited = read(path)
    edited["cells"].insert(0, {"cell_type": "markdown", "id": "text", "metadata": {}, "source": "A text."})
    path.write_text(normal_form(edited))
    assert stale(small) == {}
    edited["cells"][1]["source"] = "from book import draw_bars"
    path.write_text(normal_form(edited))
    assert stale(small) == {"lines": "its cells changed"}


def test_a_new_import_inside_a_file_and_a_removed_one_are_named(small):
    (small / "lib" / "cut.py").write_text("from lib import unused\n\ndef cut(): ...\n")
    assert stale(small)["bars"] == "lib/cut.py changed, and 1 more"
    (small / "book" / "__init__.py").write_text('ROOMS = {"book": {"bars": "draw_bars draw_lines"}}\n')
    assert stale(small)["lines"] == "it needs book/bars.py now, and 4 more"


def test_changed_outputs_a_cell_without_a_run_and_a_missing_or_broken_record_are_stale(small):
    path, record = small / "chapters" / "bars.ipynb", record_of(small / "chapters" / "bars.ipynb")
    good, text = path.read_text(), record.read_text()
    changed = read(path)
    changed["cells"][1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "by hand"}]
    path.write_text(normal_form(changed))
    assert stale(small) == {"bars": "its outputs are not those that were executed"}
    path.write_text(good.replace('"execution_count": 1', '"execution_count": null'))
    assert stale(small) == {"bars": "its outputs are not those that were executed"}
    path.write_text(good)
    record.write_text(text + "half a li")
    assert stale(small) == {"bars": "its record cannot be read"}
    line = next(line for line in text.splitlines() if line.endswith("book/bars.py"))
    record.write_text(text.replace(line, f"{line}\n0123456789abcdef  book/bars.py"))  # both sides of a merge
    assert stale(small) == {"bars": "book/bars.py changed"}
    record.unlink()
    assert stale(small) == {"bars": "it has no record of an execution"}


def test_a_lie_in_outputs_and_record_is_caught_by_nbval(tmp_path):
    path = tmp_path / "lie.ipynb"
    lie = notebook(["print(1 + 1)"])
    lie["cells"][0]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": "3\n"}]
    path.write_text(normal_form(lie))
    write(path, read(path), record_of(path))
    assert why_stale(path, read(path), record_of(path)) == ""
    options = ["-q", "-p", "book.build", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    command = [sys.executable, "-m", "pytest", *options, path.name]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Cell execution" in run.stdout or "mismatch" in run.stdout


def test_in_the_book_a_picture_belongs_to_the_chapters_that_draw_it():
    house = House(ROOT)
    for path in notebooks():
        source = "\n".join("".join(one["source"]) for one in read(path)["cells"] if one["cell_type"] == "code")
        files, packages = house.behind(source, path.parent)
        names = {file.relative_to(ROOT).as_posix() for file in files}
        assert "torch" in packages
        assert not any(name.endswith("__init__.py") or name.startswith("book/build") for name in names)
        assert ("book/pictures/heads.py" in names) == ("draw_heads" in source), path.stem


def test_a_door_passes_on_every_name_that_it_offers():
    import book
    import lib

    house = House(ROOT)
    for door in (lib, book):
        for name in door.__all__:
            files, _ = house.behind(f"from {door.__name__} import {name}", ROOT)
            assert any(name in file.read_text("utf-8") for file in files), name


def test_the_record_of_a_chapter_names_what_it_was_executed_with():
    path = notebooks()[0]
    now = stands_for(path, read(path))
    assert list(now)[:2] == ["cells", "outputs"]
    assert now["torch"] == "2.13.0"
    assert not any(name.startswith(("/", "..")) for name in now)

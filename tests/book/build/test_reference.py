"""The reference is written from the sources: every module has its page, and the index lists each once."""

import re
from importlib import import_module

import pytest

import lib
from book.build import reference
from book.build.execute import notebooks
from book.build.record import ROOT


def test_every_file_of_lib_and_book_has_a_page():
    files = {path for part in ("lib", "book") for path in (ROOT / part).rglob("*.py") if path.name != "__init__.py"}
    assert set(reference.modules().values()) == files
    assert {"lib.devices.cluster", "book.pictures.tensor", "book.build.reference"} <= set(reference.modules())


def test_the_index_lists_every_module_once_and_rooms_in_the_order_of_imports():
    text = reference.index()
    assert sorted(re.findall(r"<reference/([\w.]+)>", text)) == sorted(reference.modules())
    rooms = re.findall(r"^## ((?:lib|book)[\w.]*)$", text, re.M)
    places = [reference.place(room) for room in rooms]
    assert places == sorted(places)
    assert set(places) == set(range(len(reference.ROOMS)))
    assert "|  |" not in text, "a module or a room without a docstring"
    with pytest.raises(ValueError, match=r"lib\.new belongs to none"):
        reference.place("lib.new")


def test_the_names_used_most_come_first_and_are_those_of_the_front_door():
    names = reference.most_used()
    assert len(names) == reference.MOST_USED
    assert names[0][0] == "Cluster"
    for name, module in names:
        assert getattr(import_module(module), name) is getattr(lib, name)
    text = reference.index()
    assert text.index(f"{names[-1][1]}.{names[-1][0]}") < text.index("## lib.devices")


def test_a_page_names_its_file_and_the_chapters_that_explain_it():
    path = notebooks()[-1]
    name = reference.front_matter(path)["lib"][0]
    text = reference.page(reference.module_of(ROOT / name), ROOT / name)
    assert f"`/chapters/{path.stem}`" in text
    assert f"listing}} {name}\n" in text
    for module, file in reference.modules().items():
        description = re.search(r"description: \"(.*)\"$", reference.page(module, file), re.M)[1]
        assert 40 <= len(description) <= 200


def test_a_cell_of_the_index_escapes_what_would_end_it_or_slant_it():
    assert reference.for_table("`make(*inputs)` or f(*x) | y") == r"`make(*inputs)` or f(\*x) \| y"


def test_only_what_changed_is_written_and_what_has_no_module_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "reference")
    reference.generate()
    page, index = tmp_path / "reference" / "lib.devices.group.md", tmp_path / "reference" / "index.inc"
    good = page.read_text("utf-8")
    before = index.stat().st_mtime_ns
    page.write_text("old", "utf-8")
    (tmp_path / "reference" / "lib.gone.md").write_text("old", "utf-8")
    reference.generate()
    assert page.read_text("utf-8") == good
    assert index.stat().st_mtime_ns == before
    assert not (tmp_path / "reference" / "lib.gone.md").exists()

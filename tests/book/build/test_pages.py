"""How `make book` chooses outputs, recovers from a build that did not end, and says how far it is."""

import io
import json
import os
import re

import pytest

from book.build import pages, record
from book.build.execute import execute_all, executed, normal_form, read


def notebook(source: str, output: str = "", count: int | None = 1) -> dict:
    outputs = [{"name": "stdout", "output_type": "stream", "text": output}] if output else []
    code = {"cell_type": "code", "id": "code", "metadata": {}, "source": source, "outputs": outputs}
    text = {"cell_type": "markdown", "id": "text", "metadata": {}, "source": "# A text"}
    return {"cells": [text, code | {"execution_count": count}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    """A chapter `a` with the stored output "1" and a true record, in a place of its own; `ran` counts executions."""
    monkeypatch.setattr(pages, "FRESH", tmp_path / "_build" / "executed")
    path = tmp_path / "chapters" / "a.ipynb"
    path.parent.mkdir()
    monkeypatch.setattr(pages, "notebooks", lambda: [path])

    class Chapter:
        def write(self, source: str, output: str) -> None:
            path.write_text(normal_form(notebook(source, output)), "utf-8")

        def page(self) -> str:
            return json.dumps(pages.shown(path)["cells"])

    chapter = Chapter()
    chapter.path, chapter.ran = path, []
    chapter.write("print(1)", "1\n")
    record.write(path, read(path), record.record_of(path))

    def run(stale, store, at_once=2):
        for one, reason in stale.items():
            chapter.ran.append(reason)
            store(one, normal_form(notebook("".join(read(one)["cells"][1]["source"]), "fresh\n")))
        return True

    monkeypatch.setattr(pages, "execute_all", run)
    return chapter


def test_true_outputs_are_shown_without_an_execution(chapter):
    assert pages.execute_stale()
    assert chapter.ran == []
    assert '"1\\n"' in chapter.page()


def test_stale_outputs_are_executed_once_and_only_for_the_build(chapter):
    chapter.write("print(2)", "1\n")
    before = chapter.path.read_bytes()
    assert pages.execute_stale()
    assert chapter.ran == ["its cells changed"]
    assert "fresh" in chapter.page()
    assert chapter.path.read_bytes() == before
    edited = read(chapter.path)
    edited["cells"][0]["source"] = "# Another text"
    chapter.path.write_text(normal_form(edited), "utf-8")
    assert pages.execute_stale()
    assert chapter.ran == ["its cells changed"], "a text needs no execution"
    assert "Another text" in chapter.page()
    assert "fresh" in chapter.page()


def test_fresh_outputs_go_when_the_stored_ones_are_true_again(chapter):
    chapter.write("print(2)", "1\n")
    pages.execute_stale()
    chapter.write("print(1)", "1\n")
    pages.execute_stale()
    assert '"1\\n"' in chapter.page()


@pytest.mark.parametrize("half", ["", '{"cells": ['])
def test_half_written_outputs_are_made_again(chapter, half):
    chapter.write("print(2)", "1\n")
    pages.execute_stale()
    pages.fresh(chapter.path).write_text(half, "utf-8")
    pages.execute_stale()
    assert len(chapter.ran) == 2
    assert "fresh" in chapter.page()


@pytest.mark.parametrize(
    ("source", "says"), [("1 / 0", "ZeroDivisionError"), ("import warnings; warnings.warn('careful')", "careful")]
)
def test_a_cell_that_fails_or_warns_is_shown_and_nothing_is_stored(tmp_path, capsys, source, says):
    path = tmp_path / "bad.ipynb"
    path.write_text(normal_form(notebook(source, count=None)), "utf-8")
    stored = []
    assert not execute_all({path: "its cells changed"}, lambda *args: stored.append(args))
    said = capsys.readouterr().out
    assert "[1 of 1] bad: executing, its cells changed" in said
    assert "FAILED" in said
    assert says in said
    assert stored == []


def test_what_is_executed_is_in_normal_form_and_keeps_what_was_measured(tmp_path):
    path = tmp_path / "good.ipynb"
    measured = notebook("print(12.3)", "0.1 s\n")
    measured["cells"][1]["metadata"]["tags"] = ["nbval-ignore-output"]
    path.write_text(normal_form(measured), "utf-8")
    text = executed(path)
    assert text == normal_form(json.loads(text))
    assert "0.1 s" in text
    assert "12.3\\n" not in text


@pytest.mark.parametrize(
    ("shown", "drawn_by", "stays"), [("<svg", "0ld", False), ("<svg", None, True), ("0.1 s", "0ld", True)]
)
def test_what_was_measured_is_drawn_anew_when_the_code_that_draws_it_changed(tmp_path, shown, drawn_by, stays):
    path = tmp_path / "chapters" / "drawn.ipynb"
    path.parent.mkdir()
    cells = notebook("from book import draw_chart\nprint(12.3)", f"{shown} of long ago\n")
    cells["cells"][1]["metadata"]["tags"] = ["nbval-ignore-output"]
    path.write_text(normal_form(cells), "utf-8")
    made_with = record.record_of(path)
    record.write(path, cells, made_with)
    if drawn_by:
        said = made_with.read_text("utf-8")
        assert "book/pictures/chart.py" in said
        made_with.write_text(re.sub(r"\w+(  book/pictures/chart.py)", rf"{drawn_by}\g<1>", said), "utf-8")
    assert ("long ago" in executed(path)) == stays


def test_outputs_are_made_with_the_simplest_instructions_of_a_processor(tmp_path):
    """So the tests, which use the best ones, see what depends on the processor."""
    path = tmp_path / "simple.ipynb"
    asked = "import torch\ntorch.backends.cpu.get_cpu_capability(), torch.ones(8).sum().item(), torch.get_num_threads()"
    path.write_text(normal_form(notebook(asked)), "utf-8")
    assert "('DEFAULT', 8.0, 1)" in executed(path)  # and one thread: two chapters share the cores
    assert "ATEN_CPU_CAPABILITY" not in os.environ


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A `_build` as a good build leaves it."""
    monkeypatch.setattr(pages, "BUILD", tmp_path)
    for name in ("html", "key", "good", "unfinished"):
        monkeypatch.setattr(pages, name.upper(), tmp_path / name)
    monkeypatch.setattr(pages, "KNOWN", tmp_path / ".doctrees")
    monkeypatch.setattr(pages, "ENVIRONMENT", tmp_path / ".doctrees" / "environment.pickle")
    (tmp_path / "html").mkdir()
    (tmp_path / ".doctrees").mkdir()
    (tmp_path / "html" / "a.html").write_text("a page")
    pages.ENVIRONMENT.write_text("known")
    pages.GOOD.write_text("known")
    pages.KEY.write_text("key")
    return tmp_path


def test_after_a_good_build_everything_stays(built, capsys):
    pages.prepare("key")
    assert (built / "html" / "a.html").exists()
    assert pages.ENVIRONMENT.read_text() == "known"
    assert pages.UNFINISHED.exists(), "until the build has ended"
    assert capsys.readouterr().out == ""


def test_after_an_interruption_pages_are_read_again_and_it_says_so(built, capsys):
    pages.UNFINISHED.touch()
    pages.ENVIRONMENT.write_text("half")
    pages.prepare("key")
    assert pages.ENVIRONMENT.read_text() == "known"
    assert "did not end" in capsys.readouterr().out


def test_another_configuration_begins_anew_and_so_does_an_interrupted_first_build(built):
    pages.prepare("another key")
    assert not (built / "html").exists()
    (built / "html").mkdir()
    pages.prepare("another key")
    assert not (built / "html").exists()


def test_an_edit_of_what_all_pages_share_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    for name in pages.FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "_ext").mkdir()
    seen = {pages.made_with()}
    (tmp_path / "_ext" / "new.py").write_text("")
    seen.add(pages.made_with())
    (tmp_path / "_toc.yml").write_text("root: intro")
    seen.add(pages.made_with())
    monkeypatch.setenv("GITHUB_REPOSITORY", "ada/book")
    seen.add(pages.made_with())
    assert len(seen) == 4


def test_progress_is_told_in_fifths():
    told = io.StringIO()
    progress = pages.Progress(told)
    for percent in (0, 3, 20, 21, 55, 100):
        progress.write(f"\x1b[01mreading sources... \x1b[39;49;00m[{percent:3d}%] \x1b[35mglossary\x1b[39;49;00m\r")
    progress.write("pickling environment... done\n")
    assert told.getvalue() == "".join(f"Reading pages: {percent:3d} %\n" for percent in (0, 20, 40, 100))

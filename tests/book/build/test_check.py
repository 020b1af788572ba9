"""`make check` finds the tests of a chapter by the house's own order; `make test` ends with its slowest groups."""

import os
import re
import subprocess
import sys

import pytest
import torch

from book.build import check
from book.build.check import TESTS, owner
from book.build.execute import notebooks
from book.build.record import ROOT

PYTEST = [sys.executable, "-m", "pytest", "-p", "book.build"]  # in a folder without our settings
CHAPTERS = {path.stem: path for path in notebooks() if path.parent.name == "chapters"}


def names(chapter: str) -> set[str]:
    return {test.relative_to(TESTS).as_posix() for test in check.tests_of(CHAPTERS[chapter])}


def test_a_chapter_has_the_tests_of_its_room_its_pictures_its_exercises_and_its_costs():
    found = names("sequence_parallelism")
    assert {test.relative_to(TESTS).as_posix() for test in (TESTS / "parallel" / "sequence").glob("test_*")} <= found
    assert "book/exercises/test_exercises_sequence.py" in found
    assert "costs/test_activations_costs.py" in found
    assert any(name.startswith("book/pictures/") for name in found)


def test_every_room_of_parallel_belongs_to_one_chapter():
    for room in (TESTS / "parallel").iterdir():
        tests = {test.relative_to(TESTS).as_posix() for test in room.glob("test_*.py")}
        if tests:
            one = owner(ROOT / "lib" / "parallel" / room.name)
            assert [name for name in CHAPTERS if tests <= names(name)] == [one.stem]
            assert sum(bool(tests & names(name)) for name in CHAPTERS) == 1


def test_what_is_slow_stays_with_make_test():
    for name in CHAPTERS:
        assert len(names(name)) < 20
        assert not any(test.startswith(("oracles/", "browser/")) for test in names(name))


def test_cells_run_unless_their_record_is_true():
    gpt, test = CHAPTERS["gpt"], TESTS / "parallel" / "gpt" / "test_gpt.py"
    for stale in ("lib/parallel/gpt/model.py changed", ""):
        asked = check.chosen(gpt, [test], stale)
        assert (str(gpt) in asked) == ("--nbval" in asked) == bool(stale)
        assert {str(test), str(TESTS / "browser")} < set(asked)
        assert asked[-1] == "not browser or page_with_everything or chapters/gpt"  # "...gpt.html", and its links


def test_an_unknown_chapter_is_told_which_there_are():
    run = subprocess.run([sys.executable, "-m", "book.build.check", "gtp"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "CHAPTER=name" in run.stdout
    assert "gpt" in run.stdout


def test_the_slowest_groups_are_named_slowest_first(tmp_path):
    (tmp_path / "test_slow.py").write_text("import time\n\ndef test_a():\n    time.sleep(0.3)\n")
    (tmp_path / "test_fast.py").write_text("def test_b():\n    assert 0\n")
    options = ["-q", "-p", "no:cacheprovider", "-p", "book.build.slowest", "-n", "2"]
    run = subprocess.run([*PYTEST, *options], cwd=tmp_path, capture_output=True, text=True)
    end = run.stdout.partition("the slowest groups")[2]
    assert end.index("test_slow.py") < end.index("test_fast.py")
    assert "0.3 s  test_slow.py" in end


def test_a_group_stays_together_and_the_longest_begins(tmp_path):
    """Two processes: the cells of a notebook, and all that is asked of a page, must see each other's state."""
    head = "import os, pytest\n\nSEEN = []\n\n"
    of_a_page = (
        '@pytest.mark.parametrize("path", ["a.html", "b.html"])\n'
        'def test_NAME(path):\n    print("ran", path, os.getpid(), os.environ["OMP_NUM_THREADS"])\n'
    )
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(head + of_a_page.replace("NAME", name))
    (tmp_path / "test_file.py").write_text(
        head + '@pytest.mark.parametrize("count", range(6))\ndef test_in_order(count):\n'
        "    SEEN.append(count)\n    assert SEEN == list(range(count + 1))\n"
    )
    (tmp_path / "_build").mkdir()
    (tmp_path / "_build" / "seconds-of-tests.json").write_text('{"test_file.py": 9, "page b.html": 7}')
    order = subprocess.run(
        [*PYTEST, "-q", "--collect-only", "-p", "book.build.order"],
        cwd=tmp_path, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert order.index("test_file.py") < order.index("b.html") < order.index("a.html")
    options = ["-q", "-rP", "-p", "no:cacheprovider", "-p", "book.build.order", "-p", "book.build.slowest", "-n", "2"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run([*PYTEST, *options], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "10 passed" in run.stdout, run.stdout
    ran = re.findall(r"^ran (\w\.html) (\d+) 1$", run.stdout, re.M)  # on one core each
    assert len(ran) == 4
    assert len(set(ran)) == 2, "a page was asked in two processes"


def test_pytorch_keeps_to_the_cores_of_its_process():
    """The plugin says so before any file of tests loads PyTorch."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process has all cores")
    assert str(torch.get_num_threads()) == os.environ["OMP_NUM_THREADS"]

"""What is committed was executed with what is committed: a fresh clone shows every chapter without executing one.

Both tests ask which files and packages stand behind each chapter; it takes seconds to find out, and is found out once.
"""

import pytest

from book.build.execute import notebooks, read
from book.build.record import ROOT, pins, record_of, stands_for, why_stale


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_stored_outputs_are_true(path):
    assert why_stale(path, read(path), record_of(path)) == "", "run `make outputs`"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_printed_lines_fit_the_page(path):
    """At a desk 88 letters stand beside each other; what is longer is out of sight until it is scrolled to."""
    printed = [one.get("text", "") for cell in read(path)["cells"] for one in cell.get("outputs", [])]
    assert [line for text in printed for line in "".join(text).splitlines() if len(line) > 88] == []


def test_binder_has_what_the_chapters_import():
    needed = {name.lower() for path in notebooks() for name in stands_for(path, read(path)) if "/" not in name}
    brought = {"ipython"}  # by ipywidgets
    assert needed - {"cells", "outputs"} - brought <= pins(ROOT / "binder").keys()
    assert "torch" in needed

"""What is committed was executed with what is committed: a fresh clone shows every chapter without executing one.

Both tests ask which files and packages stand behind each chapter; it takes seconds to find out, and is found out once.
"""

import pytest

from book.build.execute import notebooks, read
from book.build.record import ROOT, pins, record_of, stands_for, why_stale


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_stored_outputs_are_true(path):
    assert why_stale(path, read(path), record_of(path)) == "", "run `make outputs`"


def test_binder_has_what_the_chapters_import():
    needed = {name.lower() for path in notebooks() for name in stands_for(path, read(path)) if "/" not in name}
    brought = {"ipython"}  # by ipywidgets
    assert needed - {"cells", "outputs"} - brought <= pins(ROOT / "binder").keys()
    assert "torch" in needed

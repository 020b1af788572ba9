"""What is committed was executed with what is committed: a fresh clone shows every chapter without executing one."""

import pytest

from book.build.execute import notebooks, read
from book.build.record import record_of, why_stale


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_stored_outputs_are_true(path):
    assert why_stale(path, read(path), record_of(path)) == "", "run `make outputs`"

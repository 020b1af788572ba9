"""Checks what an error says."""

from contextlib import contextmanager

import pytest


@contextmanager
def says(error_type, *fragments):
    """The block must raise, with a message in which all fragments are found."""
    with pytest.raises(error_type) as error:
        yield
    missing = [fragment for fragment in fragments if fragment not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"

"""The columns of a table of text."""

import pytest

from lib.devices.aligned import aligned


def test_numbers_to_the_right_and_words_to_the_left():
    rows = [["rank", "waits for", "bytes"], ["0", "send to 1", "1,024"], ["11", "recv", ""]]
    assert aligned(rows, left=[1]) == ["rank  waits for  bytes", "   0  send to 1  1,024", "  11  recv"]


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        aligned([["a", "b"], ["c"]])

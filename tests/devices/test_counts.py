"""What can count something, and how what cannot is named."""

import pytest

from lib.devices.counts import check_counts, is_count


def test_integers_from_1_on_count():
    assert [is_count(value) for value in (1, 7)] == [True, True]
    assert not any(is_count(value) for value in (0, -1, True, 2.0, "2", None))


def test_all_that_do_not_count_are_named_at_once():
    check_counts("Grid", {"dp": 2, "tp": 1})
    with pytest.raises(ValueError) as raised:
        check_counts("Grid", {"dp": 0, "tp": 2, "pp": True})
    assert str(raised.value) == (
        "Grid: dp=0 must be an integer of at least 1; pp=True must be an integer of at least 1"
    )

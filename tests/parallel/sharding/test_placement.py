"""The three placements are plain values."""

import dataclasses

import pytest

from lib import Partial, Placement, Replicate, Shard


def test_they_compare_by_value_and_can_be_keys():
    assert Shard(0) == Shard(0) != Shard(1)
    assert Replicate() == Replicate() != Partial()
    assert Partial() == Partial("sum") != Partial("max")
    assert len({Shard(0), Shard(0), Replicate(), Partial()}) == 3


def test_they_print_as_they_are_written():
    assert [str(p) for p in (Shard(1), Replicate(), Partial())] == ["Shard(dim=1)", "Replicate()", "Partial(op='sum')"]


def test_they_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Shard(0).dim = 1


def test_there_are_three():
    assert all(isinstance(p, Placement) for p in (Shard(0), Replicate(), Partial()))

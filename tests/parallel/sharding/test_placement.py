"""Placements are plain values, and what can be cut and put together again is one."""

import dataclasses

import pytest
import torch

from lib import FusedHeads, PaddedShard, Partial, Placement, Replicate, Shard


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


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate(), FusedHeads(4, 2), PaddedShard(8)], ids=str)
def test_what_they_cut_they_put_together_again(placement):
    assert isinstance(placement, Placement)
    whole = torch.arange(8.0 * 3).view(8, 3)
    for parts in (1, 2, 4):
        pieces = [placement.piece(whole, parts, rank) for rank in range(parts)]
        assert torch.equal(placement.whole(pieces), whole)


def test_no_rule_says_which_summand_a_device_holds():
    assert not isinstance(Partial(), Placement)

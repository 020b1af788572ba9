"""Blocks: whatever a device holds, they say which part of the whole it is."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.devices.pieces import shard_sizes
from lib.parallel.attention.heads import FusedHeads
from lib.parallel.experts.grid import ShardExperts
from lib.parallel.recovery.blocks import Block, Held, boxes_of, rows_of
from lib.parallel.sharding.placement import Replicate, Shard, ShardBlocks
from lib.parallel.tensor.vocabulary import PaddedShard

LAYOUTS = [
    (Replicate(), (5, 3)), (Shard(0), (7, 2)), (Shard(1), (2, 7)), (Shard(0), (2,)), (ShardBlocks(2), (8, 3)),
    (FusedHeads(8, 2), (24, 3)), (FusedHeads(8, 8), (24,)), (PaddedShard(7), (7, 3)), (Shard(-1), (3, 5)),
]  # fmt: skip


def held_by_all(layout, whole, parts, cut=1):
    """A tensor of numbers 1, 2, ... as `parts` devices hold it, each piece flattened and cut once more in `cut`."""
    tensor = torch.arange(1.0, 1 + math.prod(whole)).view(whole)
    for rank in range(parts):
        mine = layout.piece(tensor, parts, rank)
        one = Held("x", mine, whole, rows_of(layout, whole, mine.shape, parts, rank))
        end = 0
        for size in shard_sizes(mine.numel(), cut):
            part, end = range(end, end + size), end + size
            yield one if cut == 1 else replace(one, x=mine.flatten()[part.start : part.stop], part=part)


@pytest.mark.parametrize(("layout", "whole"), LAYOUTS, ids=str)
@pytest.mark.parametrize(("parts", "cut"), [(1, 1), (2, 1), (4, 1), (1, 3), (4, 2), (2, 5)])
def test_the_blocks_are_what_the_device_holds_and_together_all_of_it(layout, whole, parts, cut):
    tensor = torch.arange(1.0, 1 + math.prod(whole)).view(whole)
    there = torch.zeros(whole, dtype=torch.bool)
    everything = Block((0,) * len(whole), whole)
    for one in held_by_all(layout, whole, parts, cut):
        rows = one.rows_held()
        for block, where in one.blocks():
            assert rows[where].shape == block.shape
            assert torch.equal(rows[where], tensor[block.inside(everything)])
            there[block.inside(everything)] = True
        assert sum(math.prod(block.shape) for block, _ in one.blocks()) == one.x.count_nonzero()  # padding is 0
        again = replace(one, x=torch.zeros_like(one.x))
        again.fill(rows)
        assert torch.equal(again.x, one.x)
    assert there.all()


def test_experts_are_cut_along_two_dims():
    whole, there = (4, 6, 2), torch.zeros(4, 6, 2)
    tensor = torch.arange(48.0).view(whole)
    for rank in range(8):  # two sets of experts, each over 2 devices times 2 for tensor parallelism
        layout = ShardExperts(1, 2, 2, rank // 2 % 2)
        mine = layout.piece(tensor, 8, rank)
        one = Held("x", mine, whole, rows_of(layout, whole, mine.shape, 8, rank))
        for block, where in one.blocks():
            there[block.inside(Block((0, 0, 0), whole))] = one.rows_held()[where]
    assert torch.equal(there, tensor)


@given(st.lists(st.integers(1, 4), max_size=4).map(tuple), st.data())
def test_boxes_are_the_part_of_a_flat_tensor(shape, data):
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    part = range(start, data.draw(st.integers(start, size)))
    numbers = torch.arange(size).view(shape)
    boxes = boxes_of(part, shape)
    assert [n for box in boxes for n in numbers[box].flatten().tolist()] == list(part)
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize(
    ("other", "common"),
    [(((1, 1), (9, 9)), ((1, 1), (2, 3))), (((0, 3), (3, 1)), ((0, 3), (3, 1))), (((3, 0), (1, 4)), None),
     (((0, 0), (0, 4)), None)],
)  # fmt: skip
def test_what_two_blocks_have_in_common(other, common):
    assert Block((0, 0), (3, 4)).common(Block(*other)) == common

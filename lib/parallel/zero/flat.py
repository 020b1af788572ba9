"""Many tensors as one: laid end to end in a flat tensor, which is cut over the devices like any other.

So a few large messages move what would be hundreds of small ones, and every device gets the same number of elements,
whatever the shapes. A cut may go through the middle of a tensor: then two devices own a part of it.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lib.devices import Group
from lib.parallel.data.buckets import views
from lib.parallel.sharding.shards import shard_sizes


class FlatLayout:
    """Where each of several tensors lies in a flat tensor (n,), and which part of it is this device's: Shard(0)."""

    def __init__(self, shapes: Sequence[torch.Size], group: Group):
        self.shapes = list(shapes)
        self.sizes = [shape.numel() for shape in shapes]
        mine = shard_sizes(sum(self.sizes), group.size)
        begin = sum(mine[: group.rank])
        end = begin + mine[group.rank]
        # Of each tensor, flattened, the elements that this device owns.
        self.ranges = [
            range(min(max(begin - a, 0), b - a), min(max(end - a, 0), b - a))
            for a, b in pairwise(accumulate(self.sizes, initial=0))
        ]

    def tensors(self, flat: Tensor) -> list[Tensor]:
        """(n,) Replicate -> the tensors in their shapes. Views, nothing is copied."""
        return views(flat, self.shapes)

    def pieces(self, mine: Tensor) -> list[Tensor]:
        """(n/P,) Shard(0) -> this device's part of each tensor, 1-D, maybe empty. Views, nothing is copied."""
        return list(mine.split([len(where) for where in self.ranges]))

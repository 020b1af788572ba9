"""Many tensors as one: laid end to end in a flat tensor, which is cut over the devices like any other.

So a few large messages move what would be hundreds of small ones, and every device gets the same number of elements,
whatever the shapes. A cut may go through the middle of a tensor: then two devices own a part of it.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lib.devices import Group
from lib.parallel.sharding.shards import shard_sizes


class FlatLayout:
    """Where each of several tensors lies in a flat tensor (n,), and which part of it is this device's: Shard(0)."""

    def __init__(self, shapes: Sequence[torch.Size], group: Group):
        self.shapes = list(shapes)
        self.sizes = [shape.numel() for shape in shapes]
        mine = shard_sizes(sum(self.sizes), group.size)
        begin = sum(mine[: group.rank])
        end = begin + mine[group.rank]
        bounds = pairwise(accumulate(self.sizes, initial=0))
        self.lengths = [max(0, min(end, b) - max(begin, a)) for a, b in bounds]  # of each tensor, what this device owns

    def tensors(self, flat: Tensor) -> list[Tensor]:
        """(n,) Replicate -> the tensors in their shapes. Views, nothing is copied."""
        return [x.view(shape) for x, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def pieces(self, mine: Tensor) -> list[Tensor]:
        """(n/P,) Shard(0) -> this device's part of each tensor, 1-D, maybe empty. Views, nothing is copied."""
        return list(mine.split(self.lengths))


def used_anywhere(
    here: dict[str, bool], group: Group, device: torch.device, allow_unused: bool, who: str
) -> list[bool]:
    """Which parameters have a gradient on any device; `here` tells, by name, which have one on this device.

    Asking the others costs one byte per parameter. Without `allow_unused` a missing gradient raises ValueError.
    """
    if allow_unused:
        mine = torch.tensor(list(here.values()), dtype=torch.uint8, device=device)
        anywhere = group.all_reduce(mine, op="max")  # (parameters,)  Replicate
        # Without data no device can branch on its data, so all use the same parameters.
        return list(here.values()) if anywhere.is_meta else [bool(used) for used in anywhere.tolist()]
    if not all(here.values()):
        without = ", ".join(name for name, used in here.items() if not used)
        raise ValueError(
            f"{who}: no gradient reached {without}. If the loss does not depend on them, pass allow_unused=True on all "
            "devices, or freeze them on all with requires_grad_(False)"
        )
    return [True] * len(here)

"""Which attention heads live on which device, and how the fused weight of queries, keys and values is cut.

The fused weight has three blocks of rows: [all queries | all keys | all values], and in each the rows of head 0, of
head 1, and so on. Cut in P equal pieces it would give device 0 nothing but queries. Each block is cut on its own:

    device r:   [its heads' queries | its heads' keys | its heads' values]

With fewer heads of keys and values than devices (grouped-query attention), neighbors hold copies of the same head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.devices import Group
from lib.devices.pieces import cut
from lib.parallel.sharding.conjugates import copy_to
from lib.parallel.sharding.linear import ColumnParallelLinear


def check_heads(hidden: int, heads: int, kv_heads: int, devices: int) -> None:
    """Raises ValueError when whole heads cannot be laid out over so many devices."""
    if min(hidden, heads, kv_heads) < 1:
        raise ValueError(f"hidden={hidden}, heads={heads}, kv_heads={kv_heads}: each must be at least 1")
    if hidden % heads:
        raise ValueError(f"a hidden size of {hidden} cannot be divided into {heads} heads")
    if heads % kv_heads:
        raise ValueError(f"{heads} heads cannot share {kv_heads} heads of keys and values: it must divide {heads}")
    if devices < 1 or heads % devices:
        fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ValueError(f"{heads} heads cannot be split over {devices} devices: possible are {fits}")
    if kv_heads % devices and devices % kv_heads:
        raise ValueError(
            f"{kv_heads} heads of keys and values cannot be laid out over {devices} devices: one of the two numbers "
            "must divide the other"
        )


def kv_copies(kv_heads: int, devices: int) -> int:
    """How many devices hold the same keys and values."""
    return max(1, devices // kv_heads)


@dataclass(frozen=True)
class FusedHeads:
    """How [queries | keys | values] is cut along dim 0; a placement like `Shard`, but of each block on its own."""

    heads: int
    kv_heads: int

    def piece(self, whole: Tensor, parts: int, rank: int) -> Tensor:
        """What device `rank` of `parts` holds of `whole`. Raises ValueError when it is not made of such heads."""
        if len(whole) % (self.heads + 2 * self.kv_heads):
            raise ValueError(
                f"a tensor of shape {tuple(whole.shape)} cannot be divided into {self.heads} heads of queries and "
                f"2 x {self.kv_heads} of keys and values"
            )
        copies = kv_copies(self.kv_heads, parts)
        queries, keys, values = self._blocks(whole, self.heads, self.kv_heads)
        common = [cut(block, parts // copies, 0)[rank // copies] for block in (keys, values)]
        return torch.cat([cut(queries, parts, 0)[rank], *common])

    def whole(self, pieces: Sequence[Tensor]) -> Tensor:
        """The fused tensor that `pieces`, in rank order, are the pieces of."""
        parts = len(pieces)
        copies = kv_copies(self.kv_heads, parts)
        each = [self._blocks(piece, self.heads // parts, max(1, self.kv_heads // parts)) for piece in pieces]
        queries, keys, values = zip(*each, strict=True)
        return torch.cat([*queries, *keys[::copies], *values[::copies]])

    def owned(self, piece: Tensor, parts: int, rank: int) -> Tensor:
        """`piece` without what another device counts: of the copies of keys and values, the first device has them."""
        if rank % kv_copies(self.kv_heads, parts) == 0:
            return piece
        return self._blocks(piece, self.heads // parts, max(1, self.kv_heads // parts))[0]

    @staticmethod
    def _blocks(fused: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, ...]:
        size = len(fused) // (heads + 2 * kv_heads)
        return fused.split([heads * size, kv_heads * size, kv_heads * size])


class ParallelQKV(ColumnParallelLinear):
    """One device's heads of the fused projection: weight ((heads + 2 kv_heads) d/P, hidden), cut by `FusedHeads`.

    A head has `head_size` d numbers, hidden / heads unless said otherwise.

    Where devices hold copies of the same keys and values, each sees only what its own queries do with them, so the
    gradients of the copies are partial sums: `copy_to` over these devices adds them up, and the copies stay equal.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        group: Group,
        head_size: int | None = None,
        bias: bool = True,
    ):
        check_heads(heads * head_size if head_size else hidden, heads, kv_heads, group.size)
        nn.Module.__init__(self)
        layout = FusedHeads(heads, kv_heads)
        self.layout = {"weight": layout, "bias": layout}
        size = head_size or hidden // heads
        self.widths = heads // group.size * size, max(1, kv_heads // group.size) * size  # of queries; of keys, values
        self.sharing = group.split(min(kv_heads, group.size))  # the devices with the same keys and values
        self._hold(nn.Linear(hidden, (heads + 2 * kv_heads) * size, bias), group, share=False)

    def pieces(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, with whole gradients for the copies."""
        return self._whole_gradient(self.weight), self._whole_gradient(self.bias)

    def _whole_gradient(self, parameter: Tensor | None) -> Tensor | None:
        if self.sharing.size == 1 or parameter is None:
            return parameter
        own, common = parameter.split([self.widths[0], 2 * self.widths[1]])
        return torch.cat([own, copy_to(common, self.sharing)])

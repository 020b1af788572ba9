"""`dist.ReduceOp`, as what our verbs know: sum, max, min, and the rarer ones, with something before and after."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

PLAIN = {
    dist.ReduceOp.SUM: "sum", dist.ReduceOp.MAX: "max", dist.ReduceOp.MIN: "min", dist.ReduceOp.PRODUCT: "product",
    dist.ReduceOp.BAND: "band", dist.ReduceOp.BOR: "bor", dist.ReduceOp.BXOR: "bxor",
}  # fmt: skip


@dataclass(frozen=True)
class Reduction:
    """How tensors are combined: each times `factor`, by the op `name`, the result divided by `count`."""

    name: str = "sum"
    factor: Any = None
    count: int | None = None

    def before(self, x: Tensor) -> Tensor:
        """What a device brings."""
        return x if self.factor is None else x.detach() * self.factor

    def scaled(self, got: Tensor) -> Tensor:
        """What it gets. A mean of integers is rounded down, as NCCL's."""
        if self.count is None:
            return got
        return got / self.count if got.is_floating_point() or got.is_complex() else got // self.count


_BY_NUMBER = {int(op): Reduction(name) for op, name in PLAIN.items()}  # numbers are quickly found, PyTorch's ops not


def reduction(opts: Any, size: int) -> Reduction:
    """What the options of a call of `torch.distributed` ask for, in a group of `size`."""
    op, factor = opts.reduceOp.__getstate__() if opts is not None else (dist.ReduceOp.SUM, None)
    plain = _BY_NUMBER.get(op.value)
    if plain is not None:
        return plain
    return Reduction(count=size) if op == dist.ReduceOp.AVG else Reduction(factor=factor)  # PREMUL_SUM

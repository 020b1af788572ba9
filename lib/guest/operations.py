"""`dist.ReduceOp`, as what our verbs know: sum, max, min, and the rarer ones, with something before and after."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

NAMES = {
    dist.ReduceOp.SUM: "sum", dist.ReduceOp.AVG: "sum", dist.ReduceOp.PREMUL_SUM: "sum", dist.ReduceOp.MAX: "max",
    dist.ReduceOp.MIN: "min", dist.ReduceOp.PRODUCT: "product", dist.ReduceOp.BAND: "band",
    dist.ReduceOp.BOR: "bor", dist.ReduceOp.BXOR: "bxor",
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


_PLAIN = {op: Reduction(name) for op, name in NAMES.items()}


def reduction(opts: Any, size: int) -> Reduction:
    """What the options of a call of `torch.distributed` ask for, in a group of `size`."""
    asked = opts.reduceOp if opts is not None else dist.ReduceOp.SUM
    op = getattr(asked, "op", asked)
    if op == dist.ReduceOp.PREMUL_SUM:
        return Reduction(factor=asked.__getstate__()[1])
    return Reduction(count=size) if op == dist.ReduceOp.AVG else _PLAIN[op]

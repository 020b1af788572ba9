"""A linear layer on P devices, cut by columns or by rows.

In mathematics Y = X A + b with A of shape (in, out). `nn.Linear` stores the transpose: weight (out, in). So the columns
of A are the rows of the stored weight, dim 0, and the rows of A are its dim 1.

    by columns:  A = [A1 | A2]         Y = [X A1 | X A2]         the pieces of Y are concatenated (or left as they are)
    by rows:     A = [A1 / A2]         Y = X1 A1 + X2 A2         X is cut too, and the partial Ys are summed

The two places where devices talk are methods: f stands in `enter`, at the beginning of a column-parallel layer, and g
in `leave`, at the end of a row-parallel one. What surrounds the pair of layers can thus be changed by a class that
overrides them, and by nothing else.

Shoeybi et al. 2019, arXiv 1909.08053, section 3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.sharding.conjugates import copy_to, gather_from, reduce_from, scatter_to
from lib.parallel.sharding.cuts import declare_cuts
from lib.parallel.sharding.placement import Placement, Replicate, Shard, ShardBlocks
from lib.parallel.sharding.shards import check_member, shard_sizes


class ShardedLinear(nn.Module):
    """One device's pieces of a linear layer, cut as `layout` says. Its subclasses know what to compute with them.

    Initialized as the shards of the dense `nn.Linear` that the same random stream would give: the fan-in that scales
    the weights is that of the whole layer, and no device count changes the model.
    """

    layout: ClassVar[Mapping[str, Placement]]  # how the dense parameters are cut, by name

    def __init__(self, in_features: int, out_features: int, group: Group, bias: bool = True, **options: Any):
        super().__init__()
        self._hold(nn.Linear(in_features, out_features, bias), group, share=False, **options)

    @classmethod
    def from_dense(cls, dense: nn.Linear, group: Group, **options: Any) -> Self:
        """This device's pieces of `dense`. Under `no_grad` they share its memory; for training they are a copy."""
        if not isinstance(dense, nn.Linear):
            raise TypeError(f"{cls.__name__}.from_dense needs an nn.Linear, not {type(dense).__name__}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(dense, group, share=not torch.is_grad_enabled(), **options)
        return layer

    def _hold(self, dense: nn.Linear, group: Group, share: bool) -> None:
        check_member(group, type(self).__name__)
        self.in_features, self.out_features, self.group = dense.in_features, dense.out_features, group
        for name, whole in (("weight", dense.weight), ("bias", dense.bias)):
            if whole is None:
                self.register_parameter(name, None)
                continue
            piece = self.layout[name].piece(whole.detach(), group.size, group.rank)
            if not share:  # training must not write into the dense layer, and a piece must not keep the whole alive
                piece = piece.clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(piece, whole.requires_grad))
        declare_cuts(self)

    def _check_input(self, x: Tensor, expected: int, why: str) -> None:
        declare_cuts(self)
        if x.shape[-1:] != (expected,):
            raise ValueError(
                f"{type(self).__name__}({self.extra_repr()}) on rank {self.group.rank} of {self.group.size} got an "
                f"input of shape {tuple(x.shape)}; its last dim must be {expected}: {why}"
            )


class ColumnParallelLinear(ShardedLinear):
    """One device's columns of a linear layer: weight (out/P, in) Shard(0), bias (out/P,) Shard(0).

    Input (..., in) Replicate. Output (..., out/P) Shard(-1); with the option `gather_output` the whole (..., out)
    Replicate. Communication: forward nothing (an all-gather with `gather_output`), backward one all-reduce of the
    input's gradient.

    With the option `blocks`, the layer is that many layers of one size whose weights lie in one, such as [gate | up]:
    each is cut on its own, and the output has this device's columns of each, one block after the other.
    """

    layout = {"weight": Shard(0), "bias": Shard(0)}

    def _hold(self, dense: nn.Linear, group: Group, share: bool, gather_output: bool = False, blocks: int = 1) -> None:
        if blocks > 1:
            if gather_output:
                raise ValueError(
                    f"{type(self).__name__}: gather_output=True would mix the {blocks} blocks of different devices; "
                    "leave the output cut"
                )
            self.layout = {"weight": ShardBlocks(blocks), "bias": ShardBlocks(blocks)}
        super()._hold(dense, group, share)
        self.gather_output = gather_output

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out/P), or (..., out) with `gather_output`."""
        self._check_input(x, self.in_features, "the whole input is needed on every device")
        y = self.enter(x, *self.pieces())  # (..., out/P)  Shard(-1)
        return gather_from(y, self.group, -1) if self.gather_output else y

    def enter(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Into the sharded region, by f: (..., in) Replicate -> (..., out/P) Shard(-1)."""
        return F.linear(copy_to(x, self.group), weight, bias)

    def pieces(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the product takes them."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={len(self.weight)} of {self.out_features}, rank={self.group.rank}"


class RowParallelLinear(ShardedLinear):
    """One device's rows of a linear layer: weight (out, in/P) Shard(1), bias (out,) Replicate.

    Input (..., in/P) Shard(-1), as a column-parallel layer leaves it; with the option `scatter_input` the whole
    (..., in) Replicate. Output (..., out) Replicate. Communication: one all-reduce of the output forward, nothing
    backward (an all-gather of the input's gradient with `scatter_input`).

    The bias is whole on every device and added after the sum: added before, it would count P times.
    """

    layout = {"weight": Shard(1), "bias": Replicate()}

    def _hold(self, dense: nn.Linear, group: Group, share: bool, scatter_input: bool = False) -> None:
        super()._hold(dense, group, share)
        self.scatter_input = scatter_input

    def forward(self, x: Tensor) -> Tensor:
        """(..., in/P), or (..., in) with `scatter_input` -> (..., out)."""
        if self.scatter_input:
            self._check_input(x, self.in_features, "scatter_input=True cuts the whole input itself")
            x = scatter_to(x, self.group, -1)  # (..., in/P)  Shard(-1)
        mine = shard_sizes(self.in_features, self.group.size)[self.group.rank]
        self._check_input(x, mine, "it takes its own piece of the input; for a whole input pass scatter_input=True")
        y = self.leave(F.linear(x, self.weight))  # (..., out)  Partial -> Replicate
        return y if self.bias is None else y + self.shared(self.bias).to(y.dtype)  # under autocast, y has fewer bits

    def leave(self, y: Tensor) -> Tensor:
        """Out of the sharded region, by g: (..., out) Partial -> Replicate."""
        return reduce_from(y, self.group)

    def shared(self, parameter: Tensor) -> Tensor:
        """A replicated parameter, for use outside of the sharded region. Each device uses it for all tokens."""
        return parameter

    def extra_repr(self) -> str:
        return f"in={self.weight.shape[1]} of {self.in_features}, out={self.out_features}, rank={self.group.rank}"

"""A linear layer on P devices, cut by columns or by rows.

In mathematics Y = X A + b with A of shape (in, out). `nn.Linear` stores the transpose: weight (out, in). So the columns
of A are the rows of the stored weight, dim 0, and the rows of A are its dim 1.

    by columns:  A = [A1 | A2]         Y = [X A1 | X A2]         the pieces of Y are concatenated (or left as they are)
    by rows:     A = [A1 / A2]         Y = X1 A1 + X2 A2         X is cut too, and the partial Ys are summed

With `sequence_dim`, the whole activations outside of the pair of layers are cut too, along the sequence.

Shoeybi et al. 2019, arXiv 1909.08053, section 3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.devices import Group
from lib.parallel.sequence.layers import gather_linear
from lib.parallel.sharding.conjugates import copy_to, gather_from, reduce_from, reduce_scatter, scatter_to
from lib.parallel.sharding.placement import Replicate, Shard
from lib.parallel.sharding.shards import check_member, shard_sizes


class ColumnParallelLinear(nn.Module):
    """One device's columns of a linear layer: weight (out/P, in) Shard(0), bias (out/P,) Shard(0).

    Input (..., in) Replicate. Output (..., out/P) Shard(-1); with `gather_output` the whole (..., out) Replicate.
    Communication: forward nothing (an all-gather with `gather_output`), backward one all-reduce of the input's grad.
    With `sequence_dim` the input is Shard(sequence_dim), and `gather_linear` says what is sent.

    Initialized as the shard of the dense `nn.Linear` that the same random stream would give: the fan-in that scales
    the weights is that of the whole layer, and no device count changes the model.
    """

    layout = {"weight": Shard(0), "bias": Shard(0)}  # how the dense parameters are cut

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: Group,
        bias: bool = True,
        gather_output: bool = False,
        sequence_dim: int | None = None,
    ):
        super().__init__()
        self._hold(nn.Linear(in_features, out_features, bias), group, gather_output, sequence_dim, share=False)

    @classmethod
    def from_dense(
        cls, dense: nn.Linear, group: Group, gather_output: bool = False, sequence_dim: int | None = None
    ) -> "ColumnParallelLinear":
        """This device's columns of `dense`. Under `no_grad` they share its memory; for training they are a copy."""
        _check_dense(cls, dense)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(dense, group, gather_output, sequence_dim, share=not torch.is_grad_enabled())
        return layer

    def _hold(self, dense: nn.Linear, group: Group, gather_output: bool, sequence_dim: int | None, share: bool) -> None:
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.group, self.gather_output, self.sequence_dim = group, gather_output, sequence_dim
        _hold_pieces(self, dense, share)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out/P), or (..., out) with `gather_output`. With `sequence_dim`, (..., S/P, ..., in)."""
        return self.multiply(x, self.weight, self.bias)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`forward` with the given pieces of weight and bias."""
        _check_input(self, x, self.in_features, "the whole input is needed on every device")
        if self.sequence_dim is None:
            x = copy_to(x, self.group)  # (..., in)     Replicate
            y = F.linear(x, weight, bias)  # (..., out/P)  Shard(-1)
        else:
            y = gather_linear(x, weight, bias, self.group, self.sequence_dim)  # (..., S, ..., out/P)  Shard(-1)
        return gather_from(y, self.group, -1) if self.gather_output else y

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={len(self.weight)} of {self.out_features}, rank={self.group.rank}"


class RowParallelLinear(nn.Module):
    """One device's rows of a linear layer: weight (out, in/P) Shard(1), bias (out,) Replicate.

    Input (..., in/P) Shard(-1), as a column-parallel layer leaves it; with `scatter_input` the whole (..., in)
    Replicate. Output (..., out) Replicate. Communication: one all-reduce of the output forward, nothing backward (an
    all-gather of the input's gradient with `scatter_input`). With `sequence_dim` the output is Shard(sequence_dim): a
    reduce-scatter forward; backward an all-gather, and an all-reduce of the bias' gradient.

    The bias is whole on every device and added after the sum: added before, it would count P times.
    Initialized as the shard of the dense `nn.Linear`, like `ColumnParallelLinear`.
    """

    layout = {"weight": Shard(1), "bias": Replicate()}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: Group,
        bias: bool = True,
        scatter_input: bool = False,
        sequence_dim: int | None = None,
    ):
        super().__init__()
        self._hold(nn.Linear(in_features, out_features, bias), group, scatter_input, sequence_dim, share=False)

    @classmethod
    def from_dense(
        cls, dense: nn.Linear, group: Group, scatter_input: bool = False, sequence_dim: int | None = None
    ) -> "RowParallelLinear":
        """This device's rows of `dense`. Under `no_grad` they share its memory; for training they are a copy."""
        _check_dense(cls, dense)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._hold(dense, group, scatter_input, sequence_dim, share=not torch.is_grad_enabled())
        return layer

    def _hold(self, dense: nn.Linear, group: Group, scatter_input: bool, sequence_dim: int | None, share: bool) -> None:
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.group, self.scatter_input, self.sequence_dim = group, scatter_input, sequence_dim
        _hold_pieces(self, dense, share)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in/P), or (..., in) with `scatter_input` -> (..., out), or (..., S/P, ..., out) with `sequence_dim`."""
        if self.scatter_input:
            _check_input(self, x, self.in_features, "scatter_input=True cuts the whole input itself")
            x = scatter_to(x, self.group, -1)  # (..., in/P)  Shard(-1)
        mine = shard_sizes(self.in_features, self.group.size)[self.group.rank]
        _check_input(self, x, mine, "it takes its own piece of the input; for a whole input pass scatter_input=True")
        y = F.linear(x, self.weight)  # (..., out)   Partial
        if self.sequence_dim is None:
            y = reduce_from(y, self.group)  # (..., out)   Replicate
            return y if self.bias is None else y + self.bias
        y = reduce_scatter(y, self.group, self.sequence_dim)  # (..., S/P, ..., out)  Shard(sequence_dim)
        # Every device adds the bias to its own tokens only, so its gradients are partial sums: f makes them whole.
        return y if self.bias is None else y + copy_to(self.bias, self.group)

    def extra_repr(self) -> str:
        return f"in={self.weight.shape[1]} of {self.in_features}, out={self.out_features}, rank={self.group.rank}"


def _hold_pieces(layer: nn.Module, dense: nn.Linear, share: bool) -> None:
    """This device's pieces of the dense parameters, in memory of their own unless `share`."""
    check_member(layer.group, type(layer).__name__)
    for name, whole in (("weight", dense.weight), ("bias", dense.bias)):
        if whole is None:
            layer.register_parameter(name, None)
            continue
        piece = layer.layout[name].piece(whole.detach(), layer.group.size, layer.group.rank)
        if not share:  # training must not write into the dense layer, and a piece must not keep the whole alive
            piece = piece.clone(memory_format=torch.contiguous_format)
        layer.register_parameter(name, nn.Parameter(piece, whole.requires_grad))


def _check_dense(cls: type, dense: nn.Linear) -> None:
    if not isinstance(dense, nn.Linear):
        raise TypeError(f"{cls.__name__}.from_dense needs an nn.Linear, not {type(dense).__name__}")


def _check_input(layer: nn.Module, x: Tensor, expected: int, why: str) -> None:
    if x.shape[-1:] != (expected,):
        raise ValueError(
            f"{type(layer).__name__}({layer.extra_repr()}) on rank {layer.group.rank} of {layer.group.size} got an "
            f"input of shape {tuple(x.shape)}; its last dim must be {expected}: {why}"
        )

"""One layer of ZeRO stage 3: it gathers its pieces for its forward, and once more for its backward.

What the forward saves for the backward is not a gathered parameter, but where to get it. See `fully_sharded.py`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from lib.devices import Group
from lib.parallel.sharding.first_order import first_order
from lib.parallel.sharding.named import named
from lib.parallel.zero.sharded_flat import Held, Member, ShardedFlat


class ShardedLayer:
    """The pieces of one module, which gathers whole parameters for the time of its forward and of its backward."""

    def __init__(self, members: list[Member], group: Group, allow_unused: bool):
        self.group, self.allow_unused = group, allow_unused
        kinds: dict[tuple, list[Member]] = {}
        for one in members:  # frozen ones apart, since they have no gradient to reduce-scatter
            kinds.setdefault((one.parameter.requires_grad, one.parameter.dtype), []).append(one)
        self.flats = [ShardedFlat(those, group) for those in kinds.values()]
        self.again: dict[tuple[int, ...], Tensor] = {}  # gathered by the backward, until it ends
        self._whole_now = False

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the modules hold whole parameters."""
        if self._whole_now or not self.flats:
            yield
            return
        held = [flat.held() for flat in self.flats]
        whole = iter(gather_parameters(self, held, [*chain(*(one.pieces for one in held))]))
        placed: list[Tensor] = []
        with ExitStack() as stack:
            for one in held:
                tensors = [next(whole) for _ in one.pieces]
                placed += tensors
                stack.enter_context(self._regathering(one, tensors[0]))
                stack.callback(one.flat.put, one.pieces)
                one.flat.put(tensors)
            self._whole_now = True
            stack.callback(setattr, self, "_whole_now", False)
            versions = [_version(x) for x in placed]
            yield
            for x, version, origin in zip(placed, versions, (o for one in held for o in one.flat.origins), strict=True):
                if _version(x) != version:
                    raise RuntimeError(
                        f"FullySharded on rank {origin.rank} of {origin.devices}: {origin.name} {tuple(origin.shape)} "
                        "was changed in place while it was whole, and would be forgotten. Change the pieces instead, "
                        "outside: each by itself"
                    )

    def _regathering(self, held: Held, gathered: Tensor) -> saved_tensors_hooks:
        """While entered, what is saved of the storage of `gathered` is only where it lies; a backward that wants it
        gathers `held` again. All else is saved as it would be outside: by the hooks there, if any."""
        storage = gathered.untyped_storage()._cdata
        keep, give = torch._C._autograd._top_saved_tensors_default_hooks(False) or (_keep, _give)

        def pack(x: Tensor) -> Any:
            if x.untyped_storage()._cdata == storage:
                return Cut.of(x, held)
            return keep(x)

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Cut) and kept.held is held:
                return kept.out_of(self.whole(held))
            return give(kept)

        return saved_tensors_hooks(pack, unpack)

    def whole(self, held: Held) -> Tensor:
        """(n,) Replicate. A backward keeps it for its next operations, until the gradients of this layer are there."""
        in_backward = torch._C._current_graph_task_id() != -1
        if not in_backward:
            self.again.clear()  # a backward that did not come to its end may have left something
            return held.gather()
        whole = self.again.get(held.key)
        if whole is None:
            whole = held.gather()
        if any(x.requires_grad for flat in self.flats for x in flat.held().pieces):
            self.again[held.key] = whole  # else no gradient of ours would tell when to free it
        return whole


@named
def gather_parameters(layer: ShardedLayer, held: list[Held], pieces: list[Tensor]) -> tuple[Tensor, ...]:
    """The pieces of a layer, each (n_i,) Shard(0) of the flat whole -> its parameters in their shapes, Replicate."""
    return _Gather.apply(layer, held, *pieces)


class _Gather(Function):
    """Forward: all-gather, the pieces of a layer -> its whole parameters. Backward: reduce-scatter of the gradients."""

    @staticmethod
    def forward(ctx, layer, held, *pieces):
        ctx.layer, ctx.held = layer, held
        ctx.set_materialize_grads(False)  # None, not zeros, for what the loss does not depend on
        whole = list(chain(*(one.flat.layout.tensors(layer.whole(one)) for one in held)))
        ctx.mark_non_differentiable(*(x for x, piece in zip(whole, pieces, strict=True) if not piece.requires_grad))
        return tuple(whole)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        layer, grads = ctx.layer, iter(grads)
        layer.again.clear()  # every operation that needed them has run
        found = [None, None]
        for held in ctx.held:
            mine = [next(grads) for _ in held.pieces]
            trains = any(piece.requires_grad for piece in held.pieces)
            found += held.average(mine, layer.allow_unused) if trains else mine
        return tuple(found)


class Cut(NamedTuple):
    """Where a tensor lies in what was gathered, and how it reads what is there: what is saved instead of it."""

    held: Held
    dtype: torch.dtype  # a complex number may be read as two real ones
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    is_conj: bool
    is_neg: bool

    @staticmethod
    def of(x: Tensor, held: Held) -> "Cut":
        """That of `x`."""
        return Cut(held, x.dtype, x.shape, x.stride(), x.storage_offset(), x.is_conj(), x.is_neg())

    def out_of(self, whole: Tensor) -> Tensor:
        """(n,), what was gathered again -> the tensor that was saved: a view."""
        x = whole.view(self.dtype).as_strided(self.shape, self.stride, self.offset)
        x = x.conj() if self.is_conj else x
        return torch._neg_view(x) if self.is_neg else x


def _keep(x: Tensor) -> tuple[Tensor, int]:
    return x, x._version


def _give(kept: tuple[Tensor, int]) -> Tensor:
    x, version = kept
    if x._version != version:  # PyTorch does not check this behind hooks
        raise RuntimeError(f"a tensor of shape {tuple(x.shape)} that the backward needs was changed in place since")
    return x


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # in inference mode nobody counts the changes

"""ZeRO, stages 1 and 2: data parallelism in which each device steps only its own part of the parameters.

In plain data parallelism every device keeps the optimizer's state of the whole model, and all compute the same step. An
all-reduce is a reduce-scatter followed by an all-gather, and the step fits between the two:

    gradients   --reduce-scatter-->   my piece, averaged
    my piece    --optimizer------->   my piece of the parameters, updated
    my piece    --all-gather------>   all parameters

The traffic is that of the all-reduce, and optimizer state exists once, in P pieces. That is stage 1. If the gradients
are reduce-scattered while the backward computes, and the whole ones are freed at once, those too exist once: stage 2.

    zero = ShardedOptimizer(model, group, lambda pieces: torch.optim.AdamW(pieces, lr=1e-3))

    loss.backward()               # stage 1          with zero.reducing():       # stage 2
    zero.reduce_gradients()                              loss.backward()
    zero.step()                                      zero.step()
    zero.zero_grad()                                 zero.zero_grad()

Right for optimizers that treat each element by itself, as SGD and Adam do. Stage 3 is in `fully_sharded.py`.
Rajbhandari et al. 2020, arXiv 1910.02054, sections 5 and 7.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lib.devices import Group, Handle
from lib.parallel.data.average import check_same_parameters
from lib.parallel.data.backward import checked_share, leaving, trainable, used_anywhere
from lib.parallel.data.buckets import BUCKET_BYTES, plan_buckets
from lib.parallel.data.samples import check_samples
from lib.parallel.sharding.dense import cut_parameters
from lib.parallel.sharding.named import named
from lib.parallel.zero.bucket import Bucket, check_cleared, check_reduced, take
from lib.parallel.zero.piece import Piece
from lib.parallel.zero.state import load_optimizer_state
from lib.parallel.zero.wrapped import Wrapped


class ShardedOptimizer(Wrapped):
    """Holds this device's pieces of the parameters of `module`, and the optimizer that steps them.

    `make_optimizer` is given the pieces, a list of 1-D `Piece`s in the order of the model, some maybe empty. The
    parameters become views of flat buckets of about `bucket_bytes`; what is loaded or assigned to them later
    (`p.data = ...`, another memory format) counts. All devices must begin with the same ones: raises ValueError that
    names the first that differs, and when no parameter requires a gradient.

    Between two steps, call its own `zero_grad()`: ValueError where gradients would be added to those of the last step,
    or a step would leave out gradients that nobody has reduced.
    """

    def __init__(
        self,
        module: nn.Module,
        group: Group,
        make_optimizer: Callable[[list[nn.Parameter]], Any],
        bucket_bytes: float = BUCKET_BYTES,
    ):
        self.module, self.group = module, group
        named = trainable(module, group, self._who("ShardedOptimizer"), may_be_pieces=True)
        for name, p in named.items():
            if isinstance(p, Piece):
                raise ValueError(
                    f"{self._who('ShardedOptimizer')}: {name} is a piece already, and needs no other than a plain "
                    "optimizer: torch.optim.AdamW(model.parameters())"
                )
        check_same_parameters(module, group)
        self._names = {p: name for name, p in named.items()}
        cut = cut_parameters(module)
        buckets = plan_buckets(named.values(), bucket_bytes)
        self._buckets = [Bucket(bucket, self._names, group, cut) for bucket in buckets]
        piece_of = {p: piece for bucket in self._buckets for p, piece in bucket.pieces.items()}
        self.pieces = [piece_of[p] for p in self._names]  # each (n_i,)  Shard(0) of the flat bucket
        self._used_up = False  # whether the gradients of the pieces are those of a step that was made
        super().__init__(make_optimizer(self.pieces))

    @property
    def ranges(self) -> dict[str, range]:
        """Of each parameter, by name, flattened: the elements of this device's piece. For resharding."""
        return {piece.origin.name: piece.origin.where for piece in self.pieces}

    @named
    def reduce_gradients(self, share: float | None = None, allow_unused: bool = False) -> None:
        """Stage 1, after the last backward: the gradients of the pieces become the mean over all samples, and the whole
        gradients are freed. Partial -> Shard(0).

        `share` and `allow_unused` are those of `average_gradients`. Communication: one reduce-scatter per bucket.
        """
        who = self._who("reduce_gradients")
        share = checked_share(share, self.group, who)
        self._check_module(who)
        check_cleared(self.pieces if self._used_up else [], who)
        here = {name: p.grad is not None for p, name in self._names.items() if p.requires_grad}
        used = self._used(here, allow_unused, who)
        for bucket in self._buckets:
            whole = take(bucket.parameters, share)  # (n,)  Partial
            bucket.add(self.group.reduce_scatter(whole), used)  # (n/P,)  Shard(0)

    @contextmanager
    def reducing(self, share: float | None = None, allow_unused: bool = False) -> Iterator[None]:
        """Stage 2, around each backward: `reduce_gradients`, but each bucket leaves as soon as its last gradient is
        there. What earlier micro-batches left in the pieces is added to.

        One bucket at most is under way, so no more than two of them need memory. They leave in the same order on all
        devices: where a gradient comes late or never, those behind it wait. Inside, `group` can be used for nothing
        else.
        """
        who = self._who("reducing")
        share = checked_share(share, self.group, who)
        self._check_module(who)
        check_cleared(self.pieces if self._used_up else [], who)
        here: dict[str, bool] = {}
        arrived: list[Tensor] = []
        under_way: list[Handle] = []

        def receive() -> None:
            if under_way:
                arrived.append(under_way.pop().wait())

        def send(parameters: list[nn.Parameter]) -> None:
            here.update((self._names[p], p.grad is not None) for p in parameters if p.requires_grad)
            flat = take(parameters, share)
            receive()
            under_way.append(self.group.reduce_scatter(flat, async_op=True))

        with leaving([bucket.parameters for bucket in self._buckets], send, self._names, who):
            yield
        receive()
        land_pieces(self, share, lambda: self._add(arrived, self._used(here, allow_unused, who)))

    def _add(self, arrived: list[Tensor], used: set[nn.Parameter]) -> None:
        for bucket, mine in zip(self._buckets, arrived, strict=True):
            bucket.add(mine, used)

    @named
    @torch.no_grad()
    def step(self) -> None:
        """Each device steps its pieces, and all get all of them, Shard(0) -> Replicate: one all-gather per bucket."""
        self._check_module(self._who("step"))
        check_reduced(self._names, self._who("step"))
        self.optimizer.step()
        self._used_up = True
        for bucket in self._buckets:
            whole = self.group.all_gather(bucket.mine)  # (n/P,) Shard(0) -> (n,) Replicate
            for p, x in zip(bucket.parameters, bucket.layout.tensors(whole), strict=True):
                p.copy_(x)  # not into `flat`: then PyTorch would not notice that a graph has become stale

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees the gradients, the whole ones and those of the pieces."""
        self._used_up = False
        for p in (*self._names, *self.pieces):
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of this device's pieces, in PyTorch's form."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse. Raises ValueError when a tensor does not have the shape of its piece."""
        load_optimizer_state(self.optimizer, state, self.group)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the module that train, in the order of `pieces`."""
        return [(name, p) for p, name in self._names.items()]

    @property
    def stepped(self) -> list[nn.Parameter]:
        """What the optimizer steps."""
        return self.pieces

    @named
    def _check_module(self, who: str) -> None:
        """The parameters that train are those of the buckets, and lie in them. Raises ValueError by name otherwise."""
        check_samples(self.module, self.group, who)
        for name, p in self.module.named_parameters():
            if p.requires_grad and p not in self._names:
                raise ValueError(
                    f"{who}: {name} {tuple(p.shape)} was replaced, added or unfrozen after this ShardedOptimizer was "
                    "made, and would not train. Make it again, after such changes"
                )
        for bucket in self._buckets:
            bucket.hold(self._names, who)

    def _used(self, here: dict[str, bool], allow_unused: bool, who: str) -> set[nn.Parameter]:
        used = used_anywhere(here, self.group, self.pieces[0].device, allow_unused, who)
        return {p for p, name in self._names.items() if name in used}

    def _who(self, what: str) -> str:
        return f"{what} on rank {self.group.rank} of {self.group.size}"


@named
def land_pieces(zero: ShardedOptimizer, share: float, finish: Callable[[], None]) -> None:
    """What `reducing` does after the backward, in one: as `reduce_gradients`, seen from outside."""
    finish()

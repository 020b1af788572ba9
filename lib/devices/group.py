"""What a program sees: its rank, and the verbs by which it talks to the other devices of its group."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lib.devices import collectives as c
from lib.devices import rooted
from lib.devices.engine import arguments
from lib.devices.engine.meeting_place import MeetingPlace
from lib.devices.engine.wording import short_ranks
from lib.devices.handle import Handle

Sizes = Sequence[int] | Sequence[Sequence[int]]


class Group:
    """Some devices that talk, seen from one of them.

    `rank` is this device's number in the group and `size` how many there are; `ranks` are the members' ranks in the
    cluster, in the order of the group, and `me` is this device's; `key` names the group at its meeting place. On a
    device that is not a member, `rank` is None and every verb is refused.

    The verbs are named as in `torch.distributed` and mean the same, but they are functional: each returns a new tensor
    and never writes into the one it was given. `src` and `dst` are ranks in the group. All devices of the group must
    make the same calls in the same order.

    Verbs know nothing of gradients, so a tensor that requires one is refused; `lib.parallel.sharding.conjugates` holds
    the differentiable functions.
    """

    def __init__(self, place: MeetingPlace, me: int, ranks: Sequence[int], key: int = 0):
        self.ranks = tuple(ranks)
        self.size = len(self.ranks)
        self.rank = self.ranks.index(me) if me in self.ranks else None
        self.place, self.me, self.key = place, me, key
        self._times_made: dict[tuple[int, ...], int] = {}

    def at(self, place: MeetingPlace) -> "Group":
        """The same group, and all that it will be split into, with another meeting place behind it than `self.place`:
        one that passes the calls on to it and notes the time, or loses messages."""
        return Group(place, self.me, self.ranks, self.key)

    def __deepcopy__(self, memo: dict) -> "Group":
        """A copy of a layer talks to the same devices."""
        return self

    def __repr__(self) -> str:
        return f"Group(rank={self.rank}, size={self.size}, ranks={short_ranks(self.ranks)})"

    # ---- collectives: every device of the group takes part ----
    # With async_op=True, the device goes on at once and gets the result from the Handle's wait().

    def all_reduce(self, x: Tensor, op: str = "sum", async_op: bool = False) -> Tensor | Handle:
        """The element-by-element sum ("max", "min") of all tensors, on every device. Shape as `x`."""
        return self._meet(c.AllReduce(op), x, async_op=async_op)

    def all_gather(self, x: Tensor, dim: int = 0, async_op: bool = False) -> Tensor | Handle:
        """All tensors concatenated along `dim` in rank order, on every device. Lengths along `dim` may differ."""
        return self._meet(c.AllGather(self._dim(x, dim, "all_gather")), x, async_op=async_op)

    def reduce_scatter(self, x: Tensor, dim: int = 0, op: str = "sum", async_op: bool = False) -> Tensor | Handle:
        """The sum of all tensors cut along `dim` (see `shard_sizes`); this device's piece."""
        return self._meet(c.ReduceScatter(self._dim(x, dim, "reduce_scatter"), op), x, async_op=async_op)

    def all_to_all(
        self, x: Tensor, split_dim: int = 0, concat_dim: int = 0, sizes: Sizes | None = None, async_op: bool = False
    ) -> Tensor | Handle:
        """Piece j of `x` along `split_dim` goes to device j; what arrives is concatenated along `concat_dim`.

        The pieces are equal (see `shard_sizes`) unless `sizes` says how long they are: P lengths, those of this
        device's own pieces, or the table of all, sizes[i][j] from device i to device j. A receiver must know what
        comes, so P lengths cost an all-gather first (`table_of`); the table costs nothing. The dims must be the same.
        """
        split, concat = self._dim(x, split_dim, "all_to_all"), self._dim(x, concat_dim, "all_to_all")
        if sizes is not None:
            mine, table = arguments.lengths(self, x, split, concat, sizes)
            sizes = table or self.table_of(mine)
        return self._meet(c.AllToAll(split, concat, sizes), x, async_op=async_op)

    def table_of(self, lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """`table[i][j]`: entry j of what device i brought. One all-gather of 8 P bytes from each device."""
        mine = torch.tensor([*map(int, lengths)], dtype=torch.int64, device="cpu")
        return tuple(map(tuple, self.all_gather(mine[None]).tolist()))

    def broadcast(self, x: Tensor | None, src: int = 0, async_op: bool = False) -> Tensor | Handle:
        """The tensor of device `src`, on every device. The others may pass None, or a tensor of the same shape."""
        self._member(src, "src", "broadcast")
        return self._meet(rooted.Broadcast(src), x, needed=self.rank == src, async_op=async_op)

    def reduce(self, x: Tensor, dst: int = 0, op: str = "sum", async_op: bool = False) -> Tensor | Handle | None:
        """The sum ("max", "min") of all tensors on device `dst`; None on the others."""
        self._member(dst, "dst", "reduce")
        return self._meet(rooted.Reduce(dst, op), x, async_op=async_op)

    def scatter(self, x: Tensor | None, dim: int = 0, src: int = 0, async_op: bool = False) -> Tensor | Handle:
        """This device's piece of the tensor of device `src`, cut along `dim`. The others may pass None."""
        self._member(src, "src", "scatter")
        self._dim(x, dim, "scatter")
        return self._meet(rooted.Scatter(src, dim), x, needed=self.rank == src, async_op=async_op)

    def gather(self, x: Tensor, dim: int = 0, dst: int = 0, async_op: bool = False) -> Tensor | Handle | None:
        """All tensors concatenated along `dim` in rank order on device `dst`; None on the others."""
        self._member(dst, "dst", "gather")
        return self._meet(rooted.Gather(dst, self._dim(x, dim, "gather")), x, async_op=async_op)

    def barrier(self) -> None:
        """Returns when every device of the group has called it."""
        self._meet(rooted.Barrier(), None, needed=False)

    # ---- messages: two devices ----

    def send(self, x: Tensor, dst: int, tag: int = 0) -> None:
        """Sends `x` to device `dst`. Does not wait until it is received, unless the cluster has rendezvous."""
        self._member(dst, "dst", "send")
        arguments.tensor(self, x, "send")
        self.place.send(self.key, self.ranks, self.rank, dst, tag, x.detach())

    def recv(self, src: int, tag: int = 0, async_op: bool = False) -> Tensor | Handle:
        """The next tensor that device `src` sends to this one under `tag`. Waits for it."""
        self._member(src, "src", "recv")
        if async_op:
            return self.place.expect(self.key, self.ranks, self.rank, src, tag)
        return self.place.recv(self.key, self.ranks, self.rank, src, tag)

    # ---- time ----

    def now(self) -> float:
        """Seconds: the virtual time of this device where the cluster has hardware, else that of the wall clock."""
        return self.place.now(self.me)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """`with group.span("forward"):` gives what happens inside a name in the trace."""
        start = self.now()
        yield
        self.place.note(self.me, name, start)

    # ---- smaller groups ----

    def split(self, parts: int | Sequence[Sequence[int]]) -> "Group":
        """The sub-group that this device belongs to; costs no communication.

        `parts` is a number (so many groups of consecutive ranks, which must divide evenly) or a list of lists of ranks
        of this group, e.g. [[0, 2], [1, 3]]. A device in none of the lists gets a group whose verbs are refused.
        """
        lists = arguments.parts_of(self, parts)
        ranks = tuple(self.ranks[r] for r in next((part for part in lists if self.rank in part), ()))
        # The same devices may be asked for again: each time is a group of its own, with its own meetings.
        times = self._times_made[ranks] = self._times_made.get(ranks, 0) + 1
        return Group(self.place, self.me, ranks, self.place.key_for(self.key, ranks, times))

    def _meet(
        self, verb: c.Collective, x: Tensor | None, needed: bool = True, async_op: bool = False
    ) -> Tensor | Handle | None:
        arguments.member(self, self.rank, "rank", verb.name)
        given = x is not None or needed
        if hasattr(verb, "op"):
            arguments.operation(self, verb, x if isinstance(x, Tensor) else None)
        if given:
            arguments.tensor(self, x, verb.name)
            x = x.detach()
        joined = self.place.join(self.key, self.ranks, self.rank, verb, x)
        if async_op:
            return self.place.hand_out(joined, self.ranks, self.rank, verb)
        return self.place.collect(joined, self.ranks, self.rank, verb)

    def _dim(self, x: Tensor, dim: int, verb: str) -> int:
        return arguments.dim_of(self, x, dim, verb)

    def _member(self, rank: int, what: str, verb: str) -> None:
        arguments.member(self, rank, what, verb)

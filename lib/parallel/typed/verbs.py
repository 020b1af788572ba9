"""The verbs of a group, seen by the types. A verb is blind to gradients, so what comes of it has none."""

from typing import Any

import torch
from torch import Tensor

from lib.devices import Handle
from lib.devices.collectives import AllGather, AllReduce, AllToAll, Collective, ReduceScatter
from lib.parallel.sharding.placement import Partial, Replicate, Shard
from lib.parallel.typed.kinds import CONSTANT, Kind, Operand, PlacementError, written
from lib.parallel.typed.sums import is_summand
from lib.parallel.typed.where import readers_frame, told

MESSAGE = (
    "a message goes from one device to another, and types follow one program that all devices of a group run: what one "
    "device has and the others do not is no placement. Give the types to what they do together: of a pipeline, to one "
    "stage, by types.give(x) and y.backward(gradient)"
)


class Seen:
    """The meeting place of a group, seen from the checker `types`: it passes every call on."""

    def __init__(self, place: Any, types: Any):
        self.place, self.types = place, types

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place, name)

    def join(self, key: int, ranks: tuple[int, ...], rank: int, verb: Collective, x: Tensor | None) -> Any:
        """The kinds that come of it are told before anything is sent."""
        kinds = None if self.types.inside else self.types.after_verb(verb, ranks, x)
        with torch._C.DisableTorchFunction():
            return self.place.join(key, ranks, rank, verb, x), kinds

    def collect(self, joined: Any, ranks: tuple[int, ...], rank: int, verb: Collective) -> Tensor | None:
        """The result, with its kinds."""
        with torch._C.DisableTorchFunction():
            result = self.place.collect(joined[0], ranks, rank, verb)
        if result is not None and joined[1]:
            self.types.kinds[result] = joined[1]
        return result

    def send(self, *args: Any) -> None:
        """A message of one device to another: inside of a move alone."""
        self.check_message()
        self.place.send(*args)

    def recv(self, *args: Any) -> Tensor:
        """The same."""
        self.check_message()
        return self.place.recv(*args)

    def expect(self, *args: Any) -> Handle:
        """The same."""
        self.check_message()
        return self.place.expect(*args)

    def check_message(self) -> None:
        """Refuses one of the program's own."""
        if not self.types.inside:
            with told(readers_frame(), self.types.rank):
                raise PlacementError(MESSAGE)

    def hand_out(self, joined: Any, ranks: tuple[int, ...], rank: int, verb: Collective) -> Handle:
        """A verb that is waited for later: its result would come without a kind."""
        if joined[1] is None:
            return self.place.hand_out(joined[0], ranks, rank, verb)
        raise PlacementError(f"{verb.name} with async_op=True is not seen by types; use the move or the waiting verb")


def after_verb(verb: Collective, x: Operand, devices: int) -> Kind:
    """The kind that a verb makes of another, over its own axis."""
    match verb, x.value:
        case AllReduce("sum"), Replicate() if is_summand(x):
            return CONSTANT
        case AllReduce(op), Partial(other) if op == other:
            return CONSTANT
        case AllReduce("sum"), Replicate():
            raise PlacementError(
                f"an all-reduce of what is whole already would make it {devices} times too large: take it away"
            )
        case AllReduce(), Replicate():
            return CONSTANT
        case AllGather(dim), Shard(cut) if dim == cut:
            return CONSTANT
        case ReduceScatter(dim, "sum"), Partial("sum"):
            return Kind(Shard(dim))
        case AllToAll(split, concat, None), Shard(cut) if cut == concat:
            return Kind(Shard(split))
    raise PlacementError(f"{verb.name} of a {written(x.value)} makes nothing that has a meaning")

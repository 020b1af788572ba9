"""The virtual clock: how long each device would have taken on real hardware.

Every device has a time of its own. A kernel moves it on by the roofline of its FLOPs and bytes; a collective brings
all of its devices to one common end. Nothing is slowed down: the clock is arithmetic beside the run.

A device has a link inside its node and a network card, and they work at the same time. Collectives in flight at once
get a link in the order in which its device called them.

What the model leaves out: contention between groups that share more than a device, caches, and kernels that a compiler
would fuse; kernel launches too, unless the hardware says what one costs. Adding inside a collective is free.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils.flop_counter import flop_registry

from lib.devices.collectives import Collective
from lib.devices.engine.known_shapes import KnownShapes
from lib.devices.hardware import Hardware, Link
from lib.devices.memory import Memory
from lib.devices.network import Ways
from lib.devices.tensors import tensors_in
from lib.devices.trace import Event, Trace
from lib.devices.traffic import size_in_bytes


class Clock:
    """The times of all devices of one run. The engine moves them; `trace` keeps what happened."""

    def __init__(self, size: int, hardware: Hardware, trace: Trace):
        self.hardware, self.trace = hardware, trace
        self.now = [0.0] * size  # when each device can do its next thing
        self._issued = [0.0] * size  # when each host has issued what it was asked for
        # When a device's link has sent what it was given, and received what it took: one message at a time each way.
        self._sent = {kind: [0.0] * size for kind in ("inside", "between")}
        self._received = {kind: [0.0] * size for kind in ("inside", "between")}
        self.memory = Memory(self.now, trace.memory)
        self.shapes = KnownShapes()  # devices and layers are alike
        self._counting = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The engine's own copies and sums are no work of the device: they belong to the price of the collective."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def touch(self, rank: int, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        """Device `rank` has memory in hand: what the operation `name` was given, and what it made."""
        if self._counting:
            self.memory.see(rank, given)
            derived = torch.is_grad_enabled() and any(x.requires_grad for x in given)
            self.memory.see(rank, made, name, derived)

    def compute(self, rank: int, name: str, flops: int, moved: int) -> None:
        """Device `rank` runs a kernel."""
        if self._counting:
            start = self.issue(rank)
            self.now[rank] = start + self.hardware.compute_seconds(flops, moved)
            self.trace.events.append(Event(rank, "compute", name, start, self.now[rank], flops=flops, moved=moved))

    def collective(
        self, ranks: Sequence[int], verb: Collective, tensors: list[Tensor], came: list[float]
    ) -> tuple[float, float]:
        """All `ranks` take part in `verb`, each ready at its time in `came`; returns when it begins and ends. It begins
        when the last has come and all links are free. The devices' own times stay as they are."""
        if len(ranks) == 1:
            return came[0], came[0]
        ways = Ways(self.hardware, ranks)
        links = [links[kind] for links in (self._sent, self._received) for kind in ways.kinds]
        start = max(*came, *(link[r] for link in links for r in ranks))
        end = start + verb.seconds(tensors, ways)
        for r, traffic in zip(ranks, verb.traffic(tensors), strict=True):
            for link in links:
                link[r] = end
            self.trace.events.append(Event(r, "communication", verb.name, start, end, sent=traffic.bytes_sent))
        return start, end

    def send(self, src: int, dst: int, size: int, called: float = 0.0) -> tuple[float, float]:
        """Device `src` sends `size` bytes to `dst`, when its link has sent what came before, and not before `called`,
        when `dst` asked for them; returns when they begin to leave, and when they have left."""
        link, sent = self._between(src, dst, self._sent)
        start = max(self.now[src], sent[src], called)
        sent[src] = end = start + link.seconds(1, size)
        self.trace.events.append(Event(src, "communication", f"send to {dst}", start, end, sent=size))
        return start, end

    def receive(self, src: int, dst: int, size: int, sent: float) -> tuple[float, float]:
        """Device `dst` takes the message that `src` began to send at `sent`. Its link takes one at a time, in the order
        of the calls of recv, whichever comes first; returns beginning and end. The device does not wait."""
        link, received = self._between(src, dst, self._received)
        start = max(sent, received[dst])
        received[dst] = end = start + link.seconds(1, size)
        self.trace.events.append(Event(dst, "communication", f"recv from {src}", start, end))
        return start, end

    def _between(self, src: int, dst: int, busy: dict[str, list[float]]) -> tuple[Link, list[float]]:
        link = self.hardware.link((src, dst))
        return link, busy["inside" if src // self.hardware.per_node == dst // self.hardware.per_node else "between"]

    def issue(self, rank: int) -> float:
        """The host of device `rank` issues a kernel or a call; returns when the device can begin with it."""
        if self.hardware.launch:
            self._issued[rank] += self.hardware.launch
            self.wait_until(rank, self._issued[rank], "launch", self._issued[rank])
        return self.now[rank]

    def wait_until(self, rank: int, time: float, why: str, begin: float | None = None) -> None:
        """Device `rank` stands still until `time`. The part before `begin`, when the others were not ready, is waiting;
        the rest is the communication itself, which has an event of its own."""
        idle_end = time if begin is None else min(begin, time)
        if idle_end > self.now[rank]:
            self.trace.events.append(Event(rank, "waiting", why, self.now[rank], idle_end))
        self.now[rank] = max(self.now[rank], time)


# Operations of PyTorch that are no kernels: a collective has a price of its own, and the others ask a tensor something.
NO_KERNELS = ("_c10d_functional", "_c10d_functional_autograd", "c10d", "_dtensor", "prim")


class Charge(TorchDispatchMode):
    """While entered, charges every kernel that this thread runs to device `rank`, forward and backward, and notes the
    memory it touches."""

    def __init__(self, clock: Clock, rank: int):
        super().__init__()
        self._clock, self._rank = clock, rank

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace in NO_KERNELS or only_shapes_are_asked():
            return func(*args, **(kwargs or {}))
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor, say: it makes kernels on its shard of it, and these are charged
        if torch.is_inference_mode_enabled() and func.overloadpacket not in flop_registry:
            with self:  # inference mode hands over matmul and linear whole; ask for their kernels
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = self._clock.shapes.result(func, args, kwargs or {})
        name = func.overloadpacket.__name__
        given, made = tensors_in(args), tensors_in([out])
        self._clock.touch(self._rank, name, given, made)
        if not func.is_view and not name.startswith(("empty", "new_empty", "_unsafe_view")):  # these move nothing
            # The registry knows the attention kernels of GPUs; the CPU's have the same arithmetic.
            count = flop_registry.get(getattr(torch.ops.aten, name.replace("_for_cpu", ""), None))
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            if flops and _is_causal(func, args, kwargs or {}):
                flops //= 2  # the registry counts the whole square of scores; the kernel skips what nobody may see
            self._clock.compute(self._rank, name, flops, sum(map(size_in_bytes, given + made)))
        return out


def only_shapes_are_asked() -> bool:
    """Whether this thread asks PyTorch what shape a result would have, as DTensor does for the whole of its shards."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _is_causal(func: Any, args: tuple, kwargs: dict) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    if "is_causal" not in names:
        return False
    place = names.index("is_causal")
    return bool(args[place] if place < len(args) else kwargs.get("is_causal"))

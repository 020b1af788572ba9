"""What every device keeps in memory, from when to when, in virtual time.

A block is what PyTorch allocates once: a storage, however many tensors are views of it. It counts from its first kernel
until it is really freed. Left out: the allocator's rounding, fragmentation, and what a kernel needs only
while it runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lib.devices.saved_parameters import same_objects

Use = Literal["parameters", "gradients", "activations", "optimizer", "buffers"]
USES: tuple[Use, ...] = get_args(Use)


class Held(NamedTuple):
    """Device `rank` held `size` bytes, made by `name`, from `start` to `end` (seconds of virtual time).

    `kind`: parameters (leaves that require a gradient, and frozen parameters), gradients (of those), activations
    (saved for the backward), optimizer (its state), buffers (all else). What is used for two things in a row is held
    twice in a row.
    """

    rank: int
    kind: Use
    name: str
    size: int
    start: float
    end: float


@dataclass
class Block:
    """One storage in use by one device."""

    name: str
    size: int
    kind: Use
    since: float
    alive: weakref.ref  # its callback ends the block
    saved: int = 0  # how often a graph keeps it
    derived: bool = False  # came out of a graph, or from another device: cut loose, it begins a graph and is no weight


class Memory:
    """The blocks of all devices of one run. `now` are the devices' clocks; what has ended goes into `held`.

    Nothing is kept alive by being watched.
    """

    def __init__(self, now: list[float], held: list[Held]):
        self._now, self._held = now, held
        self._blocks: dict[int, dict[int, Block]] = {}  # address of the storage -> rank -> block
        self._hooks: list[Any] = []

    def see(self, rank: int, tensors: Iterable[Tensor], name: str | None = None, derived: bool = False) -> None:
        """Device `rank` uses `tensors`, which were made by `name`, or came from outside. `derived`: from others that
        require a gradient, so what `x.detach().requires_grad_()` makes of them is no parameter."""
        for x in tensors:
            storage = x.untyped_storage()
            users = self._blocks.setdefault(storage._cdata, {})
            if rank not in users and (size := storage.nbytes()):
                gone = weakref.ref(storage, lambda _, rank=rank, key=storage._cdata: self._freed(rank, key))
                users[rank] = Block(name or f"input {tuple(x.shape)}", size, "buffers", self._now[rank], gone)
                users[rank].derived = derived
            if rank in users and _is_parameter(x, users[rank]):
                self._parameter(rank, users[rank], x)

    def resized(self, rank: int, storage: torch.UntypedStorage) -> None:
        """Device `rank` has given `storage` another size: 0 frees it, as FSDP does; else it counts when it is used."""
        if rank in self._blocks.get(storage._cdata, {}):
            self._freed(rank, storage._cdata)

    def held_now(self, rank: int) -> list[Held]:
        """What device `rank` holds at this moment, each as if it ended now."""
        blocks = [users[rank] for users in self._blocks.values() if rank in users]
        return [Held(rank, b.kind, b.name, b.size, b.since, self._now[rank]) for b in blocks]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the time of a run: also watches optimizers. Afterwards nothing is left behind."""
        self._hooks.append(register_optimizer_step_post_hook(self._stepped))
        try:
            with same_objects():
                yield
        finally:
            for hook in self._hooks:
                hook.remove()
            end = max(self._now)
            for users in self._blocks.values():
                for rank, block in users.items():
                    self._record(rank, block, end)
            self._blocks.clear()

    def saving(self, rank: int) -> saved_tensors_hooks:
        """While entered, tensors that this thread saves for its backward count as activations of device `rank`."""
        return saved_tensors_hooks(lambda x: Saved(self, rank, x), Saved.unpack)

    def keep(self, rank: int, x: Tensor, change: int) -> None:
        """A graph of device `rank` keeps `x` once more, or (`change` = -1) once less."""
        if change > 0:
            self.see(rank, [x])  # what a kernel saves of its input is saved before the kernel runs
        block = self._blocks.get(x.untyped_storage()._cdata, {}).get(rank)
        if block is not None:
            block.saved += change
            if block.kind in ("activations", "buffers"):
                self._becomes(rank, block, "activations" if block.saved else "buffers")

    def _parameter(self, rank: int, block: Block, x: Tensor) -> None:
        if block.kind in ("buffers", "activations"):
            block.name = f"parameter {tuple(x.shape)}"
            self._becomes(rank, block, "parameters")
            if x.requires_grad and x.is_leaf:
                self._hooks.append(x.register_post_accumulate_grad_hook(self._accumulated))

    def _accumulated(self, x: Tensor) -> None:
        if x.grad is not None:
            self._now_used_as("gradients", x.grad)

    _accumulated.only_looks = True

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    self._now_used_as("optimizer", value)
        for group in optimizer.param_groups:
            for p in group["params"]:
                self._accumulated(p)  # a gradient that came from a collective shows as one only now

    def _now_used_as(self, kind: Use, x: Tensor) -> None:
        for rank, block in self._blocks.get(x.untyped_storage()._cdata, {}).items():
            self._becomes(rank, block, kind)

    def _becomes(self, rank: int, block: Block, kind: Use) -> None:
        if block.kind not in ("buffers", kind):  # what a new buffer is good for shows later; it was made for that
            self._record(rank, block, self._now[rank])
            block.since = self._now[rank]
        block.kind = kind

    def _freed(self, rank: int, key: int) -> None:
        users = self._blocks.get(key, {})
        if rank in users:
            self._record(rank, users.pop(rank), self._now[rank])
            if not users:
                del self._blocks[key]

    def _record(self, rank: int, block: Block, end: float) -> None:
        if end > block.since:  # what takes no time does not show
            self._held.append(Held(rank, block.kind, block.name, block.size, block.since, end))


def _is_parameter(x: Tensor, block: Block) -> bool:
    if type(x) is not Tensor and isinstance(x, torch.nn.Parameter):  # which is slow to ask
        return True
    # In a backward, saved tensors come back as leaves.
    in_backward = torch._C._current_graph_task_id() != -1
    return x.is_leaf and x.requires_grad and not (x._is_view() or block.derived or in_backward)


class Saved:
    """A tensor that the graph of a device keeps for its backward. Lives as long as it is kept."""

    __slots__ = ("_memory", "_rank", "_tensor", "_version")

    def __init__(self, memory: Memory, rank: int, x: Tensor):
        self._memory, self._rank, self._tensor = memory, rank, x
        self._version = x._version
        memory.keep(rank, x, 1)

    def unpack(self) -> Tensor:
        """The tensor. Raises RuntimeError when it was changed since: PyTorch does not check this behind hooks."""
        if self._tensor._version != self._version:
            raise RuntimeError(
                f"rank {self._rank}: a tensor of shape {tuple(self._tensor.shape)} that the backward needs was changed "
                f"in place: it is at version {self._tensor._version}, saved was version {self._version}. "
                "Make a new tensor instead: x = x + 1, not x += 1"
            )
        return self._tensor

    def __del__(self) -> None:
        self._memory.keep(self._rank, self._tensor, -1)

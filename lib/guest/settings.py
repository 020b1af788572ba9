"""Settings of Python and PyTorch that hold for a whole process, and that programs change: after the run they are as
before.

Those that are set for a while are each device's own. `with sdpa_kernel(...)` around a collective would else end for all
devices when it ends for the first, and the last would put back what the first had set. The others all devices share.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from lib.guest.private_tensors import FOR_A_WHILE, FOR_ALL, OLDER_PRECISIONS, PRECISIONS, PRINTING


def _collect_by_itself(on: bool) -> None:
    (gc.enable if on else gc.disable)()


def _freeze(objects: int) -> None:
    """What the run has frozen would else never be freed, the models of its devices among it."""
    if not objects:
        gc.unfreeze()


def _trust(classes: Iterable[Any]) -> None:
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(classes))


_matmul = torch.backends.cuda.matmul
# How to read and to write each of those that are no secret. Long runs turn the garbage collection of Python off.
PUBLIC = (
    (gc.isenabled, _collect_by_itself),
    (gc.get_threshold, lambda thresholds: gc.set_threshold(*thresholds)),
    (gc.get_freeze_count, _freeze),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy),
    (lambda: frozenset(torch.serialization.get_safe_globals()), _trust),
    (dist.get_debug_level, dist.set_debug_level),
    *(
        (
            lambda name=name: (getattr(_matmul, name), getattr(_matmul, f"{name}_split_k")),
            partial(setattr, _matmul, name),
        )
        for name in ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    ),
)
# Precision is set in an older and a newer way. The older one changes the newer one too, so it is written first.
SHARED = (*PUBLIC, PRINTING, *FOR_ALL, *OLDER_PRECISIONS, *PRECISIONS)


class ForAWhile:
    """Owner of those that each device has for itself."""

    def __init__(self, size: int):
        self._caller = self._now = self._read()
        self._mine = [self._caller] * size

    def take_up(self, rank: int) -> None:
        """PyTorch is set as device `rank` has left it."""
        self._write(self._mine[rank])

    def lay_aside(self, rank: int) -> None:
        """It is kept."""
        self._now = self._mine[rank] = self._read()

    def give_back(self, failed: bool) -> None:
        """As before."""
        self._now = self._read()
        self._write(self._caller)

    def _read(self) -> list[bool]:
        return [get() for get, _ in FOR_A_WHILE]

    def _write(self, values: list[bool]) -> None:
        if values != self._now:
            for (_, put), value in zip(FOR_A_WHILE, values, strict=True):
                put(value)
            self._now = values


@contextmanager
def shared(size: int) -> Iterator[None]:
    """Around a run: the caller finds its own again."""
    before = [_said(get) for get, _ in SHARED]
    try:
        yield
    finally:
        for (get, put), value in zip(SHARED, before, strict=True):
            if value is not None and _said(get) != value:
                put(value)


def _said(get: Callable[[], Any]) -> Any:
    """None: PyTorch does not say the older precision where the newer one was set."""
    try:
        return get()
    except RuntimeError:
        return None

"""What the virtual clock needs to know of PyTorch's own parallelism, in the runs of guests.

DTensor runs each new operation once more, for the shape of the whole: nothing is computed, so nothing is charged. FSDP2
puts its collectives on streams, which on the CPU are empty words: here they have times of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lib.guest.gpus.patches import Patches
from lib.guest.private import ShardingPropagator
from lib.guest.streams import Streams

STREAMS = ("Event", "Stream", "current_stream", "stream", "synchronize")


@contextmanager
def charged(size: int) -> Iterator[None]:
    """Around the run of a guest; afterwards PyTorch is as before."""
    patches, streams = Patches(), Streams()
    for name in STREAMS:
        patches.set(torch.cpu, name, getattr(streams, name))
    shape_of_the_whole = ShardingPropagator._propagate_tensor_meta_non_cached

    def uncharged(*args: Any) -> Any:
        with _disable_current_modes():
            return shape_of_the_whole(*args)

    patches.set(ShardingPropagator, "_propagate_tensor_meta_non_cached", uncharged)
    try:
        yield
    finally:
        patches.undo()

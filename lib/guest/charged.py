"""What the virtual clock needs to be told in the runs of guests.

FSDP2 puts its collectives on streams, which on the CPU are empty words. And it frees memory under its tensors, by
giving their storages another size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from lib.guest import private
from lib.guest.patches import Patches
from lib.guest.private_tensors import without_modes
from lib.guest.streams import Streams, clock_here

STREAMS = ("Event", "Stream", "current_stream", "stream", "synchronize")


@contextmanager
def charged(size: int) -> Iterator[None]:
    """Around a run: the streams of `torch.cpu` have times on the clock, and resized storages are seen. Not seen is how
    DDP looks at one number of each of the others when it is made: on P devices P x P looks, which take no time."""
    streams, patches = Streams(), Patches()
    for name in STREAMS:
        patches.set(torch.cpu, name, getattr(streams, name))
    resize = torch.UntypedStorage.resize_

    @wraps(resize)
    def resize_and_tell(storage: torch.UntypedStorage, *args: Any) -> Any:
        clock, me = clock_here()
        result = resize(storage, *args)
        if clock is not None:
            clock.memory.resized(me, storage)
        return result

    patches.set(torch.UntypedStorage, "resize_", resize_and_tell)
    try:
        with private.ddps_first_look(without_modes):
            yield
    finally:
        patches.undo()

"""What PyTorch offers and simulated devices do not: left out with a warning where the results stay the same, refused
with a sentence where they would not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc

from lib.guest import private
from lib.guest.callers import for_devices, for_guests, refused
from lib.guest.checkpoints import saved_at_once
from lib.guest.compiled import compiler_left_out
from lib.guest.profiling import profiler_left_out


@contextmanager
def refusals(size: int) -> Iterator[None]:
    """Around a run of `size` devices."""
    monitored = refused(
        "monitored_barrier looks for a process that hangs, which is named here without it",
        "Call dist.barrier() in its place",
    )
    remote = refused(
        "init_rpc lets other processes call functions here, in threads that have no turn among simulated devices",
        "Run the program with real processes (torchrun), or let the devices talk by send, recv and collectives",
    )
    with (
        compiler_left_out(size),
        saved_at_once(size),
        profiler_left_out(),
        private.patched(dist, monitored_barrier=for_devices(dist.monitored_barrier, monitored)),
        private.patched(rpc, init_rpc=for_devices(rpc.init_rpc, remote)),
    ):
        yield


class Asked:
    """Made for one run; `gpus` says afterwards whether the program asked how many GPUs there are, or whether any."""

    def __init__(self) -> None:
        self.gpus = False

    @contextmanager
    def __call__(self, size: int) -> Iterator[None]:
        """Around a run. The answers are those of this machine."""
        names = ("device_count", "is_available")
        with private.patched(torch.cuda, **{name: self._noting(getattr(torch.cuda, name)) for name in names}):
            yield

    def _noting(self, real: Callable) -> Callable:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.gpus = True
            return real(*args, **kwargs)

        return for_guests(real, noted)

"""`torch.distributed.checkpoint.async_save`: on simulated devices a save that is waited for, with the same files.

PyTorch saves in a thread of its own, which has no turn to give away when it talks to the other devices.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lib.guest import own, private
from lib.guest.callers import for_devices, warn

CHECKPOINT = "torch.distributed.checkpoint."


@contextmanager
def saved_at_once(size: int) -> Iterator[None]:
    """Around a run: what PyTorch's checkpoints would have a thread do is done by the device itself."""
    real = ThreadPoolExecutor.submit

    def submit(self: ThreadPoolExecutor, function: Callable, *args: Any, **kwargs: Any) -> Future:
        module = getattr(function, "__module__", None) or ""
        if not module.startswith(CHECKPOINT):
            return real(self, function, *args, **kwargs)
        if module.endswith("_async_process_executor"):
            raise RuntimeError(
                f"rank {own.here().group.me}: async_save in a process of its own, which would not find the simulated "
                "devices. Say async_checkpointer_type=AsyncCheckpointerType.THREAD, or call save"
            )
        if module.endswith("_async_thread_executor"):
            warn("async_save is a save that is waited for on simulated devices: the files are the same")
        done: Future = Future()
        done.set_result(function(*args, **kwargs))
        return done

    with private.patched(ThreadPoolExecutor, submit=for_devices(real, submit)):
        yield

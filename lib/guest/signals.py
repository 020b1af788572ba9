"""Numbers and signals of processes: answered to the program, and to it alone. Libraries see the process as it is."""

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lib.guest import own, private
from lib.guest.callers import for_devices, for_guests, refused


@contextmanager
def numbers_and_signals(size: int) -> Iterator[None]:
    """Around a run: a number for each device in `os.getpid`, handlers of signals that are kept and never called, and a
    refusal of what would end or copy the whole simulation."""
    handlers: dict[int, dict[int, Any]] = defaultdict(dict)

    def mine() -> dict[int, Any]:
        return handlers[own.here().group.me]

    def handle(number: int, handler: Any) -> Any:
        before, mine()[number] = handler_of(number), handler
        return before

    def handler_of(number: int) -> Any:
        return mine().get(number, signal.SIG_DFL)

    def leave(code: int) -> None:
        raise SystemExit(code)

    real = os.getpid()
    with ExitStack() as patches:

        def patched(module: Any, **functions: Any) -> None:
            patches.enter_context(private.patched(module, **functions))

        patched(os, getpid=for_guests(os.getpid, lambda: real + own.APART * own.here().group.me))
        patched(os, _exit=for_guests(os._exit, leave))
        patched(signal, signal=for_devices(signal.signal, handle), getsignal=for_devices(signal.getsignal, handler_of))
        for module, names, what, instead in REFUSED:
            for name in names:
                if hasattr(module, name):  # some systems have no fork
                    patched(module, **{name: for_guests(getattr(module, name), refused(f"{name}() {what}", instead))})
        yield


_NO_SIGNALS = ("sends a signal to the whole simulation: devices are threads of one process",
               "Call the handler in place of the signal")  # fmt: skip
REFUSED = (
    (os, ("fork", "forkpty"), "would copy the simulation with all of its devices",
     "Start devices with torch.multiprocessing.spawn or Process, which are simulated, or with --nproc-per-node"),
    (os, ("kill", "killpg", "abort"), *_NO_SIGNALS),
    (signal, ("raise_signal", "alarm", "setitimer", "pthread_kill"), *_NO_SIGNALS),
)  # fmt: skip

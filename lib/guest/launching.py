"""Processes that a program starts itself, with `mp.spawn` or `mp.Process`: each lot of them is a cluster of its own.

What is started runs when somebody waits for it (`join`, `is_alive`, a queue), or when the program that started it ends:
as many devices as were started, numbered in that order.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from lib.devices.cluster import Cluster
from lib.guest import modules, own, private
from lib.guest.callers import is_a_guests
from lib.guest.children import simulated_processes
from lib.guest.copies import own_copy
from lib.guest.exits import Exit
from lib.guest.shared import simulated_waiting

Start = Callable[[int, Any], Any]  # (number of devices, program): runs the program on so many


def start_plainly(size: int, program: Any) -> None:
    """On a cluster with the hardware of the device that starts it."""
    clock = own.here() and own.here().group.place.clock
    Cluster(size, clock.hardware if clock else None).run(program)


@dataclass
class Call:
    """What one process runs. With `anew`, the device imports the function's module itself, as a spawned process does;
    else it takes the function as it is, as a forked one does, and any other that no import would find."""

    function: Callable
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    anew: bool = True
    run: Callable = lambda function, *args, **kwargs: function(*args, **kwargs)  # noqa: E731

    def __post_init__(self) -> None:
        self._main = modules.main_of(sys.modules.get("__main__"))
        self._spawned = self.anew
        name = getattr(self.function, "__qualname__", "<")
        file = getattr(sys.modules.get(getattr(self.function, "__module__", None) or ""), "__file__", None) or "<"
        bound = hasattr(self.function, "__self__")
        self.anew = self.anew and not bound and "<" not in name + file and is_a_guests(file)

    def __call__(self) -> Any:
        function = self._own(self.function) if self.anew else self.function
        own = self._own if self._spawned else None
        return self.run(function, *own_copy(self.args, own), **own_copy(self.kwargs, own))

    def _own(self, thing: Any) -> Any:
        """The function or class `thing`, as this device imports it."""
        return modules.found(thing.__module__, thing.__qualname__, self._main)


def _play(calls: list[Call]) -> Any:
    return calls[own.here().group.me]()


@dataclass
class Batch:
    """Processes that run together, once."""

    run_on: Callable[[list[Call]], None]
    calls: list[Call] = field(default_factory=list)
    begun: bool = False

    def run(self) -> None:
        """Raises what one of them raised."""
        if not self.begun:
            self.begun = True
            self.run_on(self.calls)


_elsewhere: list[Batch] = []  # what was started where no device runs, as in a test


def started() -> list[Batch]:
    """What the calling device has started and not waited for."""
    return _elsewhere if own.here() is None else own.here().started


def run_started() -> None:
    """Whoever waits for something, or ends, may wait for these."""
    while started():
        started().pop(0).run()


class Context:
    """What `mp.spawn(..., join=False)` returns."""

    def __init__(self, batch: Batch):
        self._batch, self.processes = batch, []

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """True: all have ended. Raises as the context of real processes does, from the error itself."""
        try:
            self._batch.run()
        except Exit as error:
            code = error.code if isinstance(error.code, int) else 1
            raise ProcessExitedException(str(error), error.rank, self.pids()[error.rank], code) from error
        except Exception as error:
            raise ProcessRaisedException(f"{type(error).__name__}: {error}", 0, self.pids()[0]) from error
        return True

    def pids(self) -> list[int]:
        """Numbers for the processes."""
        return [os.getpid() + own.APART * (rank + 1) for rank in range(len(self._batch.calls))]


@contextmanager
def launching(child: Callable[[Callable[[], Any], Callable], Any], start: Start = start_plainly) -> Iterator[None]:
    """Once around a run, for all of its devices, or where there is none.

    While entered, processes are simulated. `child(main, function)` makes the program in which each device
    calls `main()`, and so `function`."""

    def run_on(calls: list[Call]) -> None:
        with private.unwatched(), _warned_as_a_new_process():
            start(len(calls), child(partial(_play, calls), calls[0].function))

    def start_processes(fn: Callable, args: tuple = (), nprocs: int = 1, join: bool = True, daemon: bool = False,
                        start_method: str = "spawn", **options: Any) -> Context | None:  # fmt: skip
        if nprocs < 1:
            raise ValueError(f"mp.spawn(nprocs={nprocs}) starts no process. {_FEW}")
        batch = Batch(run_on, [Call(fn, (rank, *args), {}, start_method != "fork") for rank in range(nprocs)])
        context = Context(batch)
        if not join:
            started().append(batch)
            return context
        context.join()
        return None

    def batch_of_processes() -> Batch:
        if not started() or started()[-1].begun:
            started().append(Batch(run_on))
        return started()[-1]

    with (
        private.patched(sys.modules["torch.multiprocessing.spawn"], start_processes=start_processes),
        private.patched(sys.modules["torch.multiprocessing"], start_processes=start_processes),
        simulated_processes(batch_of_processes, Call),
        simulated_waiting(run_started),
    ):
        try:
            yield
        finally:
            if own.here() is None:
                _elsewhere.clear()


@contextmanager
def _warned_as_a_new_process() -> Iterator[None]:
    """What the caller has made of warnings (a test, errors) is not inherited; what the command line says is."""
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.resetwarnings()
            for category in QUIET:
                warnings.simplefilter("ignore", category)
        yield


# What Python does not show unless it is asked to.
QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
_FEW = "Where it is the number of GPUs, as torch.cuda.device_count() gives it, --gpus 4 pretends some"

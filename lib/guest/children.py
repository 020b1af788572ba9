"""`multiprocessing.Process` of the program's own functions, simulated. Those of libraries (the workers of a DataLoader,
a pool that cuts texts into tokens) stay real processes: they call no collective.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from lib.guest import own, private, private_python
from lib.guest.callers import is_a_guests
from lib.guest.exits import Exit


class Child:
    """What a started `Process` keeps of its process: it is asked for its end. The number is only a name."""

    sentinel = None

    def __init__(self, batch: Any, number: int):
        self._batch, self.pid = batch, number
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Runs it, with those that were started beside it; returns its exit code."""
        if self.returncode is None:
            try:
                self._batch.run()
            except Exit as error:
                self.returncode = error.code if isinstance(error.code, int) else 1
                raise
            self.returncode = 0
        return self.returncode

    def poll(self) -> int | None:
        """The exit code. Who asks waits; but for `multiprocessing` itself, which asks all whenever one is started."""
        if self.returncode is None and sys._getframe(1).f_code.co_name != "_cleanup":
            self.wait()
        return self.returncode

    def terminate(self) -> None:
        """After its end nothing is left to do, and before its beginning it would never have been."""
        self.wait()

    kill = interrupt = terminate

    def close(self) -> None:
        """Nothing is open."""


def is_simulated(process: BaseProcess) -> bool:
    """Whether the process would run code of the program's own."""
    code = getattr(private_python.target_of(process) or type(process).run, "__code__", None)
    return code is not None and is_a_guests(code.co_filename)


def _revive(kind: type[BaseProcess], state: dict[str, Any]) -> None:
    process = kind.__new__(kind)
    vars(process).update(state)
    process.run()


@contextmanager
def simulated_processes(batch_of: Callable[[], Any], call: Callable) -> Iterator[None]:
    """While entered, a `Process` that is started joins the batch which `batch_of()` gives, as a `call(...)`."""
    real = BaseProcess.start

    def start(self: BaseProcess) -> None:
        if not is_simulated(self):
            return real(self)
        batch, target, anew = batch_of(), private_python.target_of(self), private_python.method_of(self) != "fork"
        if target:
            batch.calls.append(call(target, *private_python.arguments_of(self), anew))
        else:
            batch.calls.append(call(type(self), (vars(self).copy(),), {}, anew, _revive))
        self._Popen = lambda process: Child(batch, private_python.parent_of(process) + own.APART * len(batch.calls))
        return real(self)

    with private.patched(BaseProcess, start=start):
        yield

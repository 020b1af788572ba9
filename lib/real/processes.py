"""Real processes on this machine, started from a script or a notebook: `Processes(4)` in the place of `Cluster(4)`."""

import atexit
import io
import multiprocessing
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from lib.devices.cluster import check_program
from lib.devices.counts import is_count
from lib.devices.meters import Meters
from lib.real.child import Answer, Modes, Order, Printed, live
from lib.real.process import own_gpu

_GRACE = 3.0  # seconds in which the cause of a lost connection may still be told
# What the processes are forked with. PyTorch imports the last two when an optimizer or a DTensor is first made: here
# once, instead of two seconds in each process of each run.
_PRELOADED = ["lib.real.child", "torch._dynamo", "torch.distributed.tensor.parallel"]


class Processes:
    """`size` processes of this machine, one for each device.

        outputs = Processes(4).run(program, x, w)     # as Cluster(4).run(program, x, w)

    They are started for a run and end with it. After a run, `meters` holds what each sent and received.

    Whom they trust: each other and this process, which may pickle, since program, arguments, results and errors go
    through pipes that nobody else holds. Tensors go over the loopback of this machine, and are never run.
    """

    def __init__(self, size: int):
        if not is_count(size):
            raise ValueError(f"Processes(size={size!r}): the number of processes must be an integer of at least 1")
        self.size, self.meters = size, Meters(size)

    def __repr__(self) -> str:
        return f"Processes({self.size})"

    def run(self, program: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As `Cluster.run`, but each device works on copies of the arguments, and what it returns comes back as a copy.

        The caller's grad mode, default dtype and default device hold in every process, and the random streams behave as
        in a cluster; other modes stay behind. What a process prints is printed here.
        What a program raises is raised here, with a note of the rank; a process that dies is a RuntimeError that names
        it. TypeError when the program or an argument cannot be sent: a program must be a function in a file.
        """
        check_program(program, args, kwargs)
        own_gpu(0, self.size)  # refuses the default device "cuda" when there is not one for each
        order = pickle.dumps(Order(_task(program, args, kwargs), _modes_of_the_caller(self.size)))
        self.meters = Meters(self.size)
        with tempfile.TemporaryDirectory() as folder, _Team(self.size, str(Path(folder) / "store"), order) as team:
            answers = team.answers()
        self.meters = answers[0].meters
        torch.set_rng_state(answers[0].stream)
        return [torch.load(io.BytesIO(answer.output), map_location="cpu", weights_only=False) for answer in answers]


class _Team:
    """The processes of one run. Leaving it ends them, whatever happened."""

    def __init__(self, size: int, store: str, order: bytes):
        self._size, self._store, self._order = size, store, order
        self._processes: list[multiprocessing.Process] = []
        self._lines: list[Connection] = []

    def __enter__(self) -> "_Team":
        atexit.register(self.__exit__)  # should Python end in the middle of the run, before it waits for them
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        # Forked from a server that has imported PyTorch: ten are there in a second. Never from this process, whose
        # threads a fork would lose.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(_PRELOADED)
        for rank in range(self._size):
            mine, theirs = context.Pipe()
            self._lines.append(mine)
            # No daemon: those may not start processes, and a DataLoader in the program may want to.
            process = context.Process(target=live, args=(rank, self._size, self._store, theirs))
            process.start()
            self._processes.append(process)
            theirs.close()  # so that the death of the process ends our wait for it
        for line in self._lines:
            with suppress(OSError):  # a process that has died already is reported by `answers`
                line.send_bytes(self._order)

    def answers(self) -> list[Answer]:
        """By rank. Raises the first error that any of them reports, and prefers a cause to its consequences."""
        answers: dict[int, Answer] = {}
        open_lines = {line: rank for rank, line in enumerate(self._lines)}
        lost: ConnectionError | None = None
        deadline = float("inf")
        while open_lines and time.monotonic() < deadline:
            for line in wait(list(open_lines), None if lost is None else max(0.0, deadline - time.monotonic())):
                said = self._hear(line, open_lines[line])
                if isinstance(said, Printed):
                    sys.stdout.write(said.text)
                    continue
                rank = open_lines.pop(line)
                if isinstance(said, Answer):
                    answers[rank] = said
                elif not isinstance(said, ConnectionError):
                    raise said
                elif lost is None:
                    lost, deadline = said, time.monotonic() + _GRACE
        if lost is not None:
            raise lost
        return [answers[rank] for rank in range(self._size)]

    def _hear(self, line: Connection, rank: int) -> Printed | Answer | BaseException:
        try:
            return pickle.loads(line.recv_bytes())
        except (EOFError, OSError):
            process = self._processes[rank]
            process.join(_GRACE)
            code = process.exitcode
            how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
            hint = {
                -signal.SIGKILL: " (out of memory?)",
                1: '. What it wrote is above; a script must call run under `if __name__ == "__main__":`',
            }
            return RuntimeError(f"rank {rank} of {self._size} real processes has died {how}{hint.get(code, '')}")

    def __exit__(self, *_: object) -> None:
        atexit.unregister(self.__exit__)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for line in self._lines:
            line.close()


def _modes_of_the_caller(size: int) -> Modes:
    return Modes(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device().type,  # without its number: each process has a GPU of its own
        max(1, torch.get_num_threads() // size),
        torch.get_rng_state(),
    )


def _task(program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> bytes:
    name = getattr(program, "__qualname__", type(program).__name__)
    try:
        pickle.dumps(program)
    except Exception as error:
        raise TypeError(
            f"Processes.run cannot send the program {name} to other processes: {error}. Write it as a plain function "
            "into a file (in a notebook, a cell that begins with %%writefile my_program.py), and import it"
        ) from error
    try:
        return pickle.dumps((program, args, kwargs))
    except Exception as error:
        raise TypeError(f"Processes.run cannot send an argument of {name} to other processes: {error}") from error

"""P simulated devices that all run the same program."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lib.devices.clock import Charge, Clock
from lib.devices.counts import counted, is_count
from lib.devices.engine.exchange import Exchange
from lib.devices.engine.heap import keep_freed_memory
from lib.devices.engine.modes import modes_of_the_caller, refuse_what_devices_would_not_see
from lib.devices.engine.shared_arguments import SharedArguments
from lib.devices.engine.turns import Turns
from lib.devices.engine.wording import note_on
from lib.devices.errors import Stopped
from lib.devices.group import Group
from lib.devices.hardware import Hardware
from lib.devices.meters import Meters
from lib.devices.trace import Trace


class Cluster:
    """`size` simulated devices.

        outputs = Cluster(4).run(program, x, w)     # program(group, x, w) on each device; a list, one result per rank

    With `hardware` (a `Hardware`, or the name of a preset such as "H100") a virtual clock runs beside the program;
    nothing is slowed down.

    With `rendezvous`, a `send` waits until its receiver takes the message, as gloo's does and NCCL's may. Without, it
    goes on at once.

    After a run, failed or not, `meters` holds what each device sent and received, and `trace` (None without hardware)
    what each did when.
    """

    def __init__(self, size: int, hardware: Hardware | str | None = None, rendezvous: bool = False):
        if not is_count(size):
            raise ValueError(f"Cluster(size={size!r}): the number of devices must be an integer of at least 1")
        self.size = size
        self.hardware = Hardware.preset(hardware) if isinstance(hardware, str) else hardware
        if not isinstance(self.hardware, Hardware | None):
            raise TypeError(f"Cluster: hardware={hardware!r} must be a Hardware, the name of a preset, or None")
        self.rendezvous = rendezvous
        self.meters = Meters(size)
        self.trace = Trace(size) if self.hardware else None

    def __repr__(self) -> str:
        hardware = "" if self.hardware is None else f", hardware={self.hardware.name}"
        return f"Cluster({self.size}{hardware}{', rendezvous=True' if self.rendezvous else ''})"

    def run(self, program: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Runs `program(group, *args, **kwargs)` once per device; returns the results in rank order.

        The arguments are handed to every device as they are, not copied, so they are read-only: a tensor or module
        among them, or around the program, that one of several devices changed raises RuntimeError after the run. The
        caller's modes (no_grad, inference_mode, autocast, default dtype and device, contextvars) hold on every device;
        those that would only watch this thread (FlopCounterMode, a profiler, saved_tensors_hooks) are refused.
        Every device has its own random streams (of PyTorch, Python and NumPy) and its own default dtype. They start
        where the caller's stand; afterwards the caller's streams go on where rank 0's stopped.

        What a program raises is raised here, with a note of the rank. Devices that wait for ever raise DeadlockError,
        devices that disagree raise MismatchError, and an interrupt stops all.
        """
        check_program(program, args, kwargs)
        refuse_what_devices_would_not_see()
        keep_freed_memory()
        self.meters = Meters(self.size)
        self.trace = Trace(self.size) if self.hardware else None
        clock = Clock(self.size, self.hardware, self.trace) if self.hardware else None
        exchange = Exchange(self.size, self.meters, clock, self.rendezvous)
        outputs: list[Any] = [None] * self.size
        shared = SharedArguments(getattr(program, "main", program), args, kwargs)  # of a guest, what it runs
        with_modes = modes_of_the_caller()

        def device(rank: int) -> None:
            with clock.memory.saving(rank) if clock else nullcontext(), Charge(clock, rank) if clock else nullcontext():
                outputs[rank] = run_program(program, Group(exchange, rank, range(self.size)), args, kwargs)
            exchange.ended(rank)

        watch = shared.look_after if self.size > 1 else None
        turns = exchange.turns = Turns(self.size, with_modes(device), exchange.stuck, watch)
        with _alone(turns):
            failed = True
            try:
                turns.owners.add(program.owners(self.size) if hasattr(program, "owners") else [])
                with clock.memory.watching() if clock else nullcontext():
                    turns.run()
                failed = False
            finally:
                exchange.turns = None  # the groups are dead now, and nothing keeps the threads
                turns.owners.give_back(failed)
        exchange.check_nothing_left()
        if self.size > 1:
            shared.check_unchanged(self.size)
        return outputs


_under_way: list[Turns] = []  # more than one where a device starts a run of its own
_guard = threading.Lock()


@contextmanager
def _alone(turns: Turns) -> Iterator[None]:
    """All runs share the streams of this process: RuntimeError when another thread runs a cluster meanwhile."""
    with _guard:
        if _under_way and not _under_way[-1].is_a_device():
            raise RuntimeError(
                "run: another thread of this process runs a cluster at the moment, and both would use one random "
                "stream and one default dtype. Let one run follow the other, or start a process for each"
            )
        _under_way.append(turns)
    try:
        yield
    finally:
        _under_way.remove(turns)


def run_program(program: Callable[..., Any], group: Group, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The program of one device. What it raises carries a note of the rank. RuntimeError names the rank that leaves by
    `sys.exit`: the others would wait for it."""
    who = f"rank {group.rank} of {group.size}"
    try:
        return program(group, *args, **kwargs)
    except SystemExit as error:
        raise RuntimeError(
            f"{who} left the program by sys.exit({error.code!r}). The program of a device ends with return, or with an "
            "error that says why"
        ) from error
    except Stopped:
        raise
    except BaseException as error:
        error.add_note(f"raised on {who}")
        note_on(error)
        raise


def check_program(program: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
    if not callable(program):
        raise TypeError(f"run needs a program, a function of (group, ...), not {type(program).__name__}")
    if inspect.isgeneratorfunction(program) or inspect.iscoroutinefunction(program):
        raise TypeError(
            f"{program.__name__} is a generator or async function, which would not run: use a plain function"
        )
    try:
        signature = inspect.signature(program)
    except (TypeError, ValueError):
        return  # some built-in functions do not tell their arguments
    try:
        signature.bind("group", *args, **kwargs)
    except TypeError as error:
        name = getattr(program, "__name__", type(program).__name__)
        raise TypeError(
            f"{name}{signature} cannot be called as {name}(group, ...) with the {len(args)} positional and "
            f"{counted(len(kwargs), 'keyword argument')} after the program: {error}. "
            "Every device is handed its group first, then what follows the program in run(program, ...)"
        ) from None

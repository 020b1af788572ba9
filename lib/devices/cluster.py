"""P simulated devices that all run the same program."""

import contextvars
import inspect
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch

from lib.devices.clock import Charge, Clock
from lib.devices.engine.exchange import Exchange
from lib.devices.engine.heap import keep_freed_memory
from lib.devices.engine.shared_arguments import SharedArguments
from lib.devices.engine.turns import Turns
from lib.devices.group import Group
from lib.devices.hardware import Hardware
from lib.devices.meters import Meters
from lib.devices.trace import Trace


class Cluster:
    """`size` simulated devices.

        outputs = Cluster(4).run(program, x, w)     # program(group, x, w) on each device; a list, one result per rank

    With `hardware` (a `Hardware`, or the name of a preset such as "H100") a virtual clock runs beside the program;
    nothing is slowed down.

    With `rendezvous`, a `send` waits until its receiver takes the message, as NCCL's does; without, it goes on at once.

    After a run, failed or not, `meters` holds what each device sent and received, and `trace` (None without hardware)
    what each did when.
    """

    def __init__(self, size: int, hardware: Hardware | str | None = None, rendezvous: bool = False):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
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
        caller's modes (no_grad, inference_mode, autocast, default dtype and device, contextvars) hold on every device,
        and every device's random stream starts where the caller's stands; afterwards the caller's goes on where rank
        0's stopped.

        What a program raises is raised here, with a note of the rank. Devices that wait for ever raise DeadlockError,
        devices that disagree raise MismatchError, and an interrupt stops all.
        """
        check_program(program, args, kwargs)
        keep_freed_memory()
        self.meters = Meters(self.size)
        self.trace = Trace(self.size) if self.hardware else None
        clock = Clock(self.size, self.hardware, self.trace) if self.hardware else None
        exchange = Exchange(self.size, self.meters, clock, self.rendezvous)
        outputs: list[Any] = [None] * self.size
        shared = SharedArguments(program, args, kwargs)
        with_modes = _modes_of_the_caller()

        def device(rank: int) -> None:
            with clock.memory.saving(rank) if clock else nullcontext(), Charge(clock, rank) if clock else nullcontext():
                outputs[rank] = program(Group(exchange, rank, range(self.size)), *args, **kwargs)
            exchange.ended.add(rank)

        turns = exchange.turns = Turns(self.size, with_modes(device), exchange.stuck)
        stream = torch.default_generator.get_state()
        try:
            with clock.memory.watching() if clock else nullcontext():
                turns.run()
            stream = turns.streams[0]
        finally:
            exchange.turns = None  # the groups are dead now, and nothing keeps the threads
            torch.default_generator.set_state(stream)
        exchange.check_nothing_left()
        if self.size > 1:
            shared.check_unchanged(self.size)
        return outputs


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
            f"{len(kwargs)} keyword argument(s) after the program: {error}. "
            "Every device is handed its group first, then what follows the program in run(program, ...)"
        ) from None


def _modes_of_the_caller() -> Callable[[Callable[[int], None]], Callable[[int], None]]:
    """PyTorch keeps its modes per thread. Returns a wrapper that makes a function run in the modes of this thread."""
    context = contextvars.copy_context()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    device = torch.get_default_device()
    autocast = torch.is_autocast_enabled("cpu")
    autocast_dtype, autocast_cache = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    def with_modes(function: Callable[[int], None]) -> Callable[[int], None]:
        def call(rank: int) -> None:
            torch.get_num_threads()  # asking makes a new thread take over the caller's set_num_threads
            with ExitStack() as modes:
                modes.enter_context(torch.inference_mode(inference))
                modes.enter_context(torch.set_grad_enabled(grad))
                if autocast:
                    modes.enter_context(torch.autocast("cpu", autocast_dtype, cache_enabled=autocast_cache))
                if device.type != "cpu":  # the default; entering it would cost a little at every operation
                    modes.enter_context(device)
                function(rank)

        return lambda rank: context.copy().run(call, rank)  # a context can be entered by one thread only

    return with_modes

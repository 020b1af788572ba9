"""A process that `Processes` has started: it gets its order, is one device, answers, and waits for its end.

Order and answer are pickled: they go through a pipe that only this process and its parent hold.
"""

import io
import multiprocessing
import os
import pickle
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from io import TextIOBase
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lib.devices.meters import Meters
from lib.real.process import Place, joined, run_here


class Modes(NamedTuple):
    """What holds in the caller's thread, and shall hold in every process."""

    grad: bool
    inference: bool
    dtype: torch.dtype
    device: str
    threads: int
    stream: torch.Tensor


class Order(NamedTuple):
    """What to run; `task` is the pickled (program, args, kwargs)."""

    task: bytes
    modes: Modes


class Printed(NamedTuple):
    """Some text that the program printed."""

    text: str


class Answer(NamedTuple):
    """What came of it: `output` is pickled, `meters` and `stream` are those of `RealMeetingPlace.finish`."""

    output: bytes
    meters: Meters
    stream: torch.Tensor


Say = Callable[[Printed | Answer | BaseException], None]


def live(rank: int, size: int, store: str, line: Connection) -> None:
    """The whole life of process `rank`. `store` is a file in which all meet, `line` leads to the parent."""
    order = pickle.loads(line.recv_bytes())
    sending = Lock()

    def say(something: Printed | Answer | BaseException) -> None:
        with sending:
            line.send_bytes(pickle.dumps(something))

    multiprocessing.set_start_method(None, force=True)  # what the program starts begins as it would anywhere
    os.register_at_fork(after_in_child=lambda: _is_no_device(line))
    parent = Thread(target=_await_end, args=(line,), daemon=True)
    parent.start()
    try:
        answer = _obey(order, rank, size, store, say)
    except BaseException as error:
        answer = _sendable(error)
    say(answer)
    parent.join()  # not an exit of its own: it could crash threads that still wait, and the others would lose this one


def _obey(order: Order, rank: int, size: int, store: str, say: Say) -> Answer:
    modes = order.modes
    torch.set_num_threads(modes.threads)
    torch.set_default_dtype(modes.dtype)
    torch.set_rng_state(modes.stream)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(stack.enter_context(_Lines(say))))
        stack.enter_context(torch.inference_mode(modes.inference))
        stack.enter_context(torch.set_grad_enabled(modes.grad))
        if modes.device != "cpu":
            stack.enter_context(torch.device(modes.device))
        program, args, kwargs = _unpickled(order.task)
        meeting_place = stack.enter_context(joined(dist.FileStore(store, size), Place(rank, size, rank, size)))
        output = run_here(meeting_place, program, args, kwargs)
        return Answer(_pickled(output, rank), *meeting_place.finish())


def _unpickled(task: bytes) -> tuple:
    try:
        return pickle.loads(task)
    except (AttributeError, ImportError) as error:
        what = re.sub(r"<module '(.*?)'.*>", r"module \1", str(error))  # without what each Python says of a module
        raise TypeError(
            f"another process cannot find the program, or a class of its arguments ({what}). Put it into a file that "
            "can be imported (in a notebook, a cell that begins with %%writefile my_program.py), and import it"
        ) from error


def _pickled(output: Any, rank: int) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(output, buffer)
    except Exception as error:
        raise TypeError(
            f"rank {rank} returned a {type(output).__name__} that cannot be sent to another process: {error}. Return "
            "tensors, numbers, strings, and lists and dicts of these"
        ) from error
    return buffer.getvalue()


class _Lines(TextIOBase):
    """What is printed goes to the parent, in whole lines."""

    def __init__(self, say: Say):
        self._say, self._rest = say, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._say(Printed("\n".join([*lines, ""])))
        return len(text)

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._say(Printed(self._rest))


def _await_end(line: Connection) -> None:
    try:
        line.recv_bytes()
    except (EOFError, OSError):  # the parent has closed the line, or has died
        os._exit(0)


def _is_no_device(line: Connection) -> None:
    """In a process that the program has forked, such as a worker of a DataLoader: its words are not those of a device,
    and while it lives, the end of the device must be seen all the same."""
    line.close()
    sys.stdout = sys.__stdout__


def _sendable(error: BaseException) -> BaseException:
    """The error with its traceback as a note; one that cannot be pickled becomes a RuntimeError that says the same."""
    text = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    try:
        twin = pickle.loads(pickle.dumps(error))
        faithful = type(twin) is type(error) and str(twin) == str(error)
    except Exception:
        faithful = False
    if not faithful:
        notes, error = getattr(error, "__notes__", []), RuntimeError(f"{type(error).__name__}: {error}")
        for note in notes:
            error.add_note(note)
    error.add_note(f"In its process:\n{text}")
    return error

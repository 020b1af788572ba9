"""A reader's program that does not run: not written yet, called wrongly, or ended by an exception."""

from __future__ import annotations

import dis
import inspect
import linecache
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from book.exercises.check.causes import CHUNK
from book.exercises.check.trials import Trial
from book.exercises.check.verdict import Fault
from lib.devices import DeadlockError, MismatchError

_NOTHING = {"RESUME", "NOP", "LOAD_CONST", "LOAD_SMALL_INT", "RETURN_VALUE", "RETURN_CONST"}
_LONGEST = 300  # characters shown of a message of PyTorch


def is_stub(program: Callable[..., Any]) -> bool:
    """Whether the body does nothing at all: `...`, `pass`, a docstring."""
    code = getattr(program, "__code__", None)
    return code is not None and {step.opname for step in dis.get_instructions(code)} <= _NOTHING


def is_unwritten(error: BaseException) -> bool:
    """Whether it is the NotImplementedError of a stub. PyTorch raises one, too, of what it cannot do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, NotImplementedError):
        return False
    code = trace.tb_frame.f_code
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]  # by a line of Python, not by a call
    return (raised or not str(error)) and not code.co_filename.startswith(os.path.dirname(torch.__file__))


def oddness(x: Tensor) -> str | None:
    """What keeps a tensor from being compared, if anything does."""
    if x.is_nested:
        return "is nested"
    if x.is_quantized:
        return "is quantized"
    if x.layout is not torch.strided:
        return f"has the layout {str(x.layout).removeprefix('torch.')}"
    if x.is_meta:
        return "is on device 'meta' and has no numbers"
    if x.device.type != "cpu":
        return f"is on device {x.device.type!r}"
    if x.is_floating_point() and x.itemsize == 1:
        return f"is {str(x.dtype).removeprefix('torch.')}"  # PyTorch does not compute with it
    return None


def check_callable(name: str, program: object, inputs: tuple[str, ...]) -> None:
    """Raises Fault unless `program` can be called as program(group, *inputs)."""
    called = f"{name}(group, {', '.join(inputs)})"
    if not callable(program):
        raise Fault("cannot be checked.", f"check needs the function {called} itself, given {kind(program)}")
    try:
        inspect.signature(program).bind("group", *inputs)
    except TypeError as error:
        raise Fault(f"cannot be called as {called}.", f"{error}; it takes {inspect.signature(program)}") from None
    except ValueError:
        return  # some built-in functions do not tell their arguments


def fault_of(error: Exception, program: Callable[..., Any], trial: Trial, known: str | None = None) -> Exception:
    """The exception as a Fault: the rank, the line of the reader's code, the message, what often stands behind it.

    `known` is what the exercise itself has to say of this exception.
    """
    message = str(error).strip()
    if "ellipsis" in message:
        return NotImplementedError()  # a `...` of the stub is still in the way of the code
    name = type(error).__name__
    if isinstance(error, DeadlockError | MismatchError):  # these name ranks and lines themselves
        return Fault(f"stops on {trial}.", f"{name}: {message}")
    note = re.search(r"raised on rank (\d+) of", " ".join(getattr(error, "__notes__", [])))
    place = f"rank {note[1]}" if note else "a device"
    line = _line_of(error, program)
    message = message if len(message) <= _LONGEST else message[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    cause = _chunk(error, program, trial) or known or _cause(message)
    return Fault(f"stops on {trial}.", f"{place}{line}", f"{name}: {message}", cause and f"Cause: {cause}")


def _line_of(error: Exception, program: Callable[..., Any]) -> str:
    """The innermost line in the reader's file or notebook cell. Without its path, which differs between runs."""
    file, found = getattr(getattr(program, "__code__", None), "co_filename", None), ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == file:
            source = linecache.getline(code.co_filename, trace.tb_lineno).strip()
            found = f", {code.co_name}, line {trace.tb_lineno}: {source}"
        trace = trace.tb_next
    return found


def _chunk(error: Exception, program: Callable[..., Any], trial: Trial) -> str | None:
    try:
        written = inspect.getsource(program)
    except (OSError, TypeError):
        return None
    if isinstance(error, IndexError) and "index out of range" in str(error) and "chunk(" in written:
        return f"there is no such piece. It was cut with chunk, {CHUNK} shard(x, group, dim) gives every device one."
    if "must match the size of tensor" in str(error) and not trial.even and re.search(r"chunk\(.*group\.size", written):
        return f"the pieces are of other sizes. These were cut with chunk, {CHUNK} shard(x, group, dim) cuts evenly."
    return None


def _cause(message: str) -> str | None:
    shapes = re.search(r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)", message)
    if shapes:
        return (
            f"{shapes[2]} columns meet {shapes[3]} rows. The dim that a product sums over must be cut on both sides "
            "alike, or on neither: is one cut along the wrong dim?"
        )
    if "a leaf Variable that requires grad" in message:
        return "an input is changed in place. Make a new tensor instead."
    return None


def kind(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor that {odd}" if (odd := oddness(value)) else f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value)) or 'none'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"

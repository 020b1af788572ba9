"""The random streams of a process, and how to see at a glance whether somebody has drawn from one.

To copy a stream takes from two to a hundred microseconds, and a run passes the turn thousands of times. So each has a
mark: some of its bytes as they stand in memory, which change with every draw and every seed. Where they stand is no
promise of anybody's, so it is proven first. What is not proven is not looked at: it is copied at each turn, as before.
"""

import ctypes
import random
import struct
import sys
from array import array
from functools import cache
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

_FIRST = 16  # bytes of a stream's first numbers: all 624 are new when the last of them is used up


class Kept(Protocol):
    """Something that a process has once."""

    def mark(self) -> Any:
        """Equal to the one before as long as nothing has changed. Never equal when nothing is known."""

    def read(self) -> Any:
        """What it is at the moment."""

    def write(self, state: Any) -> None:
        """From now on it is what was read then."""


class DefaultDtype:
    """The dtype of new tensors."""

    read = mark = staticmethod(torch.get_default_dtype)
    write = staticmethod(torch.set_default_dtype)


class Stream:
    """Base of the random streams: `parts` of the memory are its mark, none when they were not found."""

    parts: list[ctypes.Array]

    def mark(self) -> Any:
        """The bytes of all parts."""
        return [part.raw for part in self.parts] or object()


class OfTorch(Stream):
    """PyTorch's on the CPU. `generator`: whose."""

    def __init__(self, generator: torch.Generator = torch.default_generator) -> None:
        self.read, self.write = generator.get_state, generator.set_state
        self.parts = _parts_of(generator) if _torch_keeps_them_there() else []

    def mark(self) -> Any:
        """Those bytes; of a second number only if there is one, else chance decides what stands in its place."""
        if not self.parts:
            return super().mark()
        head, following, single, double = [part.raw for part in self.parts]
        return head, following, single[-1] and single, double[-1] and double


class OfPython(Stream):
    """That of the module `random`."""

    read, write = staticmethod(random.getstate), staticmethod(random.setstate)

    def __init__(self) -> None:
        whole = _memory_of(random._inst)
        *numbers, following = random.getstate()[1]
        at = whole.raw.find(struct.pack("i", following) + array("I", numbers).tobytes())
        self.parts = [] if at < 0 else [_part(ctypes.addressof(whole) + at, 4 + _FIRST)]

    def mark(self) -> Any:
        """Those bytes, and the second normal number that Python keeps beside."""
        return random._inst.gauss_next, super().mark()


class OfNumpy(Stream):
    """That of `numpy.random`."""

    def __init__(self) -> None:
        numpy = sys.modules["numpy"].random
        self.read, self.write = lambda: numpy.get_state(legacy=False), numpy.set_state
        stream = numpy.mtrand._rand
        self._keeps = stream, stream._bit_generator  # as long as their memory is looked at
        told, kept = stream.get_state(legacy=False), _where_numpy_keeps_a_second_number(numpy.RandomState)
        self.parts = []
        if told["bit_generator"] == "MT19937" and kept is not None:
            address = stream._bit_generator.ctypes.state_address
            expected = told["state"]["key"].tobytes() + struct.pack("i", told["state"]["pos"])
            if ctypes.string_at(address, len(expected)) == expected:
                second = ctypes.addressof(_memory_of(stream)) + kept
                self.parts = [_part(address, _FIRST), _part(address + len(expected) - 4, 4), _part(second, 16)]


def kept() -> list[Kept]:
    """All that each device has for itself."""
    has_numpy = "numpy" in sys.modules  # who has not imported it does not draw from it
    return [DefaultDtype(), OfTorch(), OfPython(), *([OfNumpy()] if has_numpy else [])]


def _parts_of(generator: torch.Generator) -> list[ctypes.Array]:
    """Of a generator of PyTorch: its seed, how many numbers are left, which is the next, and the first of them; behind
    the last, the second normal numbers that it keeps, in float32 and in float64. Nothing when what stands in memory is
    not what the generator says of itself."""
    state = generator.get_state()
    told = ctypes.string_at(state.data_ptr(), state.numel())
    seed_and_left, following = told[:12], told[16:20]
    numbers = array("I", memoryview(told)[24 : 24 + 8 * 624].cast("Q")).tobytes()  # each takes 8 bytes there, here 4
    start = generator._cdata
    for at in range(start, start + 160, 8):  # the length of the head depends on the system
        head = ctypes.string_at(at, 20)
        if (head[:12], head[16:]) == (seed_and_left, following):
            found = ctypes.string_at(at + 20, len(numbers)) == numbers
            end = at + 24 + len(numbers)
            places = (at, 12), (at + 16, 4 + _FIRST), (end, 5), (end + 8, 9)  # between them is what happens to be there
            return [_part(*place) for place in places] if found else []
    return []


@cache
def _torch_keeps_them_there() -> bool:
    """Whether `_parts_of` shows every draw, that of a second normal number too: tried with a generator of our own.
    Another PyTorch than that of requirements.txt may give addresses another meaning: there we do not look."""
    if not torch.__version__.startswith("2.13."):
        return False
    trial = torch.Generator("cpu")
    parts, numbers, marks = _parts_of(trial), [], []
    with _disable_current_modes():  # whoever starts the run, this is not his work
        for dtype in (torch.float32, torch.float32, torch.float64, torch.float64):
            numbers.append(torch.randn((), dtype=dtype, generator=trial, device="cpu").item())
            marks.append(b"".join(part.raw for part in parts))
    return len(set(marks)) == len(marks) and struct.pack("d", numbers[-1]) in marks[-2]


@cache
def _where_numpy_keeps_a_second_number(random_state: type) -> int | None:
    """How many bytes behind the address of a `RandomState` it says whether it keeps one, and 8 bytes on, which. Tried
    with one of our own; None when it is not found."""
    trial = random_state(0)
    state, number = trial.get_state(legacy=False), 0.123456789
    trial.set_state(state | {"has_gauss": 1, "gauss": number})
    whole = _memory_of(trial)
    at = whole.raw.find(struct.pack("d", number)) - 8
    there = at >= 0 and whole[at] == b"\1"
    trial.set_state(state)
    return at if there and whole[at] == b"\0" else None


def _memory_of(x: object) -> ctypes.Array:
    """All that an object of C holds itself."""
    return _part(id(x), type(x).__basicsize__)


def _part(address: int, length: int) -> ctypes.Array:
    return (ctypes.c_char * length).from_address(address)

"""The words of the engine's errors: who does what, in which line of the reader's code, and how to mend it."""

import linecache
import sysconfig
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from lib.devices.aligned import aligned
from lib.devices.collectives import Collective

# Frames in these places are not the reader's: this library, the machinery of the page, PyTorch and what is
# installed beside it, Python. The programs in lib/examples count as the reader's.
_LIB = Path(__file__).parents[2]
_PACKAGES = Path(torch.__file__).parents[1]
_NOT_THE_READERS = (f"{_LIB}/", f"{_LIB.parent / 'book'}/", f"{_PACKAGES}/", sysconfig.get_paths()["stdlib"])
_THE_READERS = f"{_LIB / 'examples'}/"


def where(frame: FrameType | None) -> str:
    """The innermost line of the reader's own code in a device's stack: `program, line 3: y = group.recv(0)`.

    No file name: in a notebook it would be a temporary path that differs from run to run.
    """
    while frame is not None and frame.f_back is not None and not is_the_readers(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "(ended)"
    code = frame.f_code
    source = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{code.co_name}, line {frame.f_lineno}: {source}"


def is_the_readers(file: str) -> bool:
    """Whether the reader wrote the code in `file`."""
    # There may be more than one folder of packages: the user's, those on PYTHONPATH, Debian's.
    installed = file.startswith(_NOT_THE_READERS) or "/site-packages/" in file or "/dist-packages/" in file
    return file.startswith(_THE_READERS) or not installed


def note_on(error: BaseException) -> None:
    """A habit from torch.distributed, named: `group.size()` and `group.rank()` are numbers here."""
    if isinstance(error, TypeError) and "'int' object is not callable" in str(error):
        last = error.__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        line = linecache.getline(last.tb_frame.f_code.co_filename, last.tb_lineno)
        for name in ("size", "rank"):
            if f".{name}()" in line:
                error.add_note(f"{name} is a number, not a function: write group.{name} in place of group.{name}()")


def short_ranks(ranks: tuple[int, ...]) -> str:
    """(0, 1, 2, 3), or (0, 1, 2, ..., 1023) when there are many."""
    if len(ranks) > 12:
        return f"({', '.join(map(str, ranks[:3]))}, ..., {ranks[-1]})"
    return str(tuple(ranks))


def describe(verb: Collective, x: Tensor | None) -> str:
    """A call in words: `all_reduce(op='sum') of float32 (4, 6)`."""
    if x is None:
        return str(verb)
    return f"{verb} of {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def disagreement(verb: Collective, x: Tensor | None, other_verb: Collective, y: Tensor | None) -> str | None:
    """What is wrong when two devices bring (verb, x) and (other_verb, y) to one collective; None when all is well."""
    if verb is not other_verb:  # almost always it is, in the programs of others
        if type(verb) is not type(other_verb):
            return "every device must call the same verbs in the same order"
        if verb != other_verb:
            return "every device must pass the same arguments"
    if x is None or y is None:
        return None
    if x.dtype != y.dtype:
        return "every device must bring the same dtype; convert with .to(dtype)"
    if x.device != y.device:
        return "every device must bring tensors of one kind of memory; convert with .to(device)"
    free = verb.may_differ()
    if x.shape == y.shape:
        return None
    if free is None:
        return "every device must bring the same shape"
    if x.ndim != y.ndim or any(a != b for d, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if d != free):
        return f"every device must bring the same shape, except along dim {free}"
    return None


def table_of_the_stuck(size: int, waits_for: dict[int, str], places: dict[int, str], ended: set[int]) -> str:
    """The table of a deadlock: each rank, what it waits for, and the line of the reader's code."""
    lines = [f"no device can move: {len(waits_for)} of {size} wait for something that will never happen"]
    rows = [("rank", "waits for", "in")]
    rows += [(str(r), waits_for[r], places[r]) if r in waits_for else (str(r), "(has ended)", "") for r in range(size)]
    shown = rows if size <= 16 else [*rows[:9], ("...", "", ""), *rows[-2:]]
    lines += [f"  {line}" for line in aligned(shown, left=(1, 2))]
    if all(text.startswith("recv") for text in waits_for.values()) and not ended:
        fix = "all wait to receive before anyone has sent: let some device send first"
    elif any(text.startswith("send") for text in waits_for.values()):
        fix = (
            "with rendezvous, a send waits until its receiver takes the message: let one of two neighbors receive "
            "first, or start the recv before the send: recv(src, async_op=True), in a guest dist.irecv"
        )
    elif ended:
        fix = (
            "every device of a group must make the same calls, and every recv needs its send; some have ended too early"
        )
    else:
        fix = "every device of a group must make the same calls in the same order"
    return "\n".join([*lines, f"Fix: {fix}."])

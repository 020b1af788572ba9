"""What went wrong, as one readable message: the rank, the lines of the program, the sentence, and what to do."""

import linecache
import re
import traceback
from pathlib import Path

from lib.guest.callers import is_a_guests
from lib.guest.hints import hint
from lib.guest.program import Exit


def cause_of(error: BaseException) -> BaseException:
    """The error of the program itself: that of a device which was started by a device, where there is one."""
    while type(error).__module__ == "torch.multiprocessing.spawn" and error.__cause__ is not None:
        error = error.__cause__
    return error


def message(error: BaseException, no_gpu: bool = False) -> str:
    """`rank 2 of 4: ValueError: ...`, the lines that led there, outermost first, and a hint."""
    error = cause_of(error)
    words = [str(error)] if isinstance(error, Exit) else [who(error), type(error).__name__, str(error)]
    lines = [": ".join(filter(None, words))]
    where = error.__cause__ if isinstance(error, Exit) else error  # the SystemExit knows the line
    for frame in traceback.extract_tb(where.__traceback__):
        if is_a_guests(frame.filename):
            source = linecache.getline(frame.filename, frame.lineno).strip()
            lines.append(f"  {Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: {source}")
    advice = hint(error, no_gpu)
    return "\n".join([*lines, f"{advice}."] if advice else lines)


def who(error: BaseException) -> str:
    """`rank 2 of 4`, or nothing when it was no device."""
    for note in getattr(error, "__notes__", ()):
        found = re.fullmatch(r"raised on (rank \d+ of \d+)", note)
        if found:
            return found[1]
    return ""


def exit_code(error: BaseException) -> int:
    """That of the program: what it gave to `sys.exit`; else 1, and 130 after Ctrl-C."""
    error = cause_of(error)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, Exit):
        return error.code & 0xFF if isinstance(error.code, int) else 1  # a text means 1, as in Python
    return 1

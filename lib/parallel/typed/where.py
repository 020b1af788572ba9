"""Names for a reader: that of an operation, and the line of the program that calls it."""

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from lib.parallel.typed.kinds import PlacementError
from lib.parallel.typed.rules import RULES

OTHERS = (str(Path(__file__).parent), str(Path(torch.__file__).parent), "<")  # not the reader's lines


def name_of(function: Callable) -> str:
    """The name without what Python puts around it: add for `Tensor.__add__` and `add_`, shape for its getter."""
    name = getattr(function, "__name__", str(function))
    if name in ("__get__", "__set__", "__delete__"):
        return function.__self__.__name__
    if name.startswith("__") and name.endswith("__"):
        return name[2:-2]
    return name[:-1] if name.endswith("_") and name[:-1] in RULES else name.split(".")[0]


def is_getter(function: Callable) -> bool:
    return getattr(function, "__name__", "") in ("__get__", "__set__", "__delete__")


def readers_frame() -> FrameType | None:
    """The innermost line of a program: not one of PyTorch's, nor of this checker's."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(OTHERS) and not file.endswith("named.py"):
            return frame
        frame = frame.f_back
    return None


def lines_above(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    """(file, line) of the frame, and of all lines that wait for it."""
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def place_of(frame: FrameType | None, rank: int) -> str:
    """Such as "rank 0, mlp.py line 50: return self.down(y)"; of a notebook's cell, the line alone."""
    if frame is None:
        return f"rank {rank}"
    file, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(file, line).strip()
    known = f"{Path(file).name} line" if file.endswith(".py") and "ipykernel" not in file else "line"
    return f"rank {rank}, {known} {line}{f': {text}' if text else ''}"


@contextmanager
def told(frame: FrameType | None, rank: int) -> Iterator[None]:
    """Whatever is refused inside is told with its place."""
    try:
        yield
    except PlacementError as error:
        raise PlacementError(f"{error} ({place_of(frame, rank)})") from None

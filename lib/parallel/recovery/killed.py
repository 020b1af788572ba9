"""A process that dies while it writes: at which moment, we choose.

with killed_at(folder, touch=3):
    save(...)                       # raises Killed when it wants to change the disk for the fourth time
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What Python announces before it does it (its audit events), and which changes the disk.
_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


class Killed(BaseException):
    """The process is gone: nothing that it had in mind is done any more."""


class _Watch:
    """Python cannot take an audit hook back, so there is one, which mostly looks at nothing."""

    def __init__(self) -> None:
        self.folder, self.left = "", 0
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or event not in _CHANGES or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and "w" not in str(arguments[1]):
            return  # reading
        if self.left <= 0:
            raise Killed
        self.left -= 1


_watches: list[_Watch] = []


@contextmanager
def killed_at(folder: Path, touch: int) -> Iterator[None]:
    """Inside, whoever wants to change something in `folder` for the time number `touch`, from 0, raises Killed; so does
    every later attempt, since the dead do nothing."""
    if not _watches:
        _watches.append(_Watch())
    watch = _watches[0]
    watch.folder, watch.left = str(folder), touch
    try:
        yield
    finally:
        watch.folder = ""

"""One training at a time in a folder: two would each remove what the other has saved."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.devices import Group
from lib.parallel.recovery.agree import of_everyone


@contextmanager
def alone_in(folder: Path, group: Group) -> Iterator[None]:
    """All devices enter it around a training that saves to `folder`. OSError on all when another one is there.

    The lock goes with the process: a killed one leaves none behind.
    """
    fault, file = None, None
    if group.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "lock").open("w")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fault = f"another training writes to {folder} at the moment. Wait for it, or name another folder"
        except OSError as error:
            fault = f"{folder}: {error.strerror}"
    told = of_everyone(group, fault)[0]
    if told:
        if file is not None:
            file.close()
        raise OSError(told)
    try:
        yield
    finally:
        if file is not None:
            file.close()

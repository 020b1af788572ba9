"""Processes that are started where no device runs, in a test or a notebook, simulated.

with spawning():
    mp.spawn(train, args=(4,), nprocs=4)      # four simulated devices, no process
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from lib.guest.globals import Globals
from lib.guest.launching import Start, launching, start_plainly
from lib.guest.program import Guest


def spawning(root: str | None = None, start: Start = start_plainly) -> AbstractContextManager[None]:
    """While entered, `mp.spawn` and `mp.Process` of the reader's functions run on simulated devices.

    Modules under the folder `root` are imported anew by each device; without, devices share the modules, and have the
    names for themselves that the functions declare `global`. `start(size, program)` runs a program on so many devices.
    """

    def child(main: Callable[[], Any], function: Callable) -> Guest:
        return Guest(main, root=root, torchrun=False, more_owners=(partial(Globals, function),), start=start)

    return launching(child, start)

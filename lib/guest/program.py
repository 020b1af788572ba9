"""Programs written for `torch.distributed`, unchanged, as programs for `Cluster.run`.

Cluster(4).run(guest(train, config))                # train(config) calls dist.init_process_group itself
Cluster(4).run(script("train.py", "--steps", "3"))  # as torchrun --nproc-per-node 4 train.py --steps 3
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lib.devices.engine.own import Owner
from lib.devices.group import Group
from lib.guest import endings, launching, modules, own, process, world
from lib.guest.charged import charged
from lib.guest.custom_ops import Operators
from lib.guest.dtensors import DTensors
from lib.guest.exits import Exit
from lib.guest.globals import Globals
from lib.guest.handed_to_cpp import fetched_before
from lib.guest.refusals import refusals
from lib.guest.replaced import Replaced
from lib.guest.seeds import Seeds
from lib.guest.settings import ForAWhile, shared
from lib.guest.signals import numbers_and_signals
from lib.guest.store import simulated_stores
from lib.guest.variables import variables


@dataclass(frozen=True)
class Guest:
    """What runs on each device. Others add to it by `dataclasses.replace`.

    `main` is called with nothing. `argv` is what `sys.argv` holds; modules under the folder `root`, and the packages
    `own`, are imported anew on each device; `nodes` says how many nodes the devices stand in, and `torchrun` whether
    the environment holds the variables that it sets. `inside`: contexts that each device enters, made from its group.
    `outside`: contexts around the whole run, made from its size. `more_owners`: makers of owners, from the size.
    `environment`: variables over those of torchrun. `start(size, program)` runs processes that the program starts.
    """

    main: Callable[[], Any]
    argv: tuple[str, ...] | None = None
    root: str | None = None
    nodes: int = 1
    inside: tuple[Callable[[Group], Any], ...] = ()
    outside: tuple[Callable[[int], Any], ...] = ()
    more_owners: tuple[Callable[[int], Owner], ...] = ()
    own: tuple[str, ...] = modules.SINGLETONS
    torchrun: bool = True
    environment: tuple[tuple[str, str], ...] = ()
    start: launching.Start = launching.start_plainly

    def owners(self, size: int) -> list[Owner]:
        """What the devices have for themselves; `Cluster.run` asks for it."""
        if size % self.nodes:
            raise ValueError(f"{size} devices cannot stand in {self.nodes} equal nodes")
        set_by = (lambda rank: variables(rank, size, self.nodes)) if self.torchrun else (lambda rank: {})
        own_ways = (
            world.patches, charged, fetched_before, simulated_stores, numbers_and_signals, refusals, shared,
            endings.endings, self._launching,
        )  # fmt: skip
        return [
            own.Outside((*own_ways, *self.outside), size),
            Seeds(size),
            own.Worlds(size),
            *own.of_python(size),
            *own.of_torch(size),
            Replaced(size),
            own.Environments(lambda rank: set_by(rank) | dict(self.environment), size),
            modules.Modules(self.root, self.own, size),
            Globals(self.main, size),
            DTensors(size),
            ForAWhile(size),
            *(make(size) for make in (*process.OWNERS, Operators, *self.more_owners)),
        ]

    def __call__(self, group: Group) -> Any:
        device = own.Device(group)
        outer = own.here()
        own.be(device)
        if self.argv is not None:
            sys.argv = list(self.argv)
        if self.root is not None:
            sys.path.insert(0, self.root)
        try:
            with ExitStack() as contexts:
                # A backward may else go on in threads of its own, which cannot give the turn away.
                contexts.enter_context(torch.autograd.set_multithreading_enabled(False))
                for make in self.inside:
                    contexts.enter_context(make(group))
                result = self.main()
                launching.run_started()
                endings.come(device)
            world.end(device)
            return result
        except SystemExit as error:
            if error.code not in (None, 0):
                raise Exit(group.rank, error.code) from error
            endings.come(device)
            world.end(device)
            return None
        finally:
            world.close(device)
            own.be(outer)

    def _launching(self, size: int) -> Any:
        return launching.launching(self._child, self.start)

    def _child(self, main: Callable[[], Any], function: Callable) -> "Guest":
        """What a process runs that this program starts: it inherits arguments and environment, as they are then."""
        own_globals = partial(Globals, function)
        more = (*self.more_owners, own_globals)
        return replace(self, main=main, argv=None, nodes=1, torchrun=False, environment=(), more_owners=more)


def guest(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Guest:
    """`function(*args, **kwargs)` on each device, as in a process that torchrun started."""
    if not callable(function):
        raise TypeError(f"guest needs a function, not {type(function).__name__}; script(path) runs a file")
    return Guest(partial(function, *args, **kwargs))


def script(path: str | Path, *argv: str, root: str | Path | None = None) -> Guest:
    """What `torchrun path *argv` runs in each process. Modules under `root` are the guest's own; by default, those of
    the project that the script belongs to. FileNotFoundError when there is no such file."""
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"script: there is no file {str(path)!r}; the folder at the moment is {Path.cwd()}")
    folder = Path(root).resolve() if root else modules.project_of(file)
    return Guest(partial(_run, str(file)), (str(path), *map(str, argv)), str(folder))


def _run(file: str) -> None:
    sys.path.insert(0, str(Path(file).parent))
    modules.run_as(file, "__main__")

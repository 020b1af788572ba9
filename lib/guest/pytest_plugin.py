"""Other people's tests without processes: `pytest -p lib.guest.pytest_plugin` simulates what their tests spawn.

Inside each test, `mp.spawn` and `mp.Process` of the suite's own functions run on simulated devices. Modules under the
root of the suite are imported anew by each device, as a spawned process would. At the end a line says how many there
were: none means that the suite starts its processes in another way (`torchrun`, `subprocess`), which stays real.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from lib.devices.cluster import Cluster
from lib.guest.program import Guest
from lib.guest.spawning import spawning

_sizes = pytest.StashKey[list[int]]()


def pytest_configure(config: pytest.Config) -> None:
    """At the beginning nothing was simulated."""
    config.stash[_sizes] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Around each test, what it starts is simulated."""

    def start(size: int, program: Guest) -> None:
        item.config.stash[_sizes].append(size)
        Cluster(size).run(program)

    with spawning(str(item.config.rootpath), start):
        return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How often, and on how many devices."""
    sizes = config.stash[_sizes]
    counts = ", ".join(f"{sizes.count(size)} x {size}" for size in sorted(set(sizes)))
    terminalreporter.write_line(f"simulated instead of started: {counts or 'nothing'} (runs x devices)")

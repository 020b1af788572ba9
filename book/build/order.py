"""A plugin of pytest: which tests belong together, and which of them begin. `-p book.build.order`, with `-n 2`.

All tests of one page of the book are a group, so that the page is opened once; so are the cells of a notebook, and the
tests of a file. Processes take whole groups from one list. The longest stand first in it, as the last run
measured them, so that at the end no process works on while the others wait.

A process keeps to one core: as many run as there are cores, and threads of PyTorch would wait for each other's.
"""

import json
import os
import re
from pathlib import Path

import pytest

SECONDS = Path("_build/seconds-of-tests.json")  # by group; the controlling process writes it when a run ends
# What was never measured and may be long: the cells of a chapter, its page, and what starts real processes.
LONG = ("chapters/", "page chapters/", "tests/oracles/", "tests/test_bench.py")


def group_of(nodeid: str) -> str:
    """`tests/a.py::test_b[c]` belongs to its file, `tests/a.py::test_b[chapters/c.html-0]` to a page."""
    page = re.search(r"\[([\w./-]+\.html)", nodeid)
    return f"page {page[1]}" if page else nodeid.split("::")[0]


def measured() -> dict[str, float]:
    try:
        return json.loads(SECONDS.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(group_of(item.nodeid), []).append(item)
    seconds = measured()
    expected = {name: seconds.get(name, 30.0 if name.startswith(LONG) else 5.0) for name in groups}
    items[:] = [item for name in sorted(groups, key=lambda name: -expected[name]) for item in groups[name]]


def pytest_configure(config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes; PyTorch is not loaded yet, and will read this
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)  # a hook of xdist
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # the order is that of the items
    return Groups(config, log)

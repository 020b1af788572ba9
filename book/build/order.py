"""A plugin of pytest: which tests belong together, and which of them begin. `-p book.build.order --dist loadgroup`.

All tests of one page of the book are a group, so that the page is opened once; so are the cells of a notebook, and the
tests of a file. Processes take whole groups from one list. The longest stand first in it, as the last run measured
them, so that at the end no process works on while the others wait.
"""

import json
from pathlib import Path

import pytest

SECONDS = Path("_build/seconds-of-tests.json")  # by group; the controlling process writes it when a run ends


def group_of(item: pytest.Item) -> str:
    path = getattr(item, "callspec", None) and item.callspec.params.get("path")
    return f"page {path}" if isinstance(path, str) and path.endswith(".html") else item.nodeid.split("::")[0]


def measured() -> dict[str, float]:
    try:
        return json.loads(SECONDS.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        name = group_of(item)
        item.add_marker(pytest.mark.xdist_group(name))
        groups.setdefault(name, []).append(item)
    seconds = measured()
    # What is new may be long: a chapter's cells and its page mostly are.
    expected = {
        name: seconds.get(name, 30.0 if name.startswith(("page chapters/", "chapters/")) else 5.0) for name in groups
    }
    items[:] = [item for name in sorted(groups, key=lambda name: -expected[name]) for item in groups[name]]

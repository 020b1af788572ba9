"""A plugin of pytest: at the end of a run, the ten groups that took most of its time. `-p book.build.slowest`.

A group is a file, or a page of the book with all that is asked of it: see `book.build.order`.
"""

import json
from collections import Counter

from book.build.order import SECONDS, group_of, measured

SHOWN = 10


def pytest_terminal_summary(terminalreporter, config) -> None:
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[group_of(report.nodeid)] += report.duration
    if not seconds:
        return
    terminalreporter.section(f"the slowest groups, of {sum(seconds.values()):.0f} s in all")
    for name, time in seconds.most_common(SHOWN):
        terminalreporter.write_line(f"{time:7.1f} s  {name}")
    if SECONDS.parent.is_dir():  # else nothing was built here
        known = measured() | {name: round(time, 1) for name, time in seconds.items()}
        SECONDS.write_text(json.dumps(known, indent=0, sort_keys=True), "utf-8")

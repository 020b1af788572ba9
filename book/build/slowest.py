"""A plugin of pytest: at the end of a run, the ten files that took most of its time. `-p book.build.slowest`."""

from collections import Counter

SHOWN = 10


def pytest_terminal_summary(terminalreporter) -> None:
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration") and hasattr(report, "nodeid"):
                seconds[report.nodeid.split("::")[0]] += report.duration
    if seconds:
        terminalreporter.section(f"the slowest files, of {sum(seconds.values()):.0f} s in all")
        for name, time in seconds.most_common(SHOWN):
            terminalreporter.write_line(f"{time:7.1f} s  {name}")

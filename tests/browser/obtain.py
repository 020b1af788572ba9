"""A Chromium for the tests: one on the machine, else Playwright's own, else the system's package.

`make test` runs this file first, so that test processes that start side by side find the browser ready.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPS = (  # where browsers live that are not on the PATH
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
# Without these, Chromium calls its maker's hosts at every start. And no page finds another host than this machine.
FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


def on_the_machine() -> str | None:
    found = [shutil.which(name) for name in NAMES] + [path for path in APPS if os.path.exists(path)]
    return next(filter(None, found), None)


def playwrights() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def quietly(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=600).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def obtain() -> str:
    if path := on_the_machine() or playwrights():
        return path
    print("No Chromium found; asking Playwright for one ...", flush=True)
    if quietly(sys.executable, "-m", "playwright", "install", "chromium") and (path := playwrights()):
        return path
    if shutil.which("apt-get") and os.geteuid() == 0:
        print("Playwright has none here; installing the system's package ...", flush=True)
        if not quietly("apt-get", "install", "-y", "-qq", "chromium"):
            quietly("apt-get", "update", "-qq")
            quietly("apt-get", "install", "-y", "-qq", "chromium")
        if path := on_the_machine():
            return path
    raise RuntimeError(
        "The tests need a browser, and none could be had: there is no chromium or google-chrome on the PATH, "
        "`playwright install chromium` failed, and so did the system's package (which needs root). "
        "Install Chromium or Chrome and run `make test` again."
    )


if __name__ == "__main__":
    try:
        print("Browser:", obtain())
    except RuntimeError as error:
        sys.exit(str(error))

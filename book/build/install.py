"""Installs what requirements.txt pins into the environment that runs it: `python -m book.build.install`.

uv unpacks all packages at once, in a fifth of pip's time. It is given pip's settings, so that it looks where pip looks:
without them it would take another build of PyTorch, gigabytes larger. It need not succeed. pip has the last word: it
installs what is still missing, and says what is wrong.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

from book.build.record import pins

PINS = "requirements.txt"
PIP = (sys.executable, "-m", "pip")
OPTIONS = {  # of uv, for pip's
    "index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}  # fmt: skip
VARIABLES = {"SSL_CERT_FILE": "cert", "ALL_PROXY": "proxy"}  # that uv reads, for pip's
SHOWN_EACH = 30  # a line for so many packages that pip finds


def settings(listed: str) -> dict[str, str]:
    """pip's own, by name, as `pip config list` shows them: a line each, `section.name='value'`.

    The environment (`:env:`) goes before what is said for `install`, and that before what is said for all commands.
    """
    known = {}
    for wanted in ("global", "install", ":env:"):
        for line in listed.splitlines():
            where, _, value = line.partition("=")
            section, _, name = where.rpartition(".")
            if section == wanted:
                known[name] = ast.literal_eval(value)
    return known


def by_uv(known: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """What uv is called with, and the environment that it needs, to look where pip with these settings looks."""
    options = []
    for name, option in OPTIONS.items():
        for place in known.get(name, "").split():
            options += [option, place]
    if known.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    extra = {name: known[setting] for name, setting in VARIABLES.items() if setting in known}
    # As pip: of all places, the one with the best version. Nothing that is not pinned.
    return [*options, "--index-strategy", "unsafe-best-match", "--no-deps", "-r", PINS], extra


def try_uv() -> bool:
    """Whether uv has installed everything that is pinned."""
    pinned = f"uv=={pins(Path.cwd())['uv']}"
    if subprocess.run([*PIP, "install", "--quiet", pinned], capture_output=True).returncode:
        return False  # pip will say why
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
    options, extra = by_uv(settings(listed))
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | extra) as running:
        for line in running.stderr:
            if not line.startswith((" + ", " - ", " ~ ")):  # it lists every package at its end
                print(" ", line.rstrip(), flush=True)
    return running.returncode == 0


def ask_pip() -> int:
    """pip's exit status. Where uv has done its work, there is nothing left to do."""
    # --no-compile: bytecode of all 14,000 files takes 50 s. Python writes that of the few it imports, when it does.
    command = [*PIP, "install", "--no-compile", "--progress-bar", "off", "-r", PINS]
    at_once = os.environ | {"PYTHONUNBUFFERED": "1"}
    found = 0
    with TemporaryFile("w+") as complaints:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=at_once) as running:
            for line in running.stdout:
                found += line.startswith("Collecting")
                if line.startswith("Collecting") and found % SHOWN_EACH == 0:
                    print(f"  found {found}", flush=True)
                elif line.startswith("Installing"):
                    print("  unpacking", flush=True)
        if running.returncode:
            complaints.seek(0)
            print(complaints.read(), file=sys.stderr)
    return running.returncode


def main() -> int:
    where = Path(sys.prefix).name
    print(f"Installing {len(pins(Path.cwd()))} pinned packages into {where} (once; half a minute to two)", flush=True)
    if not try_uv():
        print("  uv could not; pip installs them, which takes longer", flush=True)
    book = [*PIP, "install", "--quiet", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    return ask_pip() or subprocess.run(book).returncode


if __name__ == "__main__":
    sys.exit(main())

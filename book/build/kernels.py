"""A plugin of pytest: kernels that begin with PyTorch, `lib` and `book` in them. `-p book.build.kernels`.

A kernel spends four seconds on imports that every chapter makes, before its first cell has an output. Here kernels are
forked from a process that has made them once. Nothing of a chapter runs in that process, so kernels stay apart; and no
name is given to a chapter: what a cell uses, a cell must import. `make outputs` starts every kernel anew.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from typing import Any


class Forked:
    """A kernel, with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.returncode = 0
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@cache
def server() -> subprocess.Popen:
    """Of this process. It ends when its input ends, so with this process."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def launch(command: list[str], env: dict[str, str] | None = None, cwd: str | None = None, **others: Any) -> Forked:
    """As `jupyter_client.launcher.launch_kernel`. What a kernel writes past its cells is thrown away."""
    arguments = command[command.index("ipykernel_launcher") + 1 :]
    print(json.dumps([arguments, env or dict(os.environ), str(cwd or os.getcwd())]), file=server().stdin)
    return Forked(int(server().stdout.readline()))


def pytest_configure(config) -> None:
    if sys.platform == "linux":  # elsewhere a fork of a process with such libraries may not be used
        from jupyter_client.provisioning import local_provisioner

        local_provisioner.launch_kernel = launch


def serve() -> None:
    """Forks a kernel for every line of the input, and says its number."""
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else it warns of what only breakpoints need
    import psutil  # noqa: F401
    import torch._dynamo  # noqa: F401  what PyTorch's optimizers import when the first one is made
    from ipykernel import debugger, kernelapp  # noqa: F401  a kernel loads its debugger when it starts

    import book
    import lib

    for room in (lib, book):
        for name in room.__all__:
            getattr(room, name)  # both load lazily
    gc.freeze()  # what all have imported is no garbage: to look through it takes a fifth of a second each time
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who has ended is forgotten
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            become_kernel(*json.loads(line))
        os.setpgid(pid, pid)  # signals go to a kernel and to what it started, not to us
        print(pid, flush=True)


def become_kernel(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """What `python -m ipykernel_launcher` does. Does not return."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os.environ.clear()
        os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))
        os.chdir(cwd)
        del sys.path[0]  # where the server was started: no kernel has that
        from ipykernel import kernelapp

        sys.argv = ["ipykernel_launcher", *arguments]
        kernelapp.launch_new_instance()
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve()

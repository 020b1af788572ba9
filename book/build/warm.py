"""A `python` that has imported PyTorch already: where a chapter starts others, it takes the place of the interpreter.

torchrun starts its workers with the command in PYTHON_EXEC, multiprocessing its fork server with that of
`set_executable`. When they are this program, what they start is forked from the server of `kernels.py`: it has PyTorch,
and nothing of `lib` and `book`, which it imports anew, as any process does. The program itself stays as long as its
fork: it passes signals on, and ends as the fork ends.
"""

import atexit
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The program begins in ten milliseconds: nothing but Python's own modules, and no site. It hands over its open files
# with their numbers, its words, environment and folder, and hears how its fork has ended.
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

numbers = []
for number in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        os.fstat(number)
        numbers.append(number)
    except OSError:  # with which the folder was listed
        pass
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
for each in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
    signal.signal(each, lambda number, _: line.send(bytes([number])))
socket.send_fds(line, [b"f"], numbers)
line.sendall(json.dumps([numbers, sys.argv[1:], dict(os.environ), os.getcwd()]).encode() + b"\\n")
os.closerange(0, line.fileno())  # or who reads what the fork writes would never come to its end
os.closerange(line.fileno() + 1, 1024)
code = int(line.recv(16) or -signal.SIGKILL)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""
OURS = ("lib", "book")


def listen(folder: Path) -> socket.socket:
    """Writes the program `python` into `folder`; returns where its calls come in."""
    listener, program = socket.socket(socket.AF_UNIX), folder / "python"
    listener.bind(str(folder / "line"))
    listener.listen()
    program.write_text(CLIENT.format(python=sys.executable, address=str(folder / "line")))
    program.chmod(0o700)
    return listener


def answer(line: socket.socket) -> Callable[[], None]:
    """Takes a call. Returns in the fork that was asked for, with what it has to do; here, it is waited for."""
    os.setpgid(0, 0)
    _, files, *_ = socket.recv_fds(line, 1, 256)
    with line.makefile("rb") as reader:
        numbers, words, env, folder = json.loads(reader.readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        try:
            line.sendall(str(_end_of(pid, line)).encode())
        finally:
            os._exit(0)
    line.close()
    high = [os.dup2(file, 500 + k) for k, file in enumerate(files)]  # none of them is where another shall be
    os.closerange(3, 500)
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    return lambda: leave_after(words)


def _end_of(pid: int, line: socket.socket) -> int:
    """The exit code of process `pid`, as `subprocess` has it. Until then, the signals that come over `line` go to it;
    when nobody is there any more, it is killed."""
    ended = os.pidfd_open(pid)
    while True:
        ready, *_ = select.select([ended, line], [], [])
        if ended in ready:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for number in line.recv(16) or [signal.SIGKILL]:
            os.kill(pid, number)


def leave_after(words: list[str]) -> None:
    """Ends as Python does, but takes down none of all that was imported: that would take a second. Nor what the
    script made: a DistributedDataParallel that is freed may hang (github.com/pytorch/pytorch/issues/56297)."""
    code, kept = 1, None
    try:
        kept = run(words)
        code = 0
    except SystemExit as end:
        kept = end  # noqa: F841  as above
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # as multiprocessing does: waits for threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: list[str]) -> dict[str, Any]:
    """What `python *words` does, in a process that has imported much, and nothing of ours. Returns what it has made."""
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # PyTorch has read it before
    while words[0] == "-u":
        words = words[1:]
        sys.stdout.reconfigure(line_buffering=True)
    kind, *rest = words
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), made := vars(sys.modules["__main__"]))
        return made
    if kind == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        return runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    if kind.startswith("-"):
        os.execv(sys.executable, [sys.executable, *words])
    sys.argv = words
    sys.path.insert(0, str(Path(kind).resolve().parent))
    return runpy.run_path(kind, run_name="__main__")

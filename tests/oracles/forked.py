"""torchrun without a start of Python for each process: its agent and its workers are forks of one that has PyTorch.

Most of what `torchrun` costs is the import of PyTorch, in the agent and in every worker. Here both are forked from a
server that has it. The agent is torchrun's own, so it sets the same environment, watches its workers, and reports who
failed. The chapters "Bring your own program" and, for `train_gpt`, "Failing and recovering" give the real command.
"""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import traceback
import uuid
from pathlib import Path

import torch

STANDS_STILL = 120  # seconds: none takes so long, and then each process says where it stands


class Forked:
    """`torchrun --nproc-per-node size *words`, started; with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, size: int, *words: str, merged: bool = False):
        context = multiprocessing.get_context("forkserver")
        self._folder = tempfile.TemporaryDirectory()
        self._out = Path(self._folder.name) / "out"
        self._err = self._out if merged else self._out.with_name("err")
        self._process = context.Process(target=_agent, args=(size, words, str(self._out), str(self._err)))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            said = "\n".join(file.read_text() for file in sorted({self._out, self._err}))
            raise TimeoutError(f"after {timeout} s it still runs, and has said:\n{said}")
        return self._out.read_text(), self._err.read_text()

    def terminate(self) -> None:
        self._process.terminate()  # the agent ends its workers


def _agent(size: int, words: tuple[str, ...], out: str, err: str) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for number, file in (1, out), (2, err):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ["OMP_NUM_THREADS"] = "1"
    config = LaunchConfig(
        1, 1, size, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, _worker)(*words)
    except ChildFailedError:
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _worker(*words: str) -> None:
    """What `python *words` does."""
    torch.set_num_threads(1)  # as torchrun has it; PyTorch has read OMP_NUM_THREADS before
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # not the agent's: those raise an error, and a worker would tell of it
    faulthandler.dump_traceback_later(STANDS_STILL, file=sys.__stderr__)
    module = words[0] == "-m"
    sys.argv = list(words[1:] if module else words)
    try:
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        if end.code:
            _leave(end.code if isinstance(end.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _leave(1)
    sys.stdout.flush()  # and back to the agent, which waits for a result


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a fork of pytest's would tidy up what is not its own

"""Worlds of real processes that talk through gloo: `World(3).run(program, *args)` for `Cluster(3).run(...)`.

The processes of a world are started once and serve one program after another. They are forked from a server that has
imported before what takes seconds, so that ten of them are there in a second.
"""

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._pytree import tree_map_only

TIMEOUT = timedelta(seconds=60)  # a safety net; what goes wrong is noticed by the process that ends or raises
# Imports that take from a tenth of a second to two. The last is what PyTorch's optimizers import when first made.
PRELOADED = [
    "torch.distributed.tensor.parallel", "torch.distributed.run", "torch.distributed.fsdp",
    "torch.distributed.pipelining", "pytest", "lib.real.child", "lib.examples.train_gpt", "torch._dynamo",
]  # fmt: skip


def start_server() -> None:
    """One server for all: worlds, `Forked`, and the library's `Processes`. It keeps what it was first started with."""
    forkserver.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


class World:
    """`size` processes. What a program raises on a rank is raised by `run` with that rank; all processes are ended."""

    def __init__(self, size: int):
        self.size = size
        self._processes: list[multiprocessing.Process] = []
        self._lines: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def run(self, program, *args) -> list:
        """`program(*args)` in every process, by rank. The program must be a plain function at the top of its file."""
        if not self._processes:
            self._start()
        order = pickle.dumps((program.__code__.co_filename, program.__qualname__, args))
        for line in self._lines:
            line.send_bytes(order)
        results = [None] * self.size
        open_lines = {line: rank for rank, line in enumerate(self._lines)}
        while open_lines:
            for line in wait(list(open_lines)):
                rank = open_lines.pop(line)
                try:
                    failed, results[rank] = pickle.loads(line.recv_bytes())
                except EOFError:
                    failed, results[rank] = True, "the process has ended"
                if failed:
                    self.close()
                    raise RuntimeError(f"rank {rank} of {self.size} real processes: {results[rank]}")
        return results

    def close(self) -> None:
        """Ends all processes; the next run would start new ones."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._lines = [], []
        if self._folder:
            self._folder.cleanup()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")  # where the processes find each other: no port is needed
        for rank in range(self.size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_live, args=(rank, self.size, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._lines.append(mine)


def _live(rank: int, size: int, store: str, line: Connection) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the machine's name, which may fail
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=TIMEOUT)
    while True:
        try:
            file, name, args = pickle.loads(line.recv_bytes())
        except EOFError:  # the tests are over
            return
        try:
            result = getattr(_module(file), name)(*args)
            # DTensor's results may still be under way: what is sent on must have arrived.
            answer = False, tree_map_only(AsyncCollectiveTensor, AsyncCollectiveTensor.wait, result)
        except Exception:
            answer = True, traceback.format_exc()
        line.send_bytes(pickle.dumps(answer))


def _module(file: str):
    """The test file with the program, imported under a name of our own: pytest's names are not known here."""
    name = "program_of_" + Path(file).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

"""Work beside the program of a real process: in a thread of its own and, on a GPU, in a CUDA stream of its own."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch


class Worker:
    """A thread that does the jobs it is given, in their order. It is a daemon: a job that never ends does not keep the
    process. (The threads of `concurrent.futures` would.)"""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future, Callable[[], Any]] | None] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()

    def do(self, job: Callable[[], Any]) -> Future:
        """The future of what `job()` returns or raises."""
        future: Future = Future()
        self._jobs.put((future, job))
        return future

    def stop(self) -> None:
        """Ends the thread when all jobs are done."""
        self._jobs.put(None)

    def _work(self) -> None:
        while order := self._jobs.get():
            future, job = order
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            del order, future, job  # what they hold is free before the next job comes


def in_a_stream_of_its_own(job: Callable[[], Any], gpu: torch.device) -> Callable[[], Any]:
    """`job` on a CUDA stream: after what the program has asked of the GPU so far, beside what it asks for later."""
    before = torch.cuda.current_stream(gpu).record_event()

    def on_the_side() -> Any:
        side = torch.cuda.Stream(gpu)
        with torch.cuda.stream(side):
            side.wait_event(before)
            result = job()
        side.synchronize()  # so that what the job read may be freed, and what it made may be used
        return result

    return on_the_side

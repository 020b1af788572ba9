"""Who waits for what: the devices that stand still, and the asynchronous calls that nobody has waited for yet."""

import sys
from collections.abc import Callable
from threading import get_ident

from torch import Tensor

from lib.devices.engine.turns import Turns
from lib.devices.engine.wording import short_ranks, table_of_the_stuck, where
from lib.devices.errors import DeadlockError, MismatchError, Stopped
from lib.devices.handle import Handle


class Waiting:
    """Of one run. Ranks are those of the cluster, but `ranks`, a group's members in their order, says what a call
    means."""

    def __init__(self, size: int):
        self.size = size
        self.turns: Turns | None = None  # set while the run lasts
        self.ended: set[int] = set()  # ranks whose program is over
        self._waits_for: dict[int, tuple[object, tuple[int, ...]]] = {}  # rank -> its call, and the group's ranks
        self._open: dict[Handle, str] = {}  # asynchronous calls nobody has waited for: where they were started

    def wait(self, rank: int, call: object, ranks: tuple[int, ...]) -> None:
        """Device `rank` stands still until another makes it ready."""
        self._waits_for[rank] = call, ranks
        self.turns.wait(rank)
        del self._waits_for[rank]

    def later(
        self, call: object, ranks: tuple[int, ...], rank: int, line: str, collect: Callable[[], Tensor | None]
    ) -> Handle:
        """A handle that collects when it is waited for. It is remembered until then, with the line that started it."""

        def close() -> Tensor | None:
            self.check_caller(rank, call)
            del self._open[handle]
            return collect()

        handle = Handle(f"{call} in group {short_ranks(ranks)}", close)
        self._open[handle] = f"rank {rank} in {line}"
        return handle

    def forget(self, handle: Handle) -> None:
        """Nobody will wait for `handle`, and that is no mistake."""
        self._open.pop(handle, None)

    def check_caller(self, rank: int, call: object) -> None:
        """RuntimeError unless the run lasts and the caller is the thread of device `rank`."""
        turns = self.turns
        if turns is None:
            raise RuntimeError(
                f"rank {rank} called {call} after its run had ended. Groups live as long as the run: call backward() "
                "and all verbs inside the program that Cluster.run() was given"
            )
        if get_ident() != turns.idents[rank]:
            raise RuntimeError(
                f"the group of rank {rank} was used by somebody else, to call {call}. "
                "Each device must use the group that its own program was given"
            )
        if turns.failure is not None:
            raise Stopped

    def check_all_waited_for(self) -> None:
        """At the end of a run: MismatchError names a handle that nobody waited for."""
        for handle, started in self._open.items():
            raise MismatchError(f"{started}: started {handle}. Call wait() on it, or leave out async_op=True")

    def deadlock(self, asking: dict[int, str]) -> DeadlockError:
        """The error for the moment when nobody can move: who waits for what, and in which line. `asking`: for what
        devices wait that do not stand still, but ask again and again."""
        calls = {rank: f"{call} in group {short_ranks(ranks)}" for rank, (call, ranks) in self._waits_for.items()}
        calls |= asking
        frames = sys._current_frames()
        places = {rank: where(self.turns.frame_of(rank, frames)) for rank in calls}
        del frames  # this frame is among them: such a cycle would keep the devices' tensors alive
        return DeadlockError(table_of_the_stuck(self.size, calls, places, self.ended))

"""How real processes notice that nobody can move, or that one has failed.

A process that has waited for a second says so in the store that all share, and reads what the others say. When all
wait or have ended, and three looks in a row show the same, it is a deadlock: nobody went on in between. Nothing is
written or read while the program moves. A process that computes, however long, waits for nobody: no time limit is
needed.
"""

import sys
import time
from collections.abc import Callable

import torch.distributed as dist

from lib.devices.engine.wording import short_ranks, table_of_the_stuck, where
from lib.devices.errors import DeadlockError
from lib.real import notes

SECONDS = 1.0  # from look to look
LOOKS = 3
_ENDED = "(has ended)"
_FAILED = "(has failed)"

# What a process says of itself: nothing (it goes on), that it has ended, that it has failed (whether this is only a
# consequence, and the error), or what it waits for (the call, the line, the number of the wait, and of its step).
State = list | None
_FORMS = ([str], [str, bool, str], [str, str, int, int])

Arrived = Callable[[float], bool]  # waits for at most so many seconds, and says whether what is waited for is there
Waiting = Callable[[Arrived], None]  # returns when it is there


class Lookout:
    """Waits for others, as long as there is hope; `rank` and `size` are those of the world."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        self._store, self._rank, self._size = store, rank, size
        self._waits = 0

    def wait(self, arrived: Arrived, call: object, ranks: tuple[int, ...], step: Callable[[], int | None]) -> None:
        """Returns when `arrived` says so. Raises DeadlockError when that will never be, ConnectionError when another
        process has failed.

        `step()` is a number that changes when the call goes on, or None while it waits for nobody: data is on its way.
        """
        if arrived(SECONDS):
            return
        self._waits += 1
        text, place = f"{call} in group {short_ranks(ranks)}", where(sys._getframe())

        def state() -> State:
            now = step()
            return None if now is None else [text, place, self._waits, now]

        self._hope(arrived, state, text)
        self._say(None)

    def end(self, others_ended: Arrived) -> None:
        """The program of this process is over: waits for the others to end. Raises as `wait` does."""
        self._hope(others_ended, lambda: [_ENDED], "the end of the run")

    def fail(self, error: BaseException) -> None:
        """The program of this process has failed: nobody shall wait for it."""
        if not isinstance(error, DeadlockError):  # that one, all find: what this process waits for must stay to be read
            only_a_consequence = isinstance(error, ConnectionError)
            self._say([_FAILED, only_a_consequence, f"{type(error).__name__}: {error}"])

    def _hope(self, arrived: Arrived, state: Callable[[], State], text: str) -> None:
        looks: list[list[State]] = []
        while not arrived(SECONDS):
            self._say(state())
            looks = [*looks[1 - LOOKS :], self._everyone()]
            failed = [(*said[1:], r) for r, said in enumerate(looks[-1]) if said is not None and said[0] == _FAILED]
            if failed:
                _, error, rank = min(failed)
                raise ConnectionError(f"rank {self._rank} waits for {text}, but rank {rank} has raised {error}")
            nobody_moves = None not in looks[0] and looks.count(looks[0]) == LOOKS
            if nobody_moves and any(one != [_ENDED] for one in looks[0]):
                raise self._deadlock(looks[0])

    def _say(self, state: State) -> None:
        notes.write(self._store, f"state of {self._rank}", state)

    def _everyone(self) -> list[State]:
        return [_state(self._store, rank) for rank in range(self._size)]

    def _deadlock(self, states: list[list]) -> DeadlockError:
        stuck = {rank: state for rank, state in enumerate(states) if state != [_ENDED]}
        calls, places = ({rank: state[i] for rank, state in stuck.items()} for i in range(2))
        return DeadlockError(table_of_the_stuck(self._size, calls, places, set(range(self._size)) - set(stuck)))


def failure_of(store: dist.Store, rank: int) -> tuple[bool, str] | None:
    """Whether what process `rank` has failed with is only a consequence, and its words; None while it has not failed.
    A deadlock is no failure here: all find it."""
    state = _state(store, rank)
    return (state[1], state[2]) if state is not None and state[0] == _FAILED else None


def _state(store: dist.Store, rank: int) -> State:
    key = f"state of {rank}"
    if not store.check([key]):
        return None
    state = notes.read(store, key)
    if state is not None and (not isinstance(state, list) or [type(part) for part in state] not in _FORMS):
        raise notes.foreign(key, state)
    return state


class PatientStore(dist.Store):
    """Waits as long as it takes, by asking again and again: a store that waits itself is closed to all other threads,
    so two groups that connect at the same time would wait for each other."""

    def __init__(self, store: dist.Store):
        super().__init__()
        self._store = store

    def set(self, key: str, value: str | bytes) -> None:
        self._store.set(key, value)

    def check(self, keys: list[str]) -> bool:
        return self._store.check(keys)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._store.get(key)

    def wait(self, keys: list[str], _: object = None) -> None:
        while not poll(lambda: self._store.check(keys), 3600.0):
            continue


def poll(there: Callable[[], bool], seconds: float) -> bool:
    """Asks again and again, for at most so many seconds, whether something is there."""
    end, pause = time.monotonic() + seconds, 0.0005
    while not there():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return True

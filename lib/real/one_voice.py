"""Under torchrun, what goes wrong is said once: by a process that knows the cause, not by all that stumble over it."""

import sys
import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

from lib.devices.errors import DeadlockError
from lib.real.lookout import failure_of

PATIENCE = 1.0  # seconds in which the process that shall speak is waited for
_TOLD = "_told_elsewhere"


def let_one_speak(error: BaseException, store: dist.Store, rank: int, size: int) -> None:
    """This process has failed with `error`, and has told so. If another one says it, or says the cause of it, this one
    ends without a word; its exit code stays what it is."""
    if _is_told_elsewhere(error, store, rank, size):
        setattr(error, _TOLD, True)
        _end_without_a_word(error)
        time.sleep(2 * PATIENCE)  # torchrun ends all when the first of them ends, and takes that for the cause


def is_silent(error: BaseException) -> bool:
    """Whether another process says it."""
    return getattr(error, _TOLD, False)


def last_words(text: str, error: BaseException) -> str | int:
    """For `sys.exit`: the text, or only an exit code where another process says it."""
    return 1 if is_silent(error) else text


def _is_told_elsewhere(error: BaseException, store: dist.Store, rank: int, size: int) -> bool:
    if isinstance(error, DeadlockError):
        return rank > 0  # all find the same one
    mine = (isinstance(error, ConnectionError), f"{type(error).__name__}: {error}")
    end = time.monotonic() + PATIENCE
    while mine[0] or rank > 0:
        others = {other: failure_of(store, other) for other in range(size) if other != rank}
        failed = {other: failure for other, failure in others.items() if failure is not None}
        causes = [other for other, (only_a_consequence, _) in failed.items() if not only_a_consequence]
        if mine[0] and causes:
            return True
        if any(other < rank and (failure == mine or (failure[0] and mine[0])) for other, failure in failed.items()):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return False


def _end_without_a_word(error: BaseException) -> None:
    before = sys.excepthook

    def hook(kind: type[BaseException], raised: BaseException, traceback: TracebackType | None) -> Any:
        if raised is not error:
            before(kind, raised, traceback)

    sys.excepthook = hook

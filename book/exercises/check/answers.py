"""What a reader's plain function gives for a case: an answer, nothing yet, or an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from book.exercises.check.failed import is_stub
from book.exercises.check.verdict import Fault
from lib.devices import DeadlockError


def answer(program: Callable[..., Any], case: tuple[Any, ...], told: str) -> Any:
    """What `program(*case)` returns. NotImplementedError where it is not written yet; else a Fault, `told` the case."""
    try:
        given = program(*case)
    except (NotImplementedError, Fault):
        raise
    except Exception as error:
        if "ellipsis" in str(error):
            raise NotImplementedError from None  # a `...` of the stub is still in the way of the code
        ends = "hangs" if isinstance(error, DeadlockError) else "fails"
        raise Fault(f"{ends} for {told}.", f"{type(error).__name__}: {error}") from None
    if given is ... or isinstance(given, tuple | list) and any(each is ... for each in given):
        raise NotImplementedError
    if given is None and unfinished(program):
        raise NotImplementedError
    if given is None:
        raise Fault(f"returns None for {told}.", "Cause: is a return missing?")
    return given


def unfinished(program: Callable[..., Any]) -> bool:
    """Whether the body does nothing, or a `...` stands somewhere in it."""
    return is_stub(program) or ... in getattr(getattr(program, "__code__", None), "co_consts", ())

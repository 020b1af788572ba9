"""What a reader's plain function gives for a case: an answer, nothing yet, or an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from book.exercises.check.failed import is_stub
from book.exercises.check.verdict import Fault
from lib.devices import DeadlockError


def answer(program: Callable[..., Any], case: tuple[Any, ...], told: str) -> Any:
    """What `program(*case)` returns, `plain`. NotImplementedError where it is not written yet; else a Fault, `told` the
    case."""
    try:
        given = plain(program(*case))
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


def plain(given: Any) -> Any:
    """What is as good as a list or a number, as that: a tensor, an array or a number of NumPy, a range, a generator."""
    if isinstance(given, np.ndarray | np.generic) or isinstance(given, Tensor) and given.ndim < 2:
        return given.tolist()
    if type(given) is dict:
        return {name: plain(value) for name, value in given.items()}
    if isinstance(given, range | Iterator) or type(given) in (list, tuple):
        parts = map(plain, given)
        return tuple(parts) if type(given) is tuple else list(parts)
    return given


def unfinished(program: Callable[..., Any]) -> bool:
    """Whether the body does nothing, or a `...` stands somewhere in it."""
    return is_stub(program) or ... in getattr(getattr(program, "__code__", None), "co_consts", ())

"""What a reader's plain function gives for a case: an answer, nothing yet, or an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from book.exercises.check.endless import ended
from book.exercises.check.failed import is_stub, is_unwritten, oddness
from book.exercises.check.verdict import Fault
from lib.devices import DeadlockError

MOST = 10_000  # items of a generator or a range: one without an end must not be waited for


def answer(program: Callable[..., Any], case: tuple[Any, ...], told: str) -> Any:
    """What `program(*case)` returns, `plain`. NotImplementedError where it is not written yet; else a Fault, `told` the
    case."""
    try:
        with ended(program, f"for {told}"):
            given = plain(program(*case))
    except Fault:
        raise
    except Exception as error:
        if is_unwritten(error):
            raise
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
    """What is as good as a list or a number, as that: an array or a number of NumPy, a tensor with one dim or none, a
    range, a generator. A matrix of PyTorch stays one, unless it counts. Fault where a generator does not end, and of a
    tensor that cannot be read."""
    if isinstance(given, Tensor) and (odd := oddness(given)):
        raise Fault(f"gives a tensor that {odd}.", "Return a number, a list or an ordinary tensor.")
    if isinstance(given, np.ndarray | np.generic) or isinstance(given, Tensor) and _is_list(given):
        return given.tolist()
    if type(given) is dict:
        return {name: plain(value) for name, value in given.items()}
    if isinstance(given, range | Iterator):
        given = list(islice(map(plain, given), MOST + 1))  # each at once: a generator in it may look at what goes on
        if len(given) > MOST:
            raise Fault(
                "gives items without an end.", f"There were {MOST:,}, and still one more. What is to stop them?"
            )
    elif type(given) in (list, tuple):
        return type(given)(map(plain, given))
    return given


def _is_list(given: Tensor) -> bool:
    return given.ndim < 2 or not given.is_floating_point()


def unfinished(program: Callable[..., Any]) -> bool:
    """Whether the body does nothing, or a `...` stands somewhere in it."""
    return is_stub(program) or ... in getattr(getattr(program, "__code__", None), "co_consts", ())

"""Where inf or nan comes from: the first operation of a program that makes it out of other numbers, and its line."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# These compute nothing: an inf in them is written there, as in a mask.
WRITTEN = ("masked_fill", "where", "full", "new_full", "fill", "copy", "scalar_tensor", "lift_fresh", "empty", "index")
LARGEST, SMALLEST = 709, -745  # what exp can take in float64: of more it is inf, of less it is 0
SIGNS = {"div": "/", "sub": "-", "mul": "*", "add": "+"}


class Births(TorchDispatchMode):
    """Notes, on one device, the first operation that makes inf or nan of numbers that are not.

    A mask of -inf is meant: what is given -inf may give -inf, but not nan.
    """

    def __init__(self, program: Callable[..., Any]) -> None:
        super().__init__()
        self.file = getattr(getattr(program, "__code__", None), "co_filename", None)
        self.noted: dict[str, str] = {}  # "inf", "nan", "-inf": how it came up first
        self.vanished = 0.0  # the lowest number whose exp was 0

    def first(self, nan: bool) -> str | None:
        """Where it began, for a result with a `nan` or inf alone. A nan often follows an inf; -inf may be meant."""
        order = ("inf", "nan", "-inf") if nan else ("inf", "-inf", "nan")
        return next((self.noted[kind] for kind in order if kind in self.noted), None)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        before = [x.clone() if isinstance(x, Tensor) else x for x in args if isinstance(x, Tensor | float | int)]
        made = function(*args, **(kwargs or {}))
        name = name.strip("_")  # exp_ works in place: hence the clones
        if isinstance(made, Tensor) and made.is_floating_point() and not name.startswith(WRITTEN):
            given = [x if isinstance(x, Tensor) else torch.tensor(x, dtype=made.dtype) for x in before]
            self._look(name, given, made)
        return made

    def _look(self, name: str, given: Sequence[Tensor], made: Tensor) -> None:
        if any(x.isnan().any() for x in given):
            return
        for kind, where in (("nan", made.isnan()), ("inf", made == torch.inf), ("-inf", made == -torch.inf)):
            new = kind == "nan" or all(x.isfinite().all() for x in given)
            if new and kind not in self.noted and where.any():
                self.noted[kind] = self._told(name, given, where, kind) + self._line()
        if name == "exp" and not made.all():
            vanishes = (given[0] < SMALLEST) & given[0].isfinite()
            self.vanished = min(self.vanished, *given[0][vanishes].tolist(), 0.0)

    def _told(self, name: str, given: Sequence[Tensor], where: Tensor, kind: str) -> str:
        if "softmax" in name:
            return "the softmax of a row that is -inf throughout is 0/0: in each row one number at least must count."
        try:
            a, *others = (x.expand(where.shape)[where].flatten()[0].item() for x in given[:2])
        except (RuntimeError, ValueError):  # not element by element
            return f"{name} is where the first {kind} comes up."
        if name == "exp":
            return f"exp of {a:.4g} is inf, as of all above {LARGEST}. The largest number is to be subtracted before."
        lost = self.vanished and 0 in (others[:1] if name == "div" else [a])
        why = f" Before, exp of {self.vanished:.4g} was 0, as of all below {SMALLEST}." if lost else ""
        if name in SIGNS and others:
            return f"{a:.4g} {SIGNS[name]} {others[0]:.4g} is {kind}.{why}"
        return f"{name} of {a:.4g} is {kind}.{why}"

    def _line(self) -> str:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == self.file:
                source = linecache.getline(self.file, frame.f_lineno).strip()
                return f" Line {frame.f_lineno}: {source}" if source else ""
            frame = frame.f_back
        return ""


def watched(program: Callable[..., Any], births: dict[int, Births]) -> Callable[..., Any]:
    """The program; what each rank's numbers became is noted in `births`."""

    def run(group: Any, *inputs: Tensor) -> Any:
        births[group.rank] = Births(program)
        with births[group.rank]:
            return program(group, *inputs)

    return run


def began(births: dict[int, Births], nan: bool) -> str:
    """The cause, on the first rank that has one."""
    told = [birth.first(nan) for _, birth in sorted(births.items())]
    return next(filter(None, told), None) or (
        "the result is finite, its gradient is not: somewhere the backward divides by 0, or multiplies 0 by inf."
    )

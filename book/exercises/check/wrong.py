"""A value of a reader's program beside the right one: where they first differ, and all that may explain it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from book.exercises.check.trials import place
from lib.devices.pieces import cut
from lib.parallel.sharding.placement import Partial, Placement, Replicate

TOLERANCE = 1e-12  # relative to the expected value where that is above 1
ROUNDED = 3e-7  # what a few float32 numbers on the way leave, relative to the largest expected value


def same(given: object, expected: Tensor) -> bool:
    """Whether two float64 tensors agree in shape and in every element."""
    if not isinstance(given, Tensor) or given.shape != expected.shape:
        return False
    return not bool(differs(given, expected).any())


def close(given: object, expected: Tensor) -> bool:
    """Whether they agree but for the rounding of a float32 somewhere on the way. Integers must be the same."""
    if not isinstance(given, Tensor) or not isinstance(expected, Tensor) or given.shape != expected.shape:
        return False
    if not (given.is_floating_point() and expected.is_floating_point() and expected.numel()):
        return same(given, expected)
    return bool(((_numbers(given) - expected).abs() <= ROUNDED * expected.abs().max()).all())


def exact(given: object, expected: Tensor) -> bool:
    """The same, and in the same dtype: what is asked of an answer."""
    return same(given, expected) and given.dtype == expected.dtype


def differs(given: Tensor, expected: Tensor) -> Tensor:
    """Where two tensors of one shape differ (a NaN always does)."""
    return ~((_numbers(given) - expected).abs() <= TOLERANCE * expected.abs().clamp(min=1))


def _numbers(x: Tensor) -> Tensor:
    """In a dtype that can be subtracted: bool cannot."""
    return x.detach() if x.is_complex() else x.detach().double()


@dataclass(frozen=True)
class Wrong:
    """A value to be compared: `given` by all ranks, against `whole` at its placement."""

    what: str  # "the result", "dx", "the gradient of x"
    gradient_of: str | None
    given: list[Any]
    whole: Tensor
    placement: Placement
    sent: int  # bytes, all devices together

    @property
    def parts(self) -> int:
        """The number of devices."""
        return len(self.given)

    @cached_property
    def expected(self) -> list[Tensor]:
        """What each rank should have."""
        return place(self.whole, self.placement, self.parts)

    @cached_property
    def rank(self) -> int | None:
        """The first rank that is wrong. What only float32 has rounded is right."""
        return next((r for r in range(self.parts) if not self._right(r)), None)

    @property
    def rounded(self) -> bool:
        """Whether a float32 on the way can be seen in a result that is right."""
        return any(not exact(given, right) for given, right in zip(self.given, self.expected, strict=True))

    def _right(self, rank: int) -> bool:
        given, right = self.given[rank], self.expected[rank]
        return exact(given, right) or (close(given, right) and given.dtype == right.dtype)

    @property
    def mine(self) -> Any:
        """What the first wrong rank gave."""
        return self.given[self.rank]

    @property
    def right(self) -> Tensor:
        """What it should have given."""
        return self.expected[self.rank]

    @cached_property
    def total(self) -> Tensor | None:
        """The sum of what all ranks gave, if it has the shape of the whole."""
        fits = all(isinstance(x, Tensor) and x.shape == self.whole.shape for x in self.given)
        return sum(self.given) if fits else None

    def in_sum(self) -> Wrong:
        """What to compare: of partial sums only their sum is defined, and every rank is judged by that."""
        if not isinstance(self.placement, Partial) or self.total is None:
            return self
        return replace(self, what=f"the sum of {self.what}", given=[self.total] * self.parts, placement=Replicate())

    def pieces(self) -> list[tuple[int, tuple[Tensor, ...]]]:
        """The whole cut along each of its dims: (dim, pieces)."""
        return [(dim, cut(self.whole, self.parts, dim)) for dim in range(self.whole.ndim)]

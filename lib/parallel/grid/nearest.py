"""The sizes that are allowed, and those next to one that is not."""

from collections.abc import Iterable


def divisors(number: int) -> list[int]:
    """All of them, in ascending order."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def nearest(value: int, allowed: Iterable[int]) -> str:
    """The allowed values next below and above: "4 or 8"."""
    allowed = sorted(set(allowed))
    below, above = [n for n in allowed if n < value][-1:], [n for n in allowed if n > value][:1]
    return " or ".join(map(str, below + above)) or "none"


def nearest_multiple(value: int, of: int) -> str:
    """The multiples next below and above."""
    return nearest(value, [n for n in (value // of * of, (value // of + 1) * of) if n])

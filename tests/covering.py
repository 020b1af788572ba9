"""Fewer cases than all combinations, and any two choices still meet.

What goes wrong because of a combination nearly always goes wrong because of two choices of it (Kuhn, Wallace and
Gallo 2004): a size with an optimizer, a stage with clipping. All pairs need a fraction of all combinations.
"""

from itertools import combinations, product
from typing import Any


def covering(*factors: list) -> list[tuple[Any, ...]]:
    """Combinations of one level of each factor, in which any two levels of two factors meet. Few, not the fewest: each
    is the one with the most pairs that have not met yet."""
    everything = list(product(*map(range, map(len, factors))))

    def pairs(case: tuple[int, ...]) -> set:
        return {((i, case[i]), (j, case[j])) for i, j in combinations(range(len(case)), 2)}

    missing = set().union(*map(pairs, everything))
    chosen = []
    while missing:
        chosen.append(max(everything, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return [tuple(factor[level] for factor, level in zip(factors, case, strict=True)) for case in chosen]

"""The cases that stand for all combinations."""

from itertools import combinations, product

import pytest
from covering import covering


@pytest.mark.parametrize("levels", [(2, 2, 2, 2, 2), (4, 3, 2), (3, 1, 5), (2, 2)])
def test_any_two_levels_meet_in_few_cases(levels):
    factors = [[f"{name}{level}" for level in range(count)] for name, count in zip("abcde", levels, strict=False)]
    cases = covering(*factors)
    for first, second in combinations(range(len(factors)), 2):
        assert {(case[first], case[second]) for case in cases} == set(product(factors[first], factors[second]))
    assert len(cases) == len(set(cases))
    largest, next_largest, *_ = sorted(levels, reverse=True)
    assert len(cases) <= largest * next_largest + 4

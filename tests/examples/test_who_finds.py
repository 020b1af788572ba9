"""The mistakes of placement, and who finds them: types name each, before a number; the right programs pass."""

import pytest

from lib.examples.misplaced import MISTAKES, PROGRAMS, Mistake
from lib.examples.who_finds import Found, who_finds

SAID = {  # what the reader is told
    "f is missing": "f is missing",
    "a second f": "a second f",
    "g is missing": "such as a bias, is added before the sum",
    "a second g": "a second g",
    "g all-reduces in its backward too": "whose backward types do not know",
    "the bias before the sum": "such as a bias, is added before the sum",
    "the bias on rank 0 alone": "such as a bias, is added before the sum",
    "bias / P before the sum": "such as a bias, is added before the sum",
    "GeLU of a partial sum": "GeLU of a partial sum is not the sum of the GeLUs",
    "the whole loss is summed again": "a second g",
    "LayerNorm's gradient is not reduced": "LayerNorm's weight would not be reduced",
    "the bias' gradient is not reduced": "f is missing",
    "gather_from for all_gather": "f is missing",
    "scatter_to for reduce_scatter": "a partial sum: reduce it first",
    "the loss is divided by P twice": "scaled twice",
    "the gradients are not averaged": "a step with it would move the copies apart",
    "the gradients are summed, not averaged": "leave share out",
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_right_programs_pass(program):
    assert who_finds(Mistake("none", program, {}), steps=2) == Found(False, False, False, "")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_types_find_each_and_so_does_comparing(mistake):
    found = who_finds(mistake, devices=2, steps=1)
    assert found.one_device
    assert not found.shapes
    assert SAID[mistake.name] in found.types

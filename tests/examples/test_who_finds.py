"""The mistakes of placement, and who finds them: types name all but two, before a number; the right programs pass."""

import pytest

from lib.examples.misplaced import DATA, MISTAKES, SEQUENCE, TENSOR, Mistake
from lib.examples.misplaced_layers import ATTENTION, EXPERTS, LAYER_MISTAKES
from lib.examples.misplaced_on_grids import ENDS, GRID, GRID_MISTAKES
from lib.examples.who_finds import Found, right_is_refused, who_finds

SAID = {  # what the reader is told
    "f is missing": "f is missing",
    "a second f": "a second f",
    "g is missing": "such as a bias, is added before the sum",
    "a second g": "a second g",
    "g all-reduces in its backward too": "whose backward types do not know",
    "the bias before the sum": "such as a bias, is added before the sum",
    "the bias on rank 0 alone": "such as a bias, is added before the sum",
    "bias / P before the sum": "each copy would get 1/2 of its gradient",
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


SAID_OF_MORE = {
    "the fused QKV is cut as one piece": "its parts would be those of the own piece",
    "experts averaged over the wrong group": "the sum of 2 means, so many times too large",
    "each device clips by its own norm": "would count once on each of the 2",
    "copies count twice in the norm": "would count once on each of the 2",
    "texts by rank, not by dp": "",
    "a tied weight's ends are not added up": "",
}
PROGRAMS = [TENSOR, SEQUENCE, DATA, ATTENTION, EXPERTS, GRID]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.run.__name__)
def test_the_right_programs_pass(program):
    assert who_finds(Mistake("none", program, {}), steps=2) == Found(False, False, False, "")
    assert not right_is_refused(program, 4)


def test_of_a_pipeline_the_right_program_is_refused():
    assert who_finds(Mistake("none", ENDS, {}), steps=2) == Found(False, False, False, "")
    assert right_is_refused(ENDS, 4)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_types_find_each_and_so_does_comparing(mistake):
    found = who_finds(mistake, devices=2, steps=1)
    assert found.one_device
    assert not found.shapes
    assert SAID[mistake.name] in found.types


@pytest.mark.parametrize("mistake", [*LAYER_MISTAKES, *GRID_MISTAKES], ids=lambda mistake: mistake.name)
def test_comparing_finds_all_and_types_all_but_two(mistake):
    found, words = who_finds(mistake, steps=1), SAID_OF_MORE[mistake.name]
    assert found.one_device
    assert not found.shapes
    assert words in found.types if words else not found.types

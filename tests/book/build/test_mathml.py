"""Formulas as a reader sees them: `_ext/mathml.py`."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from docutils import nodes

ROOT = Path(__file__).parents[3]


@pytest.fixture
def spoken(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "_ext"))
    from mathml import to_mathml

    def text(tex: str) -> str:
        math = ElementTree.fromstring(to_mathml(tex, display=False, node=nodes.math()))
        return "".join(" " if element.tag.endswith("mspace") else element.text or "" for element in math.iter())

    return text


@pytest.mark.parametrize(
    ("tex", "seen"),
    [
        (r"\max z + \log x", "max z+log x"),
        (r"-\log \mathrm{softmax}(z)", "−log softmax(z)"),
        (r"2 \sin \frac{1}{2}", "2 sin 12"),
        (r"\lceil\log_2 P\rceil", "⌈log2 P⌉"),
        (r"a \cos - b \sin", "a cos−b sin"),
        (r"P\log P", "P log P"),
        (r"e^{z - \max z}", "ez−max z"),
    ],
)
def test_a_functions_name_stands_apart_from_what_it_is_of(spoken, tex, seen):
    assert spoken(tex) == seen


@pytest.mark.parametrize(
    "tex", [r"\operatorname{GeLU}(x)", r"\log\left(x\right)", r"x_{\max}", "zy", r"\max - z", r"\lceil\log"]
)
def test_and_not_from_its_bracket_or_a_sign(spoken, tex):
    assert " " not in spoken(tex)

"""What the book repairs in each page after Sphinx has written it."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def names_break_well(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "_ext"))
    from clean_page import names_break_well

    yield names_break_well
    del sys.modules["clean_page"]


def cell(name: str) -> str:
    return f'<td><p><code><span class="pre">{name}</span></code></p></td>'


def test_a_name_in_a_table_breaks_between_its_words(names_break_well):
    shown = {
        "all_gather_into_tensor": "all_<wbr>gather_<wbr>into_<wbr>tensor",
        "ColumnParallelLinear": "Column<wbr>Parallel<wbr>Linear",
        "torch.distributed.send(x)": "torch<wbr>.distributed<wbr>.send(<wbr>x)",
        "P2POp": "P2POp",
        "fp16": "fp16",
    }
    assert names_break_well("".join(map(cell, shown))) == "".join(map(cell, shown.values()))


def test_a_name_in_a_sentence_stays_as_it_is(names_break_well):
    sentence = '<p>call <span class="pre">all_reduce</span></p>'
    assert names_break_well(sentence) == sentence


def test_an_option_keeps_its_dashes(names_break_well):
    options = {"--zero-stage": '<span class="whole">--zero</span>-stage', "-m": '<span class="whole">-m</span>'}
    for name, shown in options.items():
        assert cell(shown) == names_break_well(cell(name))
        assert f'<p><span class="pre">{shown}</span></p>' == names_break_well(f'<p><span class="pre">{name}</span></p>')

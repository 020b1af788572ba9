"""The committed figures are what the script draws today."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "figures"
spec = importlib.util.spec_from_file_location("figures_make", FOLDER / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.parametrize("figure", make.FIGURES, ids=lambda f: f.__name__)
def test_figure_is_up_to_date(figure):
    file = FOLDER / f"{figure.__name__}.svg"
    assert file.read_text(encoding="utf-8") == figure().standalone(), "run: python figures/make.py"


def test_the_program_figure_shows_the_numbers_of_a_run():
    desc = make.one_program_many_devices().desc
    assert "rank 3 has [4, 8]" in desc
    assert "every rank returns [10, 20]" in desc

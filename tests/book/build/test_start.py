"""The grammar that no notebook needs stays away where nbformat is imported; the form of notebooks is still checked."""

import json
import sys

import nbformat
import pytest

from book.build.execute import notebooks


def test_pytest_and_its_workers_start_without_it():
    assert "nbval.plugin" in sys.modules
    assert "lark" not in sys.modules


def test_the_form_of_a_notebook_is_still_checked():
    notebook = json.loads(notebooks()[0].read_text("utf-8"))
    nbformat.validate(notebook)
    notebook["cells"][0]["source"] = 1
    with pytest.raises(nbformat.ValidationError):
        nbformat.validate(notebook)

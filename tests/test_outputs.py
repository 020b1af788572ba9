"""What is committed was executed with what is committed: a fresh clone shows every chapter without executing one."""

import json
import subprocess
import sys

import pytest

from book.build.execute import notebooks, read
from book.build.record import record_of, why_stale


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_stored_outputs_are_true(path):
    assert why_stale(path, read(path), record_of(path)) == "", "run `make outputs`"


def test_a_wrong_stored_output_is_found(tmp_path):
    """Two notebooks of one cell; what is stored with one of them is not what the cell prints."""
    for name, printed in ("right", "3\n"), ("wrong", "4\n"):
        output = {"output_type": "stream", "name": "stdout", "text": [printed]}
        cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "outputs": [output]}
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        notebook = {"cells": [cell | {"source": ["print(1 + 2)"]}], "metadata": {"kernelspec": kernel}}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "."]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in run.stdout
    assert "wrong.ipynb::Cell 0" in run.stdout

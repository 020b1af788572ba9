"""Style is a test like any other, so that one closing line tells everything."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["codespell_lib", "."]], ids=lambda command: command[0])
def test_has_no_complaint(command):
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def said() -> Iterator[tuple[str, str]]:
    """Where something is said, and what: the texts of programs, the code of chapters and what it printed."""
    for folder in ("lib", "book", "tests/bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node.value
    for file in sorted((ROOT / "chapters").glob("*.ipynb")):
        for cell in json.loads(file.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                printed = ["".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream"]
                nodes = ast.walk(ast.parse("".join(cell["source"])))
                code = [node.value for node in nodes if isinstance(node, ast.Constant)]
                yield from ((file.name, text) for text in [*printed, *code] if isinstance(text, str))


def test_whoever_counts_says_one_device_and_four_devices():
    things = "device|rank|node|token|text|message|head|layer|process|replica|micro-batch|stage|row|step|byte"
    wrong = [
        (where, found[0])
        for where, text in said()
        for found in re.finditer(rf"\w\((e?s)\)|(?<![\dx×-] )(?<![\d,.-])\b1 ({things})e?s\b", text)
    ]
    assert not wrong, "lib.devices.counts.counted(1, 'device') is '1 device'"

"""What a spawned process finds under the name of a function or class that its program has made."""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest

from lib.guest.modules import Main, found, main_of


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The path of a program, while this process may have another `__main__`."""
    file = tmp_path / "train.py"
    file.write_text("class Worker:\n    def run(self): ...\n")
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setitem(sys.modules, "__mp_main__", None)
    del sys.modules["__mp_main__"]
    return str(file)


@pytest.mark.parametrize("name", [None, "package.train"])
def test_the_main_module_of_a_program(program, name):
    module = types.ModuleType("__main__")
    assert main_of(module) is main_of(None) is None, "a notebook's has no file"
    module.__file__, module.__spec__ = program, name and ModuleSpec(name, None)
    assert main_of(module) == Main(program, name)
    assert main_of(pytest) is None, "that of a tool is no program of the reader's"


def test_a_program_is_run_once_more_and_only_once(program):
    main = Main(program, None)
    run = found("__main__", "Worker.run", main)
    assert run.__module__ == "__mp_main__"
    assert sys.modules["__main__"] is sys.modules["__mp_main__"], "its own functions look for it there"
    assert found("__main__", "Worker", main).run is found("__mp_main__", "Worker.run", main) is run


def test_a_module_that_runs_by_its_name_is_imported(program):
    assert found("__main__", "OrderedDict", Main(program, "collections")) is sys.modules["collections"].OrderedDict
    assert found("collections", "OrderedDict", None) is sys.modules["collections"].OrderedDict


def test_what_no_file_holds_is_the_callers(program):
    sys.modules["__main__"].work = work = object()
    assert found("__main__", "work", None) is work

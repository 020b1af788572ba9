"""Whose code it is: the program's own, or that of a library, wherever the library was installed."""

import importlib
import sys

import pytest

from lib.guest.callers import is_a_guests
from lib.simulate import main


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package that starts a process of its own accord, in a folder on Python's path; its path."""
    file = tmp_path / "libs/forks.py"
    file.parent.mkdir()
    file.write_text("import os\n\n\ndef child():\n    os.waitpid(os.fork() or os._exit(0), 0)\n")
    monkeypatch.syspath_prepend(file.parent)
    importlib.invalidate_caches()
    (tmp_path / "script").mkdir()
    (tmp_path / "script/train.py").write_text("import forks\nforks.child()\n")
    yield file
    sys.modules.pop("forks", None)


def test_a_library_that_pip_put_into_a_folder_of_any_name(library):
    (library.parent / "forks-1.0.dist-info").mkdir()
    assert not is_a_guests(str(library))
    assert main(["--nproc-per-node=1", str(library.parents[1] / "script/train.py")]) == 0  # its process is a real one


def test_a_module_of_the_programs_own_beside_it(library, capsys):
    assert is_a_guests(str(library))
    assert main(["--nproc-per-node=1", str(library.parents[1] / "script/train.py")]) == 1
    assert "fork() would copy the simulation" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["/home/me/.local/lib/python3.12/site-packages", "/usr/lib/python3/dist-packages"])
def test_folders_of_packages(folder):
    assert not is_a_guests(f"{folder}/multiprocess/pool.py")

"""The front doors: every name leads to where it is defined, and nothing is loaded before it is asked for."""

import subprocess
import sys
from importlib import import_module

import pytest

import book
import lib
from lib.door import homes


@pytest.mark.parametrize("room", [lib, book])
def test_every_name_is_taken_from_the_file_that_defines_it(room):
    listed = [name for modules in room.ROOMS.values() for names in modules.values() for name in names.split()]
    assert len(listed) == len(set(listed)), "a name leads to one place"
    assert room.__all__ == dir(room) == sorted(listed)
    for name, home in homes(room.ROOMS).items():
        thing = getattr(room, name)
        assert thing is getattr(import_module(home), name)
        assert getattr(thing, "__module__", home) in (home, "typing"), f"{home} only imports {name}"


@pytest.mark.parametrize("room", [lib, book])
def test_the_table_is_in_the_order_of_the_house(room):
    """A room's files and the names of a file as they sort, so that a name is found without a search."""
    for modules in room.ROOMS.values():
        assert list(modules) == sorted(modules)
        for names in modules.values():
            assert names.split() == sorted(names.split())


def test_a_name_that_there_is_not_says_which_there_are():
    with pytest.raises(ImportError, match="cannot import name 'shards' from 'lib'"):
        from lib import shards  # noqa: F401
    with pytest.raises(AttributeError, match=r"module 'lib' has no 'Clusters'; it has .*Cluster, .*zero_volume"):
        _ = lib.Clusters


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_nothing_is_loaded_before_it_is_asked_for():
    shown = run(
        "import sys, lib\nfrom book import paint\nprint('torch' in sys.modules)\n"
        "from lib import Cluster\nprint('torch' in sys.modules, 'lib.parallel.gpt.model' in sys.modules)"
    )
    assert shown.split() == ["False", "True", "False"]


@pytest.mark.parametrize("first", ["import lib.guest.command", "from lib import script", "from lib import guest"])
def test_a_room_does_not_hide_the_name_that_it_is_called_by(first):
    assert run(f"{first}\nfrom lib import guest\nprint(guest.__module__)").strip() == "lib.guest.program"

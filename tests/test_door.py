"""The front doors: every name leads to where it is defined, and nothing is loaded before it is asked for."""

import subprocess
import sys
from ast import literal_eval
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


BEFORE = "import lib\nfrom book import paint"  # before PyTorch
CLUSTER = "from lib import Cluster"
REFUSED = """
from lib import Cluster
try:
    Cluster(1).run(lambda group: group.all_reduce(torch.ones(1, requires_grad=True)))
except RuntimeError as error:
    said = str(error)
"""
HIDING = ["import lib.guest.command", "from lib import script", "from lib import guest"]
FRESH = f"""
import os, sys

def alone(program, *shown):
    if not os.fork():
        exec(program, globals())
        print([eval(one) for one in shown])
        sys.exit()
    assert os.wait()[1] == 0

alone({BEFORE!r}, "'torch' in sys.modules")
import torch
alone({CLUSTER!r}, "'torch' in sys.modules", "'lib.parallel.gpt.model' in sys.modules")
alone({REFUSED!r}, "'use reduce_from(x, group) of lib.parallel' in said")
for first in {HIDING}:
    alone(first + "; from lib import guest", "first", "guest.__module__")
"""


@pytest.fixture(scope="module")
def said():
    """What comes of each program where nothing of the house was imported before: forks of one fresh Python, in which
    PyTorch, most of such a start, is imported once."""
    command = [sys.executable, "-u", "-c", FRESH]
    return [literal_eval(line) for line in subprocess.check_output(command, text=True).splitlines()]


def test_nothing_is_loaded_before_it_is_asked_for(said):
    assert said[:2] == [[False], [True, False]]


def test_an_error_names_what_was_not_loaded_yet(said):
    assert said[2] == [True]


def test_a_room_does_not_hide_the_name_that_it_is_called_by(said):
    assert said[3:] == [[first, "lib.guest.program"] for first in HIDING]

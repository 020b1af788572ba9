"""The source that a chapter shows: whose it is, and when it is refused."""

import json

import pytest

from book import show_source
from lib import shard, unshard

SHARD = "def shard(x: Tensor, group: Group, dim: int) -> Tensor:"
UNSHARD = "def unshard(shards: Sequence[Tensor], dim: int) -> Tensor:"


def test_things_of_one_file_in_the_order_given():
    shown = show_source(unshard, shard)
    assert shown.file == "lib/parallel/sharding/shards.py"
    assert [line for line in shown.code.splitlines() if line.startswith("def ")] == [UNSHARD, SHARD]
    assert repr(shown) == f"# {shown.file}\n{shown.code}"


def test_things_of_two_files_are_refused():
    with pytest.raises(ValueError, match="of one file, these come from 2: show them one by one"):
        show_source(shard, show_source)


def test_of_a_file_elsewhere_the_name_alone_is_told():
    assert show_source(json.dumps).file == "__init__.py"

"""Pictures of recovery: every row is read once, from where it lies; and what stands on the disk is what is drawn."""

import re

import pytest

from book import draw_resharding, draw_saving
from lib.devices.pieces import shard_sizes


@pytest.mark.parametrize(("before", "after"), [(1, 1), (4, 2), (2, 4), (3, 8), (6, 4)])
def test_each_device_reads_its_own_rows_and_says_from_where(before, after):
    desc = draw_resharding(before, after).desc
    owner = [rank for rank, size in enumerate(shard_sizes(24, before)) for _ in range(size)]
    start = 0
    for rank, size in enumerate(shard_sizes(24, after)):
        told = re.search(rf"rank {rank} reads ([^;.]*)", desc).group(1)
        read = [
            (row, int(file))
            for a, b, file in re.findall(r"rows? (\d+)(?: to (\d+))? from the file of rank (\d+)", told)
            for row in range(int(a), int(b or a) + 1)
        ]
        assert read == [(row, owner[row]) for row in range(start, start + size)]
        start += size


def test_a_band_for_each_block_that_is_read():
    picture = draw_resharding(3, 4)
    bands = [part for part in picture.body if part.tag == "path" and part.get("fill-opacity")]
    assert len(bands) == picture.desc.count("from the file") == 6
    assert "6 blocks read, each row once" in [part.text for part in picture.body]


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 9), (9, 1)])
def test_devices_that_cannot_be_drawn(before, after):
    with pytest.raises(ValueError, match=r"devices"):
        draw_resharding(before, after)


def test_the_state_of_each_file_is_drawn_and_said():
    files = {"step 1": {"a": "whole", "b": "whole"}, "step 2": {"a": "whole", "b": "half", "c": "absent"}}
    picture = draw_saving(files, "step 1", "Killed")
    boxes = [part for part in picture.body if part.tag == "rect"]
    dashes = [box.get("stroke-dasharray") for box in boxes]
    assert dashes == [None, None, None, "5 3", "1 4"]
    assert float(boxes[3].get("width")) == float(boxes[2].get("width")) / 2
    assert picture.desc == ("Killed. step 1 has a, b; step 2 has a, and half of b. A restart loads step 1.")
    with pytest.raises(ValueError, match="a is 'torn', and a file is whole, half, absent"):
        draw_saving({"step 1": {"a": "torn"}}, "nothing", "Killed")

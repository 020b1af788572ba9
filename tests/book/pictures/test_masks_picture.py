"""Dropout's masks: as many cells are filled as are kept, and equal patterns are counted as one."""

from xml.etree import ElementTree

import pytest
import torch

from book import draw_masks
from book.pictures.masks import CELL

SAME = torch.tensor([[True, False, True], [False, False, True]])


def filled(picture):
    root = ElementTree.fromstring(picture.svg())
    return [
        (int(group.get("data-rank")), int(path.get("data-kept")), path.get("d").count("M"))
        for group in root.iter()
        for path in group
        if "data-kept" in path.attrib
    ]


def test_cells_are_filled_where_an_element_is_kept():
    picture = draw_masks({"outside": [SAME, SAME], "inside": [SAME, ~SAME]})
    assert filled(picture) == [(0, 3, 3), (1, 3, 3), (0, 3, 3), (1, 3, 3)]
    assert "outside: one pattern on 2 devices; inside: 2 patterns on 2 devices" in picture.desc
    first = ElementTree.fromstring(picture.svg()).find(".//*[@data-kept]").get("d")
    x, *_ = (float(part.split()[0]) for part in first.split("M")[1:])
    assert f"M{x + 2 * CELL:g} " in first  # the third cell of the first row


@pytest.mark.parametrize(
    ("masks", "match"),
    [
        ({}, "one mask per rank"),
        ({"a": [SAME], "b": []}, "one mask per rank"),
        ({"a": [SAME[0]]}, "rows and columns"),
        ({"a": [torch.ones(1, 40)]}, "too wide"),
    ],
)
def test_refuses(masks, match):
    with pytest.raises(ValueError, match=match):
        draw_masks(masks)

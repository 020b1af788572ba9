"""Who holds what in ZeRO: as much is drawn as the formula says bytes."""

import pytest

from book import draw_ownership
from lib.costs.zero import STAGES, zero_bytes

KINDS = ["parameters", "gradients", "optimizer"]


def blocks(devices, stage):
    """By rank, the blocks from left to right."""
    drawn = [part for part in draw_ownership(devices, stage).body if part.get("data-look")]
    return [[part for part in drawn if part.get("data-rank") == str(rank)] for rank in range(devices)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_widths_are_the_bytes_held(devices, stage):
    held = [getattr(zero_bytes(1, devices, stage), kind) for kind in KINDS]
    for rank, mine in enumerate(blocks(devices, stage)):
        rects = [part.find("rect") for part in mine]
        widths = [float(rect.get("width")) for rect in rects]
        assert [w / sum(widths) for w in widths] == pytest.approx([h / sum(held) for h in held], rel=0.02)
        first = [float(part.find("rect").get("x")) for part in blocks(devices, stage)[0]]
        moved = [float(rect.get("x")) - x for rect, x in zip(rects, first, strict=True)]
        own = [stage >= since for since in (3, 2, 1)]
        assert moved == pytest.approx([rank * w * o for w, o in zip(widths, own, strict=True)], abs=0.3)


@pytest.mark.parametrize("stage", STAGES)
def test_owned_parts_are_filled_and_copies_outlined(stage):
    looks = [part.get("data-look") for part in blocks(2, stage)[1]]
    assert looks == ["replicated"] * (3 - stage) + ["sharded"] * stage


@pytest.mark.parametrize(("devices", "stage"), [(0, 1), (9, 1), (2, 4)])
def test_what_cannot_be_drawn(devices, stage):
    with pytest.raises(ValueError, match=r"devices|stage="):
        draw_ownership(devices, stage)

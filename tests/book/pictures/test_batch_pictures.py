"""Pictures of data parallelism: samples go where the split rule says, and the numbers of a step are right."""

import re
from xml.etree import ElementTree

import pytest

from book.pictures.batch import STAGES, draw_batch, draw_training_step
from lib import shard_sizes


def blocks(picture):
    """(rank, look, x, numbers, cells) of every block, from the drawing alone."""
    found = []
    for node in ElementTree.fromstring(picture.svg()).iter():
        if "data-cells" in node.attrib:
            rect = next(child for child in node if child.tag.endswith("rect"))
            numbers = [text.text for text in node.iter() if text.tag.endswith("text")]
            cells = node.get("data-cells")
            found.append((int(node.get("data-rank")), node.get("data-look"), float(rect.get("x")), numbers, cells))
    return found


@pytest.mark.parametrize("samples", [3, 7, 8])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_samples_and_outputs(samples, devices):
    picture = draw_batch((samples, 28, 28, 3), devices)
    drawn = blocks(picture)
    mine = [
        [n for rank, look, x, n, _ in drawn if rank == r and look == "sharded" and x < 200][0] for r in range(devices)
    ]
    assert [len(numbers) for numbers in mine] == shard_sizes(samples, devices)
    assert [n for numbers in mine for n in numbers] == [str(i) for i in range(samples)]
    assert [c for _, look, x, _, c in drawn if look == "sharded" and x > 200] == [
        f"1x{size}" for size in shard_sizes(samples, devices)
    ]
    assert [rank for rank, look, *_ in drawn if look == "replicated"] == list(range(devices))
    for size in shard_sizes(samples, devices):
        assert f"[{size}, 28, 28, 3]" in picture.svg()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_training_step_in_numbers(devices):
    def at(stage):
        return [numbers[0] for _, _, _, numbers, _ in blocks(draw_training_step(devices, stage))]

    gradients = [2 * 2 * (r + 1) ** 2 for r in range(devices)]  # of (w x)^2 at w = 2
    mean = sum(gradients) / devices
    assert at("start") == [f"{2 + r}" for r in range(devices)]
    assert at("broadcast") == ["2"] * devices
    assert at("backward")[2::3] == [f"{g:g}" for g in gradients]
    assert at("all-reduce")[2::3] == [f"{mean:g}"] * devices
    assert [float(w) for w in at("update")[::3]] == pytest.approx([2 - 0.01 * mean] * devices)


def test_looks_follow_the_placements():
    looks = {stage: {look for _, look, *_ in blocks(draw_training_step(3, stage))} for stage in STAGES}
    assert looks["start"] == {"sharded"}
    assert looks["broadcast"] == {"replicated"}
    assert looks["backward"] == {"replicated", "sharded", "partial"}
    assert "partial" not in looks["all-reduce"]


def test_words():
    assert "rank 1 has samples 4 to 6, [3, 2]" in draw_batch((7, 2), 2).desc
    assert "rank 3 has sample 6, [1, 2]" in draw_batch((7, 2), 4).desc
    assert re.search(r"rank 0 gradient of w 4.*rank 1 gradient of w 16", draw_training_step(2, "backward").desc)


def test_bad_input():
    with pytest.raises(ValueError, match="9 samples on 2 devices do not fit"):
        draw_batch((9, 1), 2)
    with pytest.raises(ValueError, match="2 samples on 3 devices"):
        draw_batch((2, 1), 3)
    with pytest.raises(ValueError, match="there is no stage 'forward'"):
        draw_training_step(2, "forward")
    with pytest.raises(ValueError, match="9 devices do not fit"):
        draw_training_step(9, "update")

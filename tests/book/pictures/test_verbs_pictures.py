"""The pictures of the verbs: the numbers in the cells are what the verbs mean, computed here another way."""

from xml.etree import ElementTree

import pytest

from book import draw_verb, draw_verbs
from book.pictures.verbs import EXAMPLES


def cells(picture):
    """(x of the block, rank, look, its numbers), from the drawing alone."""
    found = []
    for node in ElementTree.fromstring(picture.svg()).iter():
        if "data-look" in node.attrib and "data-rank" in node.attrib:
            rect = next(child for child in node if child.tag.endswith("rect"))
            numbers = [int(text.text) for text in node.iter() if text.tag.endswith("text")]
            found.append((float(rect.get("x")), int(node.get("data-rank")), node.get("data-look"), numbers))
    return found


def brought(verb, devices):
    if verb in ("gather", "all_gather"):
        return {r: [10**r] for r in range(devices)}
    if verb in ("broadcast", "scatter", "send and recv"):
        return {0: list(range(1, devices + 1))}
    return {r: [(i + 1) * 10**r for i in range(devices)] for r in range(devices)}


def gotten(verb, devices):
    given, every = brought(verb, devices), range(devices)
    if verb in ("gather", "all_gather"):
        joined = [x for r in given for x in given[r]]
        return dict.fromkeys([0] if verb == "gather" else every, joined)
    total = [sum(given[r][i] for r in given) for i in every]
    return {
        "broadcast": dict.fromkeys(every, given[0]),
        "scatter": {r: [given[0][r]] for r in every},
        "reduce": {0: total},
        "all_reduce": dict.fromkeys(every, total),
        "reduce_scatter": {r: [total[r]] for r in every},
        "all_to_all": {r: [given[s][r] for s in given] for r in every},
        "send and recv": {devices - 1: given[0]},
    }[verb]


@pytest.mark.parametrize("verb", EXAMPLES)
@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_numbers_before_and_after(verb, devices):
    drawn = cells(draw_verb(verb, devices))
    assert {rank: numbers for x, rank, _, numbers in drawn if x < 240} == brought(verb, devices)
    if verb == "all_to_all":  # a cell each, in the color of the rank that it came from
        after = [(rank, numbers) for x, rank, _, numbers in drawn if x > 240]
        whole = gotten(verb, devices)
        assert after == [(origin, [whole[r][origin]]) for r in range(devices) for origin in range(devices)]
    else:
        assert {rank: numbers for x, rank, _, numbers in drawn if x > 240} == gotten(verb, devices)


def test_looks_say_where_things_are():
    after = {verb: {look for x, _, look, _ in cells(draw_verb(verb, 3)) if x > 240} for verb in EXAMPLES}
    assert after["all_reduce"] == after["all_gather"] == after["broadcast"] == {"replicated"}
    assert after["reduce_scatter"] == after["scatter"] == after["all_to_all"] == {"sharded"}
    before = {verb: {look for x, _, look, _ in cells(draw_verb(verb, 3)) if x < 240} for verb in EXAMPLES}
    assert before["all_reduce"] == before["reduce"] == before["reduce_scatter"] == {"partial"}


def test_the_price_is_metered():
    assert "sends 48 bytes in 6 messages" in draw_verb("all_reduce", 4).desc  # 2 * 3/4 * 32 bytes
    assert "sends 24 bytes in 3 messages" in draw_verb("all_gather", 4).desc
    assert "sends 32 bytes in 1 message (" in draw_verb("send and recv", 4).desc


def test_the_words_name_both_sides():
    desc = draw_verb("gather", 2).desc
    assert "rank 0 brings [1] and has [1, 10]; rank 1 brings [10] and has nothing" in desc


def test_nobody_passes_the_barrier_before_all_have_come():
    desc = draw_verb("barrier", 3).desc
    order = desc.split("In this run: ")[1]
    assert order.rindex("comes") < order.index("goes on")


def test_the_wall_chart_has_every_verb():
    picture = draw_verbs()
    texts = {node.text for node in ElementTree.fromstring(picture.svg()).iter() if node.tag.endswith("text")}
    assert {*EXAMPLES, "barrier"} <= texts
    assert len(EXAMPLES) + 1 == 10  # as many as the chapter promises
    assert "reduce: a term of the sum on every device to the whole on one device." in picture.desc


def test_bad_input():
    with pytest.raises(ValueError, match="no picture of 'allreduce'"):
        draw_verb("allreduce")
    with pytest.raises(ValueError, match="devices=5 does not fit"):
        draw_verb("gather", 5)

"""In a browser: no text leaves its picture or covers another, and nothing is drawn over what a device holds."""

from itertools import combinations

import pytest
import torch

from book import (
    draw_activations,
    draw_attention,
    draw_block,
    draw_data_and_tensor,
    draw_experts,
    draw_head_scores,
    draw_heads,
    draw_load,
    draw_mlp,
    draw_model,
    draw_moment,
    draw_ownership,
    draw_qkv,
    draw_schedule,
    draw_weighted_average,
)
from book.pictures.kit.legend import MEANING
from lib.costs.activations import LayerShape
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.pipeline.schedules import gpipe, one_f_one_b, zb_h1
from lib.parallel.pipeline.v_shaped import zb_v

WORDS = "the cat sat because it slept".split()
MASKED = torch.ones(6, 6).tril() / torch.ones(6, 6).tril().sum(-1, keepdim=True)
LAYER = LayerShape(2048, 4, 6144, 64)
PICTURES = {
    "activations on 1": lambda: draw_activations(LAYER, 1, "One layer of the 530B model, kept for its backward"),
    "activations on 8": lambda: draw_activations(LAYER, 8, "One layer of the 530B model, kept for its backward"),
    "attention": lambda: draw_attention(WORDS, torch.full((6, 6), 1 / 6)),
    "attention, masked, of a query": lambda: draw_attention(WORDS, MASKED, query=5),
    "attention, long words": lambda: draw_attention([f"word{i}long" for i in range(11)], torch.eye(11), query=3),
    "average": lambda: draw_weighted_average([2, 5, 9], [0.1, 0.3, 0.6]),
    "average, narrow bars": lambda: draw_weighted_average([1, 2, 3], [0.02, 0.03, 0.95]),
    "block": lambda: draw_block(4),
    "block, sequence parallel": lambda: draw_block(8, sequence_parallel=True, heads=16),
    "data and tensor": lambda: draw_data_and_tensor(LAYER, 4),
    "ownership": lambda: draw_ownership(8, 1),
    "experts": lambda: draw_experts([[0, 1], [0, 2], [0, 3], [2, 0]], 4, 2, 2, [[0, 1], [0, 2], [-1, 3], [2, -1]]),
    "experts, many": lambda: draw_experts([[t % 3, 7] for t in range(18)], 8, 4, 12),
    "head scores, several lines of maps": lambda: draw_head_scores([MASKED.repeat(6, 1, 1)] * 2),
    "heads": lambda: draw_heads(12, 12, 4),
    "heads on 1": lambda: draw_heads(4, 2, 1),
    "heads on 2": lambda: draw_heads(4, 1, 2),
    "heads, shared": lambda: draw_heads(16, 2, 8),
    "load": lambda: draw_load([[1, 2, 3, 4], [0, 0, 5, 0], [2, 2, 2, 2]], "Rows of each device"),
    "MLP on 1": lambda: draw_mlp(1),
    "MLP": lambda: draw_mlp(4),
    "MLP, sequence parallel": lambda: draw_mlp(8, sequence_parallel=True),
    "model": lambda: draw_model(GPTConfig.preset("gpt2"), 4),
    "model on 1": lambda: draw_model(GPTConfig.preset("gpt3-175b"), 1),
    "model on 2": lambda: draw_model(GPTConfig(2, 16, 4, 50, 8), 2),
    "moment": lambda: draw_moment(one_f_one_b(4, 8), 9),
    "moment, all that fits": lambda: draw_moment(gpipe(8, 8), 15),
    "schedule": lambda: draw_schedule(one_f_one_b(4, 8)),
    "schedule, a V": lambda: draw_schedule(zb_v(4, 8)),
    "schedule, long and wide": lambda: draw_schedule(zb_h1(9, 24)),
    "Q, K, V": lambda: draw_qkv(4),
}
MEASURE = """() => {
    const svg = document.querySelector('svg'), frame = svg.getBoundingClientRect(),
          unit = svg.viewBox.baseVal.width / frame.width;
    const box = node => {
        const r = node.getBoundingClientRect();
        return [r.left - frame.left, r.top - frame.top, r.right - frame.left, r.bottom - frame.top].map(n => n * unit);
    };
    const all = (wanted, say) => [...svg.querySelectorAll(wanted)].map(say);
    const hidden = text => {  // by something opaque that is drawn later
        const r = text.getBoundingClientRect();
        const here = document.elementsFromPoint((r.left + r.right) / 2, (r.top + r.bottom) / 2);
        return here.some(node => node !== text && (text.compareDocumentPosition(node) & 4)
                                 && getComputedStyle(node).fillOpacity > 0.5);
    };
    const holder = node => node.closest('[data-cells], [data-look=heat]');
    const held = all('[data-cells], [data-look=heat]', node => node);
    return {
        texts: all('text', t => ({says: t.textContent, box: box(t), slanted: t.hasAttribute('transform'),
                                  held: held.indexOf(holder(t)), hidden: hidden(t)})),
        looks: [...new Set(all('[data-cells], [data-part]', node => node.dataset.look))],
        arrows: all('[data-look=arrow]', box),
        held: held.map(node => box(node.matches('[data-cells]') ? node.querySelector('rect') : node)),
        bars: all('[data-talk]', box),
    };
}"""


@pytest.fixture(scope="module")
def measured(browser):
    """By name of a picture: its size; its texts, what devices hold, and the bars, with their boxes."""
    page, found = browser.new_page(viewport={"width": 800, "height": 2000}), {}
    for name, draw in PICTURES.items():
        picture = draw()
        page.set_content(picture._repr_html_())
        found[name] = (picture.width, picture.height), page.evaluate(MEASURE)
    page.close()
    return found


def overlap(some, other):
    """How far two boxes (left, top, right, bottom) reach into each other; 0 or less when they are apart."""
    return min(some[2], other[2]) - max(some[0], other[0]), min(some[3], other[3]) - max(some[1], other[1])


def covers(some, other, across=0.5, along=0.5):
    wide, tall = overlap(some, other)
    return wide > across and tall > along


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_leaves_the_picture_or_covers_another(measured, name):
    (width, height), seen = measured[name]
    assert len(seen["texts"]) > 8
    for text in seen["texts"]:
        left, top, right, bottom = text["box"]
        assert min(left, top + 2, width - right, height - bottom + 2) >= 0, text
    for one, other in combinations([text for text in seen["texts"] if not text["slanted"]], 2):
        assert not covers(one["box"], other["box"], along=4), (one, other)  # a line is higher than its letters


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_is_hidden(measured, name):
    _, seen = measured[name]
    assert [text for text in seen["texts"] if text["hidden"]] == []


@pytest.mark.parametrize("name", PICTURES)
def test_the_legend_explains_the_looks_that_are_drawn(measured, name):
    _, seen = measured[name]
    explained = [text["says"] for text in seen["texts"] if text["says"] in MEANING.values()]
    assert sorted(explained) == sorted(MEANING[look] for look in seen["looks"])


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_lies_on_what_a_device_holds(measured, name):
    _, seen = measured[name]
    assert not any(covers(one, other, 1, 1) for one, other in combinations(seen["held"], 2))
    assert not any(covers(arrow, box, 1, 1) for arrow in seen["arrows"] for box in seen["held"])
    for i, box in enumerate(seen["held"]):
        for text in seen["texts"]:
            if text["held"] != i and not text["slanted"]:
                assert not covers(text["box"], box, along=4), (text, box)


@pytest.mark.parametrize("name", ["block", "block, sequence parallel", "MLP", "MLP, sequence parallel", "Q, K, V"])
def test_the_words_of_a_bar_stand_in_it(measured, name):
    _, seen = measured[name]
    assert len(seen["bars"]) >= 2
    for left, top, right, bottom in seen["bars"]:
        words = [text for text in seen["texts"] if covers(text["box"], (left, top, right, bottom), along=4)]
        assert len(words) == 3
        for text in words:
            x0, y0, x1, y1 = text["box"]
            assert min(x0 - left, y0 - top, right - x1, bottom - y1) >= 0, text
    assert not any(covers(one, other) for one, other in combinations(seen["bars"], 2))
    assert not any(covers(bar, box) for bar in seen["bars"] for box in seen["held"])

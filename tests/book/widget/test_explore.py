"""`explore`: every point once, the right controls, both faces, errors that name the point."""

import gzip
import html
import json
import re
import sys
from html.parser import HTMLParser
from itertools import product
from types import SimpleNamespace

import pytest

from book import draw_matmul, explore
from book.widget.explore import Exploration

MODULE = sys.modules["book.widget.explore"]  # the name `book.widget.explore` is the function
DEVICES, SPLITS = [1, 2, 3, 4, 6, 8], ["column", "row"]


def draw(devices, split):
    return draw_matmul((3, 4), (4, 6), devices=devices, split=split), f"{devices} & {split}"


@pytest.fixture(scope="module")
def shown() -> Exploration:
    return explore(draw, devices=DEVICES, split=SPLITS, question='Who holds "W" & <why>?')


def data(exploration: Exploration) -> dict:
    return json.loads(re.search(r'class="omd-data">(.*?)</script>', exploration._repr_html_(), re.S)[1])


def test_every_point_is_drawn_exactly_once_and_in_order():
    calls = []

    def remember(**point):
        calls.append(point)
        return "text"

    explored = explore(remember, devices=[1, 2], split=SPLITS)
    assert calls == [{"devices": d, "split": s} for d, s in product([1, 2], SPLITS)]
    assert explored.points == ["devices=1;split=column", "devices=1;split=row", "devices=2;split=column",
                               "devices=2;split=row"]  # fmt: skip


def test_the_page_holds_the_frame_of_every_point(shown):
    d = data(shown)
    assert d["points"] == [f"devices={n};split={s}" for n, s in product(DEVICES, SPLITS)]
    swap = str.maketrans("\"'", "'\"")
    for (n, s), frame, says in zip(product(DEVICES, SPLITS), d["frames"], d["says"], strict=True):
        picture, line = draw(n, s)
        markup = "".join(d["chunks"][k] for k in frame).translate(swap)
        expected = re.sub(r"omd-[0-9a-f]{8}-", "omd-#0-", picture.svg())
        assert markup == f'{expected}<p class="omd-line">{html.escape(line)}</p>'
        assert says == f"{picture.desc} {line}"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def tags(text: str, name: str) -> list[dict]:
    parser = Tags()
    parser.feed(text)
    return [attrs for tag, attrs in parser.tags if tag == name]


def test_controls_are_native_and_named(shown):
    page = shown._repr_html_()
    inputs = tags(page, "input")
    assert [i["type"] for i in inputs] == ["range", "radio", "radio"]
    slider = inputs[0]
    assert (slider["min"], slider["max"], slider["value"], slider["step"]) == ("0", "5", "0", "1")
    assert (slider["aria-label"], slider["aria-valuetext"]) == ("devices", "1")
    assert json.loads(slider["data-values"]) == list(map(str, DEVICES))
    assert [(i["value"], "checked" in i) for i in inputs[1:]] == [("column", True), ("row", False)]
    assert inputs[1]["name"] == inputs[2]["name"]
    assert tags(page, "legend")
    assert tags(page, "div")[1].keys() >= {"hidden"}  # no dead control without the script
    assert tags(page, "img")[0]["alt"] == draw(1, "column")[0].desc
    frame = next(d for d in tags(page, "div") if d.get("class") == "omd-frame")
    assert frame["data-point"] == "devices=1;split=column"


def test_one_value_needs_no_control():
    explored = explore(lambda n: "text", n=[3])
    assert not tags(explored._repr_html_(), "input")
    assert len(explored.live.children) == 3


def test_names_of_several_words_are_read_as_words():
    explored = explore(lambda kv_heads, one_group: "text", kv_heads=[1, 2], one_group=[False, True])
    page = explored._repr_html_()
    slider, radio, _ = tags(page, "input")
    assert (slider["aria-label"], slider["data-axis"], radio["data-axis"]) == ("kv heads", "kv_heads", "one_group")
    assert "<span>kv heads</span>" in page
    assert "<legend>one group</legend>" in page
    assert [control.description for control in explored.live.children[1:3]] == ["kv heads", "one group"]


def test_booleans_are_words():
    inputs = tags(explore(lambda bias: "text", bias=[False, True])._repr_html_(), "input")
    assert [i["type"] for i in inputs] == ["radio", "radio"]


def test_a_slider_rises_from_left_to_right_and_starts_where_the_first_value_is():
    explored = explore(lambda k, room: f"{k}, {room}", k=[2048, 10240, 1], room=["none", 2.0, 1.0])
    page = explored._repr_html_()
    slider, *radios = tags(page, "input")
    assert (json.loads(slider["data-values"]), slider["value"]) == (["1", "2048", "10240"], "1")
    assert slider["aria-valuetext"] == "2,048"
    assert re.search(r"<output[^>]*>(.*?)</output>", page)[1] == "2,048"
    assert [radio["value"] for radio in radios] == ["none", "2.0", "1.0"]  # with a word among them, all are words
    assert re.search('data-point="(.*?)"', page)[1] == data(explored)["points"][0] == "k=2048;room=none"
    assert data(explored)["says"] == [f"{k}, {room}" for k in (2048, 10240, 1) for room in ("none", 2.0, 1.0)]

    _, k, room, picture, _ = explored.live.children
    assert ([label for label, _ in k.options], k.value, k.index) == (["1", "2,048", "10,240"], 2048, 1)
    assert [label for label, _ in room.options] == ["none", "2.0", "1.0"]
    assert ">2048, none<" in picture.value
    for index, value in enumerate([1, 2048, 10240]):
        k.index = index
        assert f">{value}, none<" in picture.value


def test_text_is_escaped_and_cannot_end_the_script():
    nasty = """</script><!-- <script> "it's" & \\ """
    explored = explore(lambda n: nasty, n=[1, 2], question=nasty)
    page = explored._repr_html_()
    assert page.count("</script>") == 2
    assert "<!--" not in page
    assert data(explored)["says"] == [nasty.strip()] * 2
    assert tags(page, "div")[0]["aria-label"] == nasty


def test_all_parts_of_a_frame_are_said():
    pictures = [draw_matmul((3, 4), (4, 6), devices=n, split="row") for n in (1, 2)]
    explored = explore(lambda n: [*pictures, f"the line\n of {n}"], n=[1, 2])
    head = f"{pictures[0].desc} {pictures[1].desc} the line of "
    assert data(explored)["says"] == [f"{head}1", f"{head}2"]


def test_deterministic_and_small(shown):
    page = shown._repr_html_()
    assert page == explore(draw, devices=DEVICES, split=SPLITS, question=shown.question)._repr_html_()
    assert len(page.encode()) < 60_000
    assert len(gzip.compress(page.encode())) < 15_000


def test_plain_text_names_grid_and_first_frame(shown):
    plain = shown._repr_mimebundle_()["text/plain"]
    assert plain.splitlines()[1] == "12 pictures: devices in [1, 2, 3, 4, 6, 8], split in ['column', 'row']"
    assert draw(1, "column")[0].desc in plain
    assert set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}  # no kernel here


def test_live_controls_move_the_picture(shown):
    head, devices, split, picture, says = shown.live.children
    assert html.escape(shown.question) in head.value
    assert (type(devices).__name__, type(split).__name__) == ("SelectionSlider", "ToggleButtons")
    for n, s in product(DEVICES, SPLITS):
        devices.value, split.value = n, s
        assert draw(n, s)[0].svg() in picture.value
        assert html.escape(draw(n, s)[0].desc) in says.value


def test_in_a_kernel_the_live_view_comes_with_the_page(shown, monkeypatch):
    without = shown._repr_mimebundle_()
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    bundle = shown._repr_mimebundle_()
    assert bundle["text/plain"] == without["text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.live.model_id
    assert bundle["text/html"] == shown._repr_html_()


def test_without_ipywidgets_the_page_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(MODULE, "_kernel_is_running", lambda: True)
    assert set(explore(lambda n: "a", n=[1, 2])._repr_mimebundle_()) == {"text/html", "text/plain"}


class Html:
    def _repr_html_(self):
        return "<b>own</b>"


class Svg:
    def _repr_svg_(self):
        return "<svg></svg>"


def test_draw_may_return_anything_that_shows_itself():
    frames = explore(lambda n: [Html(), Svg(), "a line"], n=[1])._repr_html_()
    assert '<b>own</b><svg></svg><p class="omd-line">a line</p>' in frames


def fails(devices, split):
    if (devices, split) == (3, "row"):
        raise ZeroDivisionError("no")
    return "text"


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: explore(draw), ValueError, "pass the values of each control"),
        (lambda: explore(draw, devices=[], split=["row"]), ValueError, "devices has no values"),
        (lambda: explore(draw, devices=[1, 1], split=["row"]), ValueError, "a value twice"),
        (lambda: explore(draw, devices=2), TypeError, "devices=[2]"),
        (lambda: explore(draw, split="row"), TypeError, "split=['row']"),
        (lambda: explore("draw", devices=[1]), TypeError, "explore needs a function"),
        (lambda: explore(lambda n, kind: None, n=[7], kind=["a"]), TypeError, 'None at n=7, kind="a"'),
        (lambda: explore(lambda n: 3.5, n=[7]), TypeError, "3.5 at n=7"),
        (lambda: explore(lambda n: (), n=[7]), TypeError, "nothing at n=7"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_an_error_in_draw_names_the_point():
    with pytest.raises(ZeroDivisionError) as caught:
        explore(fails, devices=[1, 3], split=["column", "row"])
    assert caught.value.__notes__ == ['explore called draw at devices=3, split="row"']

"""Every widget of every page, with no kernel: keyboard, mouse, no JavaScript, from the disk, on a phone."""

import json
from itertools import pairwise, product

import pytest
from browser.book import HTML, PHONE, pages


def widgets() -> list[tuple[str, int]]:
    counts = {path: (HTML / path).read_text("utf-8").count('<div class="omd-explore"') for path in pages()}
    return [(path, number) for path, count in counts.items() for number in range(count)]


WIDGETS = widgets()
each_widget = pytest.mark.parametrize(("path", "number"), WIDGETS)


def test_the_book_has_widgets():
    assert {path for path, _ in WIDGETS if path.startswith("chapters/")}


# The page is shared: another test has moved the controls.
TO_THE_FIRST_POINT = """root => {
    for (const input of root.querySelectorAll("input")) {
        if (input.type === "range") input.value = 0;
        else input.checked = input.hasAttribute("data-first");
    }
    root.querySelector("input").dispatchEvent(new Event("input", {bubbles: true}));
}"""


class Widget:
    """One `.omd-explore` on an open page, operated as a reader does."""

    def __init__(self, page, number: int):
        self.root = page.locator(".omd-explore").nth(number)
        self.root.scroll_into_view_if_needed()
        self.page = page
        self.frame = self.root.locator(".omd-frame")
        data = json.loads(self.root.locator("script.omd-data").text_content())
        self.said = dict(zip(data["points"], data["says"], strict=True))
        self.axes: dict[str, list[str]] = {}
        for point in data["points"]:
            for name, value in (part.split("=", 1) for part in point.split(";")):
                if value not in self.axes.setdefault(name, []):
                    self.axes[name].append(value)
        self.turning = [name for name, values in self.axes.items() if len(values) > 1]
        self.root.evaluate(TO_THE_FIRST_POINT)

    def controls(self, name: str):
        return self.root.locator(f"input[data-axis='{name}']")

    def is_slider(self, name: str) -> bool:
        return self.controls(name).first.get_attribute("type") == "range"

    def step(self, name: str, forward: bool) -> None:
        """One arrow key on the control of this axis."""
        if self.is_slider(name):
            self.controls(name).press("ArrowRight" if forward else "ArrowLeft")
        else:
            self.root.locator(f"input[data-axis='{name}']:checked").press("ArrowDown" if forward else "ArrowUp")

    def click(self, name: str, index: int) -> None:
        """The mouse on the stop `index` of a slider, or on the word beside a radio button."""
        if not self.is_slider(name):
            self.controls(name).nth(index).locator("xpath=ancestor::label").click()
            return
        self.controls(name).scroll_into_view_if_needed()  # a tall picture may have pushed it out of the window
        box = self.controls(name).bounding_box()
        share = index / (len(self.axes[name]) - 1)
        thumb = 16  # the middle of the thumb travels the slider's width less the thumb's
        x = box["x"] + thumb / 2 + share * (box["width"] - thumb)
        self.page.mouse.click(x, box["y"] + box["height"] / 2)

    def shown(self) -> str:
        return self.frame.inner_html()

    def shows(self, **point: str) -> None:
        """The frame and the status say that they are this point."""
        expected = ";".join(f"{name}={value}" for name, value in point.items())
        assert self.frame.get_attribute("data-point") == expected
        assert self.root.locator(".omd-status").inner_text() == self.said[expected]
        box = self.frame.bounding_box()
        assert self.frame.is_visible()
        assert box["height"] > 10


def snake(lengths: list[int]):
    """Every point of a grid, each one step from the one before: as arrow keys can go."""
    rows = [()]
    for length in lengths:
        rows = [
            (*row, step)
            for count, row in enumerate(rows)
            for step in (range(length) if count % 2 == 0 else reversed(range(length)))
        ]
    return rows


def test_a_snake_visits_every_point_in_single_steps():
    points = snake([2, 3, 4])
    assert sorted(points) == list(product(range(2), range(3), range(4)))
    assert all(sum(abs(a - b) for a, b in zip(*pair, strict=True)) == 1 for pair in pairwise(points))


def walk_with_arrow_keys(widget: Widget) -> None:
    assert widget.turning, "a widget without a control"
    first = {name: values[0] for name, values in widget.axes.items()}
    widget.shows(**first)
    frames, steps = {}, []
    for before, now in pairwise([None, *snake([len(widget.axes[name]) for name in widget.turning])]):
        if before is not None:
            moved = next(i for i in range(len(now)) if now[i] != before[i])
            widget.step(widget.turning[moved], forward=now[moved] > before[moved])
        values = {name: widget.axes[name][at] for name, at in zip(widget.turning, now, strict=True)}
        widget.shows(**{**first, **values})
        frames[now] = widget.shown()
        if before is not None:
            steps.append((widget.turning[moved], frames[now] != frames[before]))
    # Two neighbors may look alike (on one device every split does), but no control may be without effect.
    assert {name for name, changed in steps if changed} == set(widget.turning)


@each_widget
def test_arrow_keys_reach_every_point(desk, path, number):
    opened = desk(path)
    walk_with_arrow_keys(Widget(opened.page, number))
    opened.clean()


def test_a_dead_control_is_found(visit):
    """The widget's script, which no longer listens to what a reader does."""
    path, number = WIDGETS[0]
    listens = 'input.addEventListener("input", show)'
    text = (HTML / path).read_text("utf-8")
    assert listens in text
    widget = Widget(visit(path, text=text.replace(listens, "")).page, number)
    with pytest.raises(AssertionError):
        walk_with_arrow_keys(widget)


@each_widget
def test_the_mouse_works_every_control(desk, path, number):
    opened = desk(path)
    widget = Widget(opened.page, number)
    point = {name: values[0] for name, values in widget.axes.items()}
    for name in widget.turning:
        frames, stops = set(), range(len(widget.axes[name]))
        # Far apart: on a slider of many stops the next one lies under the thumb, which a click does not move.
        for index in (*(stop for first in range(4) for stop in reversed(stops[first::4])), 0):
            widget.click(name, index)
            widget.shows(**{**point, name: widget.axes[name][index]})
            frames.add(widget.shown())
        assert len(frames) > 1, f"{name} changes nothing"
    opened.clean()


@each_widget
def test_every_control_has_a_name_and_can_be_reached(desk, path, number):
    widget = Widget(desk(path).page, number)
    for name in widget.turning:
        for control in widget.controls(name).all():
            assert control.is_visible()
            assert control.is_enabled()
            box = control.bounding_box()
            assert min(box["width"], box["height"]) >= 24, "too small for a finger"
        widget.step(name, forward=True)
        focused = widget.page.evaluate("document.activeElement.dataset.axis")
        assert focused == name, "an arrow key takes the focus away"


@each_widget
def test_the_first_frame_shows_without_javascript(scriptless, path, number):
    page = scriptless(path).page
    widget = page.locator(".omd-explore").nth(number)
    frame = widget.locator(".omd-frame")
    assert frame.is_visible()
    assert frame.bounding_box()["height"] > 10
    assert widget.locator(".omd-status").inner_text()
    for control in widget.locator("input, select").all():
        assert not control.is_visible(), "a control that cannot work"


@each_widget
def test_reacts_from_the_disk_and_on_a_phone(phone, path, number):
    opened = phone(path)
    widget = Widget(opened.page, number)
    name = widget.turning[-1]
    widget.click(name, len(widget.axes[name]) - 1)
    widget.shows(**{axis: values[-1 if axis == name else 0] for axis, values in widget.axes.items()})
    box = widget.frame.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    opened.clean()

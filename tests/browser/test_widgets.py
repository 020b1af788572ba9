"""Every widget of every page, with no kernel: keyboard, mouse, no JavaScript, from the disk, on a phone.

A widget is asked everything on one visit. Keys and clicks are real ones. After each, the page itself notes what can be
seen, and all notes are read at once.
"""

import json
import re
from itertools import product

import pytest
from browser.book import HTML, PHONE, pages

# One widget in a page's file, up to the words about the first picture, and its script.
BUILT = re.compile(
    r'<div class="omd-explore".*?(?P<style><style>.*?</style>)<p class="omd-question">.+?</p>'
    r'<div class="omd-controls" hidden>(?P<controls>.*?)</div>'
    r'<div class="omd-frame" data-point=".+?">(?P<picture>.*?)</div>'
    r'<p class="omd-status"[^>]*>(?P<says>[^<]{10,})</p>.*?'
    r'<script type="application/json" class="omd-data">(?P<data>.*?)</script>(?P<script><script>.*?</script>)',
    re.DOTALL,
)


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
        if (input.type === "range") input.value = input.defaultValue;
        else input.checked = input.hasAttribute("data-first");
    }
    root.querySelector("input").dispatchEvent(new Event("input", {bubbles: true}));
    root.scrollIntoView({block: "center"});
}"""

SEE = """root => {
    const frame = root.querySelector(".omd-frame"), box = frame.getBoundingClientRect();
    window.omdSeen ??= new Map();  // pictures may be long: each gets a number
    const html = frame.innerHTML;
    if (!omdSeen.has(html)) omdSeen.set(html, omdSeen.size);
    return {
        point: frame.dataset.point, says: root.querySelector(".omd-status").innerText, picture: omdSeen.get(html),
        visible: frame.checkVisibility({visibilityProperty: true}),
        left: box.left, right: box.right, height: box.height,
        named: [...frame.querySelectorAll(":scope > svg, :scope > * > svg, img")].every((one) => one.getAttribute("alt")
            || one.role === "img" && (one.ariaLabel || document.getElementById(
                one.getAttribute("aria-labelledby")?.split(" ")[0])?.textContent)),
        focused: root.contains(document.activeElement) ? document.activeElement.dataset.axis : null,
    };
}"""

# From now on, what can be seen after each change that a reader makes. The widget has heard of the change before.
NOTE = """root => {
    window.omdNotes = [];
    root.oninput = () => omdNotes.push((SEE)(root));
}""".replace("SEE", SEE)

# What can be seen at every point, one after another: each is set as a control sets it.
SEE_ALL = """(root, points) => points.map((point) => {
    for (const [name, value, index] of point) {
        for (const one of root.querySelectorAll(`input[data-axis="${name}"]`)) {
            if (one.type === "range") one.value = index;
            else one.checked = one.value === value;
        }
    }
    root.querySelector("input").dispatchEvent(new Event("input", {bubbles: true}));
    return (SEE)(root);
})""".replace("SEE", SEE)

# The values of each slider, from left to right.
SLIDERS = """root => Object.fromEntries([...root.querySelectorAll("input[type=range]")].map(
    (one) => [one.dataset.axis, JSON.parse(one.dataset.values)]
))"""

# Every control of one axis: a slider, or radio buttons, each with the word beside it, whose middle nothing lies over.
CONTROLS = """(root, name) => [...root.querySelectorAll(`input[data-axis="${name}"]`)].map((one) => {
    const box = one.getBoundingClientRect(), slider = one.type === "range";
    const shown = slider ? one : one.closest("label");
    let place = shown.getBoundingClientRect();
    if (place.top < 100 || place.bottom > innerHeight) shown.scrollIntoView({block: "center", behavior: "instant"});
    place = shown.getBoundingClientRect();
    const hit = document.elementFromPoint(place.left + place.width / 2, place.top + place.height / 2);
    return {
        slider, width: box.width, height: box.height, disabled: one.disabled, group: one.name,
        visible: one.checkVisibility({opacityProperty: true, visibilityProperty: true}),
        works: slider ? hit === one : hit?.closest("label")?.control === one,
    };
})"""

FOCUS = """(root, name) => root.querySelector(
    `input[type=range][data-axis="${name}"], input[data-axis="${name}"]:checked`
).focus({preventScroll: true})"""

# Where a mouse has to go for the stop `index` of a slider or for the word beside a radio button; scrolled to, because a
# tall picture may have pushed it out of the window. The middle of a thumb travels the slider's width less the thumb's.
PLACE = """(root, [name, index, last]) => {
    const controls = root.querySelectorAll(`input[data-axis="${name}"]`);
    const slider = controls[0].type === "range", one = slider ? controls[0] : controls[index].closest("label");
    let box = one.getBoundingClientRect();
    if (box.top < 100 || box.bottom > innerHeight) one.scrollIntoView({block: "center", behavior: "instant"});
    box = one.getBoundingClientRect();
    const thumb = 16, x = slider ? thumb / 2 + index / last * (box.width - thumb) : box.width / 2;
    return [box.left + x, box.top + box.height / 2];
}"""


class Widget:
    """One `.omd-explore` on an open page, operated as a reader does."""

    def __init__(self, page, number: int):
        self.page = page
        self.root = page.query_selector_all(".omd-explore")[number]
        data = json.loads(self.root.query_selector("script.omd-data").text_content())
        self.said = dict(zip(data["points"], data["says"], strict=True))
        self.axes: dict[str, list[str]] = {}
        for point in data["points"]:
            for name, value in (part.split("=", 1) for part in point.split(";")):
                if value not in self.axes.setdefault(name, []):
                    self.axes[name].append(value)
        self.turning = [name for name, values in self.axes.items() if len(values) > 1]
        self.first = {name: values[0] for name, values in self.axes.items()}
        self.stops = self.axes | self.root.evaluate(SLIDERS)
        self.root.evaluate(TO_THE_FIRST_POINT)

    def controls(self, name: str) -> list[dict]:
        return self.root.evaluate(CONTROLS, name)

    def note(self) -> None:
        self.root.evaluate(NOTE)

    def noted(self, *points: dict[str, str]) -> list[dict]:
        """Since `note`, the widget has shown these points, one after another, and no other."""
        notes = self.page.evaluate("omdNotes")
        assert [one["point"] for one in notes] == [spelled(point) for point in points]
        return [self._is(seen, point) for seen, point in zip(notes, points, strict=True)]

    def click(self, name: str, value: str) -> None:
        """The mouse on the stop of a slider that has this value, or on the word beside a radio button."""
        stops = self.stops[name]
        self.page.mouse.click(*self.root.evaluate(PLACE, [name, stops.index(value), len(stops) - 1]))

    def shows(self, **point: str) -> dict:
        """The frame and the status say that they are this point. Returns all that can be seen."""
        return self._is(self.root.evaluate(SEE), point)

    def shows_every_point(self) -> dict[tuple, int]:
        """As `shows`, of all points of the grid. The number of the picture, by point."""
        points = [list(zip(self.axes, at, strict=True)) for at in product(*self.axes.values())]
        places = [[(name, value, self.stops[name].index(value)) for name, value in point] for point in points]
        every = zip(points, self.root.evaluate(SEE_ALL, places), strict=True)
        return {tuple(point): self._is(seen, dict(point))["picture"] for point, seen in every}

    def _is(self, seen: dict, point: dict[str, str]) -> dict:
        expected = spelled(point)
        assert seen["point"] == expected
        assert seen["says"] == self.said[expected]
        assert seen["visible"]
        assert seen["height"] > 10
        assert seen["named"], "a picture that a screen reader cannot name"
        return seen


def spelled(point: dict[str, str]) -> str:
    return ";".join(f"{name}={value}" for name, value in point.items())


def walk_with_arrow_keys(widget: Widget) -> None:
    """Every control to its left end, and to its right end. All points, also those between the controls, by a script."""
    assert widget.turning, "a widget without a control"
    widget.shows(**widget.first)
    for name in widget.turning:
        stops = widget.stops[name]
        left = stops[: stops.index(widget.first[name])][::-1]
        widget.root.evaluate(TO_THE_FIRST_POINT)
        widget.root.evaluate(FOCUS, name)  # the keyboard's focus must be able to go there, and stay
        widget.note()
        for _ in left:
            widget.page.keyboard.press("ArrowLeft")
        for _ in stops[1:]:
            widget.page.keyboard.press("ArrowRight")
        widget.page.keyboard.press("ArrowLeft")
        for seen in widget.noted(*({**widget.first, name: value} for value in (*left, *stops[1:], stops[-2]))):
            assert seen["focused"] == name, "an arrow key takes the focus away"
    pictures = widget.shows_every_point()
    # Two neighbors may look alike (on one device every split does), but no control may be without effect.
    for name, values in widget.axes.items():
        if name in widget.turning:
            assert any(
                pictures[point] != pictures[tuple((one, values[0] if one == name else at) for one, at in point)]
                for point in pictures
            ), f"{name} changes nothing"


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


def far_apart(widget: Widget, name: str) -> list[str]:
    """One end of a control, of a slider one value between, and the other end. Arrow keys have reached the others.

    They are far apart: on a slider of many, the next one lies under the thumb, which a click does not move. Nor does
    a click on the end where it starts.
    """
    stops = widget.stops[name]
    last = len(stops) - 1
    between = {last // 2} - {0, last} if widget.controls(name)[0]["slider"] else set()
    values = [stops[index] for index in (last, *between, 0)]
    return values[::-1] if values[0] == widget.first[name] else values


@each_widget
def test_what_looks_different_is_said_in_different_words(path, number):
    """Who hears a widget must hear each change that others see."""
    built = list(BUILT.finditer((HTML / path).read_text("utf-8")))[number]
    data = json.loads(built["data"])
    seen = dict(zip(data["says"], data["frames"], strict=True))
    for point, says, frame in zip(data["points"], data["says"], data["frames"], strict=True):
        assert frame == seen[says], f"{point} looks unlike another point, and is said in the same words: {says}"


@each_widget
def test_the_mouse_works_every_control(desk, path, number):
    opened = desk(path)
    widget = Widget(opened.page, number)
    for name in widget.turning:
        controls = widget.controls(name)
        assert controls
        assert len({control["group"] for control in controls}) == 1, "radio buttons that do not release each other"
        for control in controls:
            assert control["visible"]
            assert control["works"], "something lies over it, or the word belongs to another"
            assert not control["disabled"]
            assert min(control["width"], control["height"]) >= 24, "too small for a finger"
        widget.note()
        values = far_apart(widget, name)
        for value in values:
            widget.click(name, value)
        widget.noted(*({**widget.first, name: value} for value in values))
        widget.root.evaluate(TO_THE_FIRST_POINT)
    opened.clean()


@each_widget
def test_reacts_on_a_phone(phone, path, number):
    reacts_in_a_narrow_window(phone(path), number)


def test_reacts_from_the_disk(visit):
    """All widgets have one script: see `test_all_widgets_are_built_alike`."""
    path = most_kinds()
    opened = visit(path, base=HTML.as_uri() + "/", viewport=PHONE, scheme="dark", has_touch=True)
    for number in [number for one, number in WIDGETS if one == path]:
        reacts_in_a_narrow_window(opened, number)


def reacts_in_a_narrow_window(opened, number: int) -> None:
    widget = Widget(opened.page, number)
    name = widget.turning[-1]
    value = far_apart(widget, name)[0]
    widget.click(name, value)
    seen = widget.shows(**widget.first | {name: value})
    assert seen["left"] >= 0
    assert seen["right"] <= PHONE["width"]
    opened.clean()


def most_kinds() -> str:
    """The page whose widgets have the most controls of both kinds."""
    return max({path for path, _ in WIDGETS}, key=lambda path: (HTML / path).read_text("utf-8").count("data-axis="))


def test_the_first_frame_shows_without_javascript(visit):
    page = visit(most_kinds(), java_script_enabled=False).page
    widgets = page.locator(".omd-explore").all()
    assert widgets
    for widget in widgets:
        frame = widget.locator(".omd-frame")
        assert frame.is_visible()
        assert frame.bounding_box()["height"] > 10
        assert widget.locator(".omd-status").inner_text()
        for control in widget.locator("input, select").all():
            assert not control.is_visible(), "a control that cannot work"


def test_all_widgets_are_built_alike():
    """As on the page that was opened without JavaScript: all controls hidden, a first picture, what it says."""
    built = [one for path in {path for path, _ in WIDGETS} for one in BUILT.finditer((HTML / path).read_text("utf-8"))]
    assert len(built) == len(WIDGETS)
    assert len({(one["style"], one["script"]) for one in built}) == 1
    for one in built:
        assert "<input" in one["controls"]
        assert "<input" not in one["picture"] + one["says"]
        assert re.match(r"<img alt=|<svg |<div", one["picture"]), one["picture"][:100]

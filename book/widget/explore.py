"""`explore(draw, devices=[1, 2, 4], split=["column", "row"])`: a picture with its controls, in a kernel and
without.

`draw` is called once on every point of the grid. The result shows itself in two ways: as ipywidgets where a
kernel runs, and as plain HTML with native controls (`page.py`) in the built book, where nothing runs but the
browser. Both show the same frames, made by the same calls.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from book.pictures.kit.language import THEME_CSS
from book.pictures.kit.svg import Picture
from book.widget.page import PAGE_CSS, page, stops, words


@dataclass(frozen=True)
class Frame:
    """What one point of the grid shows: its HTML, the same in words, and an image for pages without script."""

    html: str
    says: str
    still: str

    @staticmethod
    def of(drawn: Any, at: str) -> Frame:
        """The frame of what `draw` returned at the point `at`; several things are shown one under the
        other."""
        parts = drawn if isinstance(drawn, tuple | list) else [drawn]
        if not parts:
            raise TypeError(f"draw returned nothing {at}: return a Picture, a text, or a tuple of them")
        made = [_part(part, at) for part in parts]
        # A line below a picture may be all that differs between two points.
        told = [part.desc if isinstance(part, Picture) else part for part in parts if isinstance(part, Picture | str)]
        says = " ".join(" ".join(told).split())
        return Frame("".join(show for show, _ in made), says, "".join(still for _, still in made))


@dataclass(frozen=True)
class Exploration:
    """The frames of every point of a grid, ready to show. `axes` maps a control's name to its values, in
    order."""

    axes: dict[str, tuple[Any, ...]]
    frames: dict[tuple[Any, ...], Frame]
    question: str | None = None

    @property
    def points(self) -> list[str]:
        """The names of the grid points, the last axis turning fastest: "devices=2;split=row"."""
        return [";".join(f"{k}={v}" for k, v in zip(self.axes, point, strict=True)) for point in self.frames]

    def _repr_html_(self) -> str:
        return page(self.axes, self.points, list(self.frames.values()), self.question)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        grid = ", ".join(f"{name} in {list(values)}" for name, values in self.axes.items())
        first = next(iter(self.frames.values()))
        bundle: dict[str, Any] = {
            "text/html": self._repr_html_(),
            "text/plain": f"{self.question or 'explore'}\n{len(self.frames)} pictures: {grid}\n{first.says}",
        }
        # The live face goes beside the page, not in its place: what is stored and compared is the page.
        if _kernel_is_running() and self.live is not None:
            view = self.live._repr_mimebundle_()
            bundle |= {mime: data for mime, data in view.items() if mime.endswith("widget-view+json")}
        return bundle

    @cached_property
    def live(self) -> Any:
        """The same frames behind real ipywidgets, or None where they are not installed."""
        try:
            import ipywidgets as widgets
        except ImportError:
            return None
        turning = {name: values for name, values in self.axes.items() if len(values) > 1}
        controls = {}
        for name, values in turning.items():
            if at := stops(values):
                control, options = widgets.SelectionSlider, [(f"{value:,}", value) for value in at]
            else:
                control, options = widgets.ToggleButtons, [(str(value), value) for value in values]
            controls[name] = control(options=options, value=values[0], description=words(name))
        head = widgets.HTML(f"<style>{THEME_CSS}{PAGE_CSS}</style>" + _question(self.question))
        picture, says = widgets.HTML(), widgets.HTML()

        def show(change: object = None) -> None:
            point = tuple(controls[name].value if name in controls else v[0] for name, v in self.axes.items())
            frame = self.frames[point]
            picture.value = frame.html
            says.value = f'<p class="omd-status" role="status">{html.escape(frame.says)}</p>'

        for control in controls.values():
            control.observe(show, "value")
        show()
        box = widgets.VBox([head, *controls.values(), picture, says])
        box.add_class("omd-live")
        return box


def explore(draw: Callable[..., Any], /, *, question: str | None = None, **axes: Sequence[Any]) -> Exploration:
    """Call `draw(name=value, ...)` on every point of the grid of `axes` and show the pictures with their
    controls.

    Numbers get a slider, from the smallest to the largest; words get buttons, in the order given. The first
    value of each axis is shown first. `question` is what the widget answers, written above it. `draw` returns a
    `Picture`, text, anything with `_repr_html_` or `_repr_svg_`, or a tuple of those (a picture and its line of
    numbers).

    Errors: ValueError for an empty grid or a repeated value; TypeError for a draw that cannot be called,
    values that are not a list, or a draw that returns nothing to show. An error inside `draw` is passed on
    with a note that names the point.
    """
    if not callable(draw):
        raise TypeError(f"explore needs a function that draws one point, got {draw!r}")
    if not axes:
        raise ValueError("explore has nothing to vary: pass the values of each control, e.g. devices=[1, 2, 4]")
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a list of values, e.g. {name}=[{values!r}], got {values!r}")
        if not values:
            raise ValueError(f"{name} has no values: pass one or more, e.g. {name}=[1, 2, 4]")
        if len(set(map(str, values))) < len(values):
            raise ValueError(f"{name} has a value twice: {list(values)}")
    frames = {}
    for point in product(*axes.values()):
        given = dict(zip(axes, point, strict=True))
        at = "at " + ", ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in given.items())
        try:
            drawn = draw(**given)
        except Exception as error:
            error.add_note(f"explore called draw {at}")
            raise
        frames[point] = Frame.of(drawn, at)
    return Exploration({name: tuple(values) for name, values in axes.items()}, frames, question)


def _part(part: Any, at: str) -> tuple[str, str]:
    """One thing as HTML: (to show inline, to show where scripts and inline SVG are stripped)."""
    if isinstance(part, Picture):
        return part.svg(), f'<img alt="{html.escape(part.desc)}" src="{part.data_uri()}">'
    if isinstance(part, str):
        text = f'<p class="omd-line">{html.escape(part)}</p>'
        return text, text
    for method in ("_repr_html_", "_repr_svg_"):
        shown = getattr(part, method, lambda: None)()
        if shown is not None:
            return shown, shown
    raise TypeError(f"draw returned {part!r} {at}: return a Picture, a text, or a tuple of them")


def _question(question: str | None) -> str:
    return f'<p class="omd-question">{html.escape(question)}</p>' if question else ""


def _kernel_is_running() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None

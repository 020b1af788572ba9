"""What a check answers: a verdict in words, the same words as text and as a small piece of HTML."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

State = Literal["correct", "wrong", "waiting"]

# A sign and a word carry the state; the color of the bar only repeats it. Text keeps the color of the page around it,
# light or dark. The variables are those of the book's theme, then JupyterLab's, then none.
SIGNS: dict[State, tuple[str, str, str]] = {
    "correct": ("✓", "Correct", "var(--pst-color-success,var(--jp-success-color1,currentColor))"),
    "wrong": ("✗", "Not yet", "var(--pst-color-danger,var(--jp-error-color1,currentColor))"),
    "waiting": ("…", "Waiting", "var(--pst-color-border,var(--jp-border-color1,currentColor))"),
}
# Long lines wrap: a box that scrolls sideways would need the keyboard's focus.
_LINES = "margin:.4rem 0 0;padding:0;border:0;background:none;color:inherit;white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Verdict:
    """The answer to one check: what was judged, its state, one sentence, and the evidence, line by line."""

    exercise: str
    state: State
    sentence: str
    details: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the exercise is solved."""
        return self.state == "correct"

    def __str__(self) -> str:
        sign, word, _ = SIGNS[self.state]
        head = f"{sign} {word}. {self.exercise} {self.sentence}"
        return "\n".join([head, *(f"  {line}" for detail in self.details for line in detail.splitlines())])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        sign, word, color = SIGNS[self.state]
        details = escape("\n".join(self.details))
        return (
            f'<div class="omd-verdict" data-state="{self.state}" '
            f'style="border-left:.3rem solid {color};padding:.3rem .9rem;margin:.5rem 0">'
            f'<strong><span aria-hidden="true">{sign}</span> {word}.</strong> '
            f"<code>{escape(self.exercise)}</code> {escape(self.sentence)}"
            + (f'<pre style="{_LINES}">{details}</pre>' if details else "")
            + "</div>"
        )


class Fault(Exception):
    """The first thing that is wrong with a program: one sentence, and the lines that prove it. Becomes a verdict."""

    def __init__(self, sentence: str, *details: str | None):
        super().__init__(sentence)
        self.sentence, self.details = sentence, tuple(detail for detail in details if detail)


class Excess(Fault):
    """More was sent, or more often, than is needed. Whether that is a fault depends on what the statement says."""


@dataclass(frozen=True)
class Folded:
    """Text behind a title: closed on a page until the reader opens it, open where there is only text."""

    title: str
    text: str
    code: bool = False

    def __repr__(self) -> str:
        return f"{self.title}\n" + "\n".join(f"    {line}".rstrip() for line in self.text.splitlines())

    def _repr_html_(self) -> str:
        text = escape(self.text)
        body = f'<pre style="{_LINES}"><code>{text}</code></pre>' if self.code else f"<p>{text}</p>"
        return f'<details class="omd-folded"><summary>{escape(self.title)}</summary>{body}</details>'

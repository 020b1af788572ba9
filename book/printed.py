"""`folded`: text for a page, on which a line of more than 86 letters would be cut."""

from __future__ import annotations

from textwrap import TextWrapper

WIDTH = 86


def folded(text: object) -> str:
    """The text, such as that of an error, with long lines going on below, a little further to the right."""
    lines = []
    for line in str(text).splitlines():
        margin = " " * (len(line) - len(line.lstrip()) + 4)
        whole = TextWrapper(WIDTH, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)
        lines += whole.wrap(line) or [""]
    return "\n".join(lines)

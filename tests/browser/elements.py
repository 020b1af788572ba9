"""The elements of a page, read from its HTML.

Hundreds of pages are read, and Python's own parser takes nearly three times as long. This one reads what the tools
that make the book write: `tests/browser/test_elements.py` compares the two.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape

NO_END = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
NO_ELEMENTS = {"script", "style"}  # what stands inside is not HTML
TOKEN = re.compile(
    r"<!--.*?-->|<(?P<end>/?)(?P<tag>[a-zA-Z][\w:-]*)(?P<attributes>(?:[^<>\"']|\"[^\"]*\"|'[^']*')*)>", re.DOTALL
)
ATTRIBUTE = re.compile(r"""([^\s=/"'>]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")


@dataclass(slots=True, eq=False)
class Element:
    tag: str
    attributes: dict[str, str]
    around: "Element | None"
    page: str = field(repr=False)  # the HTML of all
    begin: int  # of its tag
    inside: int  # where its content begins,
    outside: int = 0  # where its content ends,
    end: int = 0  # and where its end tag does
    speaks: bool = False  # has words of its own, not only in the elements inside

    @property
    def html(self) -> str:
        return self.page[self.begin : self.end]

    @property
    def own_tag(self) -> str:
        return self.page[self.begin : self.inside]

    @property
    def words(self) -> str:
        return unescape(TOKEN.sub("", self.page[self.inside : self.outside]))

    @property
    def empty(self) -> bool:
        return not self.speaks and "<" not in self.page[self.inside : self.outside][:1000]

    def ancestors(self) -> Iterator["Element"]:
        one = self.around
        while one is not None:
            yield one
            one = one.around

    def within(self, *tags: str) -> bool:
        return any(one.tag in tags for one in self.ancestors())


def elements(page: str) -> list[Element]:
    """All elements, in the order in which they begin."""
    found: list[Element] = []
    around, at = None, 0
    while token := TOKEN.search(page, at):
        begin, after = token.span()
        if around is not None and not around.speaks:
            around.speaks = not page[at:begin].isspace() and begin > at
        at = after
        tag = token["tag"]
        if tag and token["end"]:
            around = closed(around, tag, begin, at)
        elif tag:
            written = token["attributes"]
            attributes = (
                {name: unescape(a or b or c) for name, a, b, c in ATTRIBUTE.findall(written)} if written else {}
            )
            one = Element(tag, attributes, around, page, begin, at, at, at)
            found.append(one)
            if tag in NO_ELEMENTS:
                one.outside = page.index(f"</{tag}>", at)
                one.end = at = one.outside + len(f"</{tag}>")
            elif tag not in NO_END and not written.endswith("/"):
                around = one
    return found


def closed(innermost: Element | None, tag: str, begin: int, end: int) -> Element | None:
    """An end tag from `begin` to `end` closes its element, and what is still open inside. The one around it."""
    one = innermost
    if one is None or (one.tag != tag and not one.within(tag)):
        return innermost  # an end of nothing says nothing, to a browser either
    while one.tag != tag:
        one.outside = one.end = begin
        one = one.around
    one.outside, one.end = begin, end
    return one.around

"""The quick reader of HTML reads what Python's own does; and what makes a kind of element."""

from html.parser import HTMLParser

import pytest
from browser.book import HTML, KINDS
from browser.elements import NO_ELEMENTS, NO_END, elements
from browser.kinds import kinds, new_blocks


class Standard(HTMLParser):
    """Every element: its tag and attributes, those around it, the words in it."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        one = [tag, {name: value or "" for name, value in attributes}, [other[0] for other in self.open], ""]
        self.found.append(one)
        if tag not in NO_END:
            self.open.append(one)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in NO_END:
            self.open.pop()

    def handle_endtag(self, tag):
        at = next((at for at in reversed(range(len(self.open))) if self.open[at][0] == tag), None)
        if at is not None:
            del self.open[at:]

    def handle_data(self, data):
        for one in self.open:
            one[3] += data


@pytest.mark.parametrize("path", KINDS)
def test_pages_are_read_as_by_the_standard_reader(path):
    text = (HTML / path).read_text("utf-8")
    quick, standard = elements(text), Standard(text).found
    assert len(quick) > 100
    for one, (tag, attributes, around, words) in zip(quick, standard, strict=True):
        assert one.tag.lower() == tag
        assert {name.lower(): value for name, value in one.attributes.items()} == attributes
        assert [other.tag.lower() for other in one.ancestors()] == around[::-1]
        if tag not in {"html", "head", "body"} | NO_ELEMENTS and "script" not in one.html:
            assert one.words == words


def blocks(seen: str, *pages: str) -> list[str]:
    """What of these pages shows a kind that `seen` does not."""
    shown = {kind for kind, _ in kinds(PAGE.format(seen))}
    return [block.html for page in pages for block in new_blocks(kinds(PAGE.format(page)), shown)]


PAGE = '<html lang="en"><body><main><article><section>{}</section></article></main></body></html>'
KNOWN = '<p>Words <a href="a">that lead</a></p><ul><li><img src="a" alt="A"></li></ul>'
DATA = """<script class="omd-data">{"chunks": ["<p class='a'>", "1</p>"], "frames": [[0, 1]]}</script>"""


@pytest.mark.parametrize(
    "new",
    [
        '<p>Words <a href="a"></a></p>',  # nothing to read
        '<p>Words <a href="a" class="pale">that lead</a></p>',
        "<ol><li>Words</li></ol>",
        '<ul><li><img src="a"></li></ul>',
        '<ul><li><img src="a" alt=""></li></ul>',
        '<p style="color: #777">Words</p>',
        f"<div>{DATA}</div>",
    ],
)
def test_a_block_of_a_new_kind_is_shown_once(new):
    known = KNOWN.replace("lead", "go").replace('"a"', '"b"')
    assert blocks(KNOWN + "<div></div>", known) == []
    assert blocks(KNOWN + "<div></div>", known + new, new) == [new]

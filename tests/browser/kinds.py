"""What kinds of elements the book has, and a page that shows all of them.

Two elements are of one kind if they and all around them, up to the section, have the same tags and attributes, but for
attributes that name or lead somewhere. So one style sheet paints them alike, and a rule about how a page is built says
the same of both. `gallery` is a chapter whose article has a block (a paragraph, a cell, a table, a widget) for every
kind that the book has. Of what stands around the article, the frame that one template makes, an element's kind goes up
to its parent only.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache

from browser.book import HTML, pages
from browser.elements import Element, elements

# Attributes whose value makes no kind: whether they have one does.
OWN = set(
    "id href src srcset alt name for value title rel content viewBox width height min max start alttext action "
    "placeholder checked aria-label aria-labelledby aria-describedby aria-valuetext aria-controls aria-current "
    "data-axis data-values data-point data-uid data-first data-language data-content_root".split()
)
NO_KIND = {"head", "script", "style", "template"}
ONE_PICTURE = {"svg", "math"}  # drawn as a whole
PROGRAM, WORD = re.compile(r"<pre>.*?</pre>", re.S), re.compile(r'<span class="([^"]*)">([^<]*)</span>')

LISTINGS = [path for path in pages() if path.startswith("reference/")]
SHORTEST, *_, LONGEST = sorted(LISTINGS, key=lambda path: (HTML / path).stat().st_size)
# The pages of the reference are made alike by one tool from one kind of text.
PAGES = [path for path in pages() if path not in LISTINGS or path in (SHORTEST, LONGEST)]
CHAPTER = "chapters/devices_that_talk.html"
# With the chapter's own, they have every kind of element that stands around articles, and what scripts put into them.
WHOLE = [
    "intro.html",
    "search.html",
    "genindex.html",
    "folklore_checked.html",
    "test_yourself.html",
    "reference/lib.devices.group.html",
]


def kind_of(one: Element) -> str:
    """Of this element alone."""
    said = [
        name + ("" if value else "=") if name in OWN else f"{name}={value}"
        for name, value in sorted(one.attributes.items())
    ]
    return " ".join([one.tag, *said, *(["words"] if one.speaks else []), *(["empty"] if one.empty else [])])


def first_picture(widget_data: Element) -> str:
    """What the script of a widget shows first, in place of the still picture in the file."""
    data = json.loads(widget_data.page[widget_data.inside : widget_data.outside])
    swapped = str.maketrans("\"'", "'\"")
    return "".join(data["chunks"][number] for number in data["frames"][0]).translate(swapped)


def kinds(html: str) -> Iterator[tuple[str, Element | None]]:
    """Every kind on the page, and the block of the article that shows it; None for the frame around the article."""
    known: dict[str, str] = {}  # thousands of elements have the same tag
    alone: dict[Element, str] = {}
    chains: dict[Element, str] = {}  # with all around it
    blocks: dict[Element, Element | None] = {}
    sections: set[Element] = set()
    for one in elements(html):
        around = one.around
        if "omd-data" in one.attributes.get("class", ""):
            for kind, _ in kinds(first_picture(one)):
                yield f"{kind} < shown in {chains[around]}", blocks[around]
        if one.tag in NO_KIND or (around and (around not in alone or around.tag in ONE_PICTURE)):
            continue
        key = f"{one.own_tag}{one.speaks}{one.empty}"
        kind = alone[one] = known.get(key) or known.setdefault(key, kind_of(one))
        chain, block = kind, None
        if one.tag == "article" or (one.tag == "section" and around in sections):
            sections.add(one)
        elif around in sections:
            block = one
        elif block := blocks.get(around):
            chain = f"{kind} < {chains[around]}"
        else:
            chain = f"{kind} < {alone.get(around, '')}"
        chains[one], blocks[one] = chain, block
        yield chain, block


@cache  # for the gallery, and for the test of the frames
def of_page(path: str) -> list[tuple[str, Element | None]]:
    return list(kinds((HTML / path).read_text("utf-8")))


def frame_kinds(path: str) -> set[str]:
    return {kind for kind, block in of_page(path) if block is None}


@cache
def gallery() -> str:
    """The chapter, in its article blocks of all pages: every kind that no page of WHOLE shows, once."""
    shown = {kind for path in WHOLE for kind, _ in of_page(path)}
    blocks = [block.html for path in (CHAPTER, *PAGES) for block in new_blocks(of_page(path), shown)]
    blocks = [PROGRAM.sub(lambda program: one_word_of_each_color(program[0]), block) for block in blocks]
    html = (HTML / CHAPTER).read_text("utf-8")
    article = next(one for one in elements(html) if one.tag == "section" and one.within("article"))
    # The theme's script looks for all that the page's table of contents leads to.
    names = dict.fromkeys(re.findall('class="[^"]*nav-link" href="#(.+?)"', html))
    targets = [f'<div id="{name}"></div>' for name in names]
    return "\n".join([html[: article.inside], "<h1>All</h1><h2>Kinds</h2>", *targets, *blocks, html[article.outside :]])


def one_word_of_each_color(program: str) -> str:
    """The program, with the element around a word only where the first of its color stands."""
    colors: set[str] = set()

    def first(word: re.Match) -> str:
        if word[1] in colors:
            return word[2]
        colors.add(word[1])
        return word[0]

    return WORD.sub(first, program)


def new_blocks(found: Iterable[tuple[str, Element | None]], shown: set[str]) -> list[Element]:
    """Those that show a kind that is not in `shown`, into which goes whatever they show."""
    by_block: dict[Element, set[str]] = {}
    for kind, block in found:
        if block is not None:
            by_block.setdefault(block, set()).add(kind)
    chosen = []
    for block, has in by_block.items():
        if not has <= shown:
            shown |= has
            chosen.append(block)
    return chosen

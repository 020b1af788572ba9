"""axe-core on every kind of element that the book has.

A few pages, and one on which blocks of all pages stand together: see kinds.py. Each is asked in two opposite looks:
by all rules light on a desk, and by those that depend on the look dark on a phone. So these have seen both themes and
both widths. That no rule needs a special pair of them, or another rule a phone, is asked of a page with many kinds.

What depends on the words of a page, not on the kinds of its elements, every page is asked elsewhere: headings, labels,
the names of pictures in test_links.py, what scrolls in test_pages.py, the pictures of widgets in test_widgets.py.
"""

import pytest
from browser.accessibility import OF_THE_LOOK, violations
from browser.book import PHONE
from browser.kinds import CHAPTER, PAGES, WHOLE, frame_kinds, gallery


def test_the_pages_asked_have_every_kind_of_frame():
    asked = set().union(*map(frame_kinds, (CHAPTER, *WHOLE)))
    assert len(asked) > 100
    assert {path: new for path in PAGES if (new := frame_kinds(path) - asked)} == {}


@pytest.mark.parametrize("path", WHOLE)
def test_axe_finds_nothing_on_a_desk(desk, path):
    assert violations(desk(path).page, "light") == []


@pytest.mark.parametrize("path", WHOLE)
def test_axe_finds_nothing_on_a_phone(phone, path):
    assert violations(phone(path).page, "dark", OF_THE_LOOK) == []


def test_axe_finds_nothing_on_the_page_with_everything(visit):
    page = visit(CHAPTER, text=gallery()).page
    found = violations(page, "light")
    page.set_viewport_size(PHONE)
    assert found + violations(page, "dark") == []


@pytest.mark.parametrize("path", WHOLE[:1])
def test_axe_finds_nothing_in_the_other_looks(desk, phone, path):
    assert violations(desk(path, scheme="dark").page, "dark") == []
    assert violations(phone(path, scheme="light").page, "light") == []


DARK_GRAY = "html[data-theme=dark] .bd-article p { color: #3a3f45 !important }"
DARK_BOX = '<div style="position: relative; height: 3em; background: #555"></div>'
MOVED = '<div style="position: relative; top: {}; height: 3em; color: #333">Words</div>'
TINY = '<a href="#a" style="display: inline-block; width: 6px; height: 6px; overflow: hidden">a</a>'


def test_what_is_broken_is_found(visit):
    """A picture without a text, a contrast too low in the dark alone or on another box, links too small."""
    page = visit("bibliography.html").page

    def found(scheme: str, html: str = "", style: str = "") -> set[str]:
        page.evaluate("(html) => document.querySelector('article').insertAdjacentHTML('beforeend', html)", html)
        if style:
            page.add_style_tag(content=style)
        rules = {one.split(": ")[1] for one in violations(page, scheme, [*OF_THE_LOOK, "image-alt"])}
        page.evaluate("(html) => { if (html) document.querySelector('article').lastElementChild.remove() }", html)
        return rules

    assert found("light") == set()
    assert found("light", '<img src="data:,">') == {"image-alt"}
    assert found("light", f"<div>{2 * TINY}</div>") == {"target-size"}
    rows = 9 * "<li><a href='#a'>A row</a></li>" + "<li><a href='#a'>A <img src='data:,'></a></li>"
    assert found("light", f"<ul>{rows}</ul>") == {"image-alt"}
    beside, onto_it = MOVED.format(0), MOVED.format("-3em")
    assert found("light", f"<div>{beside}{DARK_BOX}{beside}</div>") == set()
    assert found("light", f"<div>{beside}{DARK_BOX}{onto_it}</div>") == {"color-contrast"}
    assert found("light", style=DARK_GRAY) == set()
    assert found("dark") == {"color-contrast"}

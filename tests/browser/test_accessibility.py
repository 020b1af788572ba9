"""axe-core on every page that an author wrote, and on the longest and the shortest page of the reference.

Each is asked in two opposite looks: by all rules light on a desk, and by those that depend on the look dark on a phone.
These have then seen both themes and both widths. That no rule needs a special pair of them, or another rule a phone, is
asked of a page with everything: a chapter.
"""

import pytest
from browser.accessibility import OF_THE_LOOK, violations
from browser.book import HTML, pages

REFERENCE = [path for path in pages() if path.startswith("reference/")]
SHORTEST, *_, LONGEST = sorted(REFERENCE, key=lambda path: (HTML / path).stat().st_size)
# The pages of the reference are made alike by one tool from one kind of text.
PAGES = [path for path in pages() if path not in REFERENCE or path in (SHORTEST, LONGEST)]
CHAPTER = "chapters/tensor_parallelism.html"


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_on_a_desk(desk, path):
    assert violations(desk(path).page, "light") == []


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_on_a_phone(phone, path):
    assert violations(phone(path).page, "dark", OF_THE_LOOK) == []


@pytest.mark.parametrize("path", [CHAPTER])
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

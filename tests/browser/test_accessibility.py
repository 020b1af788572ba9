"""axe-core on every page that an author wrote, on the longest and the shortest page of the reference, in every look."""

import pytest
from browser.accessibility import contrast, narrow, rules
from browser.book import HTML, PHONE, pages

REFERENCE = [path for path in pages() if path.startswith("reference/")]
SHORTEST, *_, LONGEST = sorted(REFERENCE, key=lambda path: (HTML / path).stat().st_size)
# The pages of the reference are made alike by one tool from one kind of text.
PAGES = [path for path in pages() if path not in REFERENCE or path in (SHORTEST, LONGEST)]


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing(visit, path):
    page = visit(path).page
    found = rules(page) + contrast(page, "light") + contrast(page, "dark")
    # Opened anew: after a change of the width, the theme decides a while later what the keyboard can reach.
    assert found + narrow(visit(path, viewport=PHONE).page) == []


def test_axe_finds_nothing_in_the_frame_of_a_phone(visit):
    # What only a phone shows, as its menu button, is the same on every page.
    page = visit("glossary.html", viewport=PHONE).page
    assert rules(page) + contrast(page, "light") + contrast(page, "dark") == []


DARK_GRAY = "html[data-theme=dark] .bd-article p { color: #3a3f45 !important }"


def test_what_is_broken_is_found(visit):
    """A missing text of a picture, a contrast too low in the dark alone, links too small for a finger."""
    page = visit("glossary.html").page
    assert rules(page) == []
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=\"data:,\">')")
    assert [one.split(":")[0] for one in rules(page)] == ["image-alt"]
    page.evaluate("document.querySelector('article img:last-child').remove()")
    page.add_style_tag(content=DARK_GRAY)
    assert contrast(page, "light") == []
    assert any("color-contrast" in one for one in contrast(page, "dark"))
    page = visit("glossary.html", viewport=PHONE).page
    assert narrow(page) == []
    links = '<p><a href="#a" class="tiny">a</a><a href="#b" class="tiny">b</a></p>'
    page.evaluate(f"document.querySelector('article').insertAdjacentHTML('beforeend', '{links}')")
    page.add_style_tag(content=".tiny { display: inline-block; width: 6px; height: 6px; overflow: hidden }")
    assert any(one.startswith("target-size") for one in narrow(page))

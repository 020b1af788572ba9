"""Every built page: nothing from another host, no error, a modest weight, no sideways scrolling.

From the disk, and on paper, a page of each kind is tried: test_navigation.py proves that all have their frame and
scripts. (The site stands in a folder of its host, so an address that would fail on the disk fails there too.)
"""

import gzip
import re
from functools import cache

import pytest
from browser.accessibility import unreachable
from browser.book import HTML, KINDS, PHONE, Opened, one_of_each
from fontTools.ttLib import TTFont

PAGES = one_of_each()
FONTS = HTML / "_static" / "vendor" / "fontawesome" / "webfonts"
COMPRESSED = (".woff2", ".woff", ".png", ".jpg", ".webp")
LIMIT_KB = 500


def test_the_book_has_its_pages():
    assert {"intro.html", "glossary.html", "bibliography.html", "reference.html", "search.html"} <= set(PAGES)
    assert [page for page in PAGES if page.startswith("chapters/")]


@cache
def drawable() -> set[str]:
    return {chr(code) for font in FONTS.glob("*.ttf") for code in TTFont(font).getBestCmap()}


@cache  # most pages load the same files
def weight(name: str) -> int:
    """Bytes that a server sends for a file of the book."""
    body = (HTML / name).read_bytes()
    return len(body) if name.endswith(COMPRESSED) else len(gzip.compress(body, 6))


def scroll_through(page) -> None:
    """A reader's way down the page, so that whatever loads late is loaded as well."""
    page.evaluate(
        """async () => {
        window.scrollTo(0, document.body.scrollHeight);
        await document.fonts.ready;
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        }"""
    )


@pytest.mark.parametrize("path", PAGES)
def test_loads_cleanly_and_light(desk, site, path):
    opened = desk(path)
    scroll_through(opened.page)
    opened.clean()
    assert unreachable(opened.page) == []
    urls = {response.url.split("?")[0] for response in opened.responses}
    weights = {url: weight(url.removeprefix(site)) for url in urls if not url.startswith("data:")}
    heaviest = sorted(weights.items(), key=lambda pair: -pair[1])[:5]
    assert sum(weights.values()) < LIMIT_KB * 1000, f"{sum(weights.values()) / 1000:.0f} kB, mostly {heaviest}"
    assert len(weights) > 5, "the page's scripts and styles were not counted"


# Names in tables that go on in the next line in the middle of a word, or behind the dashes of an option.
TORN_NAMES = r"""() => [...document.querySelectorAll(".bd-article td code .pre")].flatMap(name => {
    const letters = [], texts = document.createTreeWalker(name, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) for (let at = 0; at < texts.currentNode.length; at++) {
        const letter = document.createRange();
        letter.setStart(texts.currentNode, at);
        letter.setEnd(texts.currentNode, at + 1);
        letters.push([texts.currentNode.data[at], letter.getBoundingClientRect().top]);
    }
    const torn = letters.some(([letter, top], at) => at && top > letters[at - 1][1] + 5
        && (/[A-Za-z0-9][a-z0-9]/.test(letters[at - 1][0] + letter)
            || /^--?$/.test(letters.slice(0, at).map(one => one[0]).join(""))));
    return torn ? [name.textContent] : [];
})"""


@pytest.mark.parametrize("path", PAGES)
def test_never_scrolls_sideways_on_a_phone(phone, path):
    opened = phone(path)
    page = opened.page
    scroll_through(page)
    opened.clean()
    # Named, because "the page is 391 wide" does not say what to mend.
    wide = page.evaluate(
        """() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
        [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 120)).slice(0, 5).concat(document.documentElement.scrollWidth)"""
    )
    assert wide == []
    assert page.evaluate(TORN_NAMES) == []
    assert unreachable(page) == []
    icons = page.evaluate(
        """() => [...document.querySelectorAll("*:not(svg *, math *, pre *)")].flatMap(e => ["::before", "::after"]
        .map(side => getComputedStyle(e, side))
        .filter(style => style.fontFamily.includes("Font Awesome")).map(style => style.content.replaceAll('"', "")))"""
    )
    assert icons
    signs = set("".join(icons)) - {"n", "o", "e"}  # "none": no icon there
    assert signs <= drawable(), "_ext/icons.py cut an icon away"


@pytest.mark.parametrize("path", KINDS)
def test_opens_from_the_disk_on_a_phone(visit, path):
    opened = visit(path, base=HTML.as_uri() + "/", viewport=PHONE, scheme="dark", has_touch=True)
    scroll_through(opened.page)
    opened.clean()


@pytest.mark.parametrize("path", KINDS)
def test_prints_without_the_frame(desk, path):
    page = desk(path).page
    page.emulate_media(media="print", color_scheme="dark")
    seen, color = page.evaluate(
        """() => [
            [".bd-sidebar-primary", ".bd-sidebar-secondary", ".prev-next-footer", ".bd-header-article"].filter((part) =>
                [...document.querySelectorAll(part)].some((one) => one.checkVisibility({visibilityProperty: true}))),
            getComputedStyle(document.querySelector("main article, main h1")).color,
        ]"""
    )
    page.emulate_media(media="screen", color_scheme="light")
    assert seen == []
    assert color == "rgb(0, 0, 0)"


def test_index_leads_to_the_book(visit):
    icon = re.search(r'rel="icon" href="(.+?)"', (HTML / "index.html").read_text("utf-8"))[1]
    assert (HTML / icon).is_file(), "the browser would ask for /favicon.ico, in vain"
    opened = visit("index.html")
    opened.page.wait_for_url("**/intro.html")
    assert opened.page.locator("h1").count() >= 1


BROKEN = {
    '<img src="https://example.org/a.png" alt="A picture from another host">': "https://example.org/a.png",
    '<script>fetch("https://example.org/b")</script>': "https://example.org/b",
    "<script>undefinedFunction()</script>": "undefinedFunction is not defined",
    '<img src="nowhere.png" alt="A picture that is not there">': "nowhere.png",
    '<img src="/_static/favicon.svg" alt="A picture at the root of the host">': "/_static/favicon.svg",
}


def test_what_is_broken_is_found(visit):
    """All of it on one page. Requests to another host, and all else, make a page unclean, each alone."""
    text = (HTML / "bibliography.html").read_text("utf-8")
    opened = visit("bibliography.html", text=text.replace("</article>", f"{''.join(BROKEN)}</article>"))
    scroll_through(opened.page)
    for said in BROKEN.values():
        assert any(said in one for one in opened.foreign + opened.problems), said
    for kept in {"foreign": opened.foreign}, {"problems": opened.problems}:
        with pytest.raises(AssertionError):
            Opened(opened.page, **kept).clean()

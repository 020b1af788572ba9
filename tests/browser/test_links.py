"""The files themselves: every internal link and anchor resolves, every id is unique, every picture has a text."""

import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from browser.book import HTML, pages
from bs4 import BeautifulSoup

PAGES = pages()


@cache
def soup(path: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / path).read_text("utf-8"), "html.parser")


class Ids(HTMLParser):
    """All ids of a page. Every page asks for those of many others, so this must be quick."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name == "id"]


@cache
def ids(path: str) -> list[str]:
    return Ids((HTML / path).read_text("utf-8")).found


def targets(path: str) -> list[tuple[str, str]]:
    """What the page points to, each with the kind of pointer: a, img, script, stylesheet, canonical, ..."""
    found = [("a", tag["href"]) for tag in soup(path).select("a[href]")]
    found += [(tag["rel"][0], tag["href"]) for tag in soup(path).select("link[href]")]
    return found + [(tag.name, tag["src"]) for tag in soup(path).select("[src]")]


@pytest.mark.parametrize("path", PAGES)
def test_internal_links_resolve(path):
    dead = []
    checked = 0
    for tag, target in targets(path):
        url = urlsplit(target)
        if url.scheme or url.netloc:
            assert url.scheme in ("https", "data"), target
            # test_pages.py proves that nothing is fetched; here, that nothing could be but on a click.
            assert tag in ("a", "canonical") or url.scheme == "data", target
            continue
        checked += 1
        file = (HTML / path).parent / unquote(url.path) if url.path else HTML / path
        anchored = url.fragment and file.suffix == ".html"
        if not file.is_file() or (
            anchored and unquote(url.fragment) not in ids(str(file.resolve().relative_to(HTML.resolve())))
        ):
            dead.append(target)
    assert checked > 10
    assert dead == []


@pytest.mark.parametrize("path", PAGES)
def test_ids_are_unique(path):
    assert [one for one, count in Counter(ids(path)).items() if count > 1] == []
    assert ids(path)


def name_of(picture) -> str:
    if picture.name == "img":
        return picture.get("alt", "")
    label = " ".join(
        text.get_text() for one in picture.get("aria-labelledby", "").split() if (text := picture.find(id=one))
    )
    title = picture.find("title", recursive=False)
    return picture.get("aria-label") or label or (title.get_text() if title else "")


@pytest.mark.parametrize("path", PAGES)
def test_pictures_say_what_they_show(path):
    for picture in soup(path).select("img, svg"):
        if picture.get("aria-hidden") == "true" or picture.find_parent("svg"):
            continue
        if picture.name == "svg":
            assert picture.get("role") == "img", f"a drawing without a role: {str(picture)[:200]}"
        name = name_of(picture).strip()
        assert len(name) >= 10, f"no text for {str(picture)[:200]}"
        assert not re.search(r"_images/|\.(png|svg|jpe?g|gif)$", name), name


def test_the_book_has_pictures():
    assert sum(len(soup(path).select("article svg[role=img], article img")) for path in PAGES) >= 1


@pytest.mark.parametrize("path", [path for path in PAGES if path not in ("search.html", "genindex.html")])
def test_pages_describe_themselves(path):
    page = soup(path)
    assert len(page.select("article h1")) == 1
    assert page.html["lang"] == "en"
    descriptions = [tag["content"] for tag in page.select("meta[name=description]")]
    assert len(descriptions) == 1
    assert 40 <= len(descriptions[0]) <= 200
    assert page.select_one("meta[property='og:title']")

"""The files themselves: every internal link and anchor resolves, every id is unique, every picture has a text.

No browser is needed. All files are read in one process, once each, since a page's links lead to most others. A page of
an author has its own tests; those of the reference, hundreds that one template makes, have tests together.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from browser.book import HTML, pages

PAGES = pages()
LISTINGS = [path for path in PAGES if path.startswith("reference/")]
# By a name without ".html": a name with it would say that the test wants the page open in the browser.
PARTS = {path.removesuffix(".html"): [path] for path in PAGES if path not in LISTINGS} | {"reference/": LISTINGS}
TOOLS = {"search", "genindex"}  # no author describes them
each_part = pytest.mark.parametrize("paths", PARTS.values(), ids=PARTS)
# In a program, every word has a color. Of hundreds of thousands of such elements, these tests ask nothing.
PROGRAM, WORD = re.compile(r"<pre>.*?</pre>", re.S), re.compile(r'<span class="[^"]*">|</span>')
NO_END = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Picture:
    """An <img> or the outermost <svg>, with the texts inside it: those of its elements with an id, and its title."""

    tag: str
    attributes: dict[str, str]
    in_article: bool
    texts: dict[str, str] = field(default_factory=dict)
    title: str = ""

    def name(self) -> str:
        if self.tag == "img":
            return self.attributes.get("alt", "")
        label = " ".join(self.texts.get(one, "") for one in self.attributes.get("aria-labelledby", "").split())
        return self.attributes.get("aria-label") or label.strip() or self.title


class File(HTMLParser):
    """What these tests want to know of a page, read once: every page asks for the ids of many others."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[tuple[str, str]] = []  # of what kind (a, img, script, stylesheet, ...), where to
        self.pictures: list[Picture] = []
        self.headings = 0  # <h1> in the article
        self.language = ""
        self.descriptions: list[str] = []
        self.previews = 0  # <meta property="og:title">
        self.open: list[tuple[str, str]] = []  # the tags that are open, with their ids
        self.drawing: Picture | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = {name: value or "" for name, value in attributes}
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "href" in found:
            self.targets.append((tag, found["href"]))
        if tag == "link" and "href" in found:
            self.targets.append((found["rel"].split()[0], found["href"]))
        if "src" in found:
            self.targets.append((tag, found["src"]))
        self.look(tag, found)
        if tag not in NO_END:
            self.open.append((tag, found.get("id", "")))

    def look(self, tag: str, found: dict[str, str]) -> None:
        if tag in ("img", "svg") and self.drawing is None:
            self.pictures.append(Picture(tag, found, self.in_article()))
            self.drawing = self.pictures[-1] if tag == "svg" else None
        self.headings += tag == "h1" and self.in_article()
        if tag == "html":
            self.language = found.get("lang", "")
        if tag == "meta" and found.get("name") == "description":
            self.descriptions.append(found["content"])
        self.previews += tag == "meta" and found.get("property") == "og:title"

    def in_article(self) -> bool:
        return any(one == "article" for one, _ in self.open)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in NO_END:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        # HTML lets an author leave some ends out: what is still open inside ends with it.
        opened = next((at for at in reversed(range(len(self.open))) if self.open[at][0] == tag), None)
        if opened is not None:
            del self.open[opened:]
        if tag == "svg" and not any(one == "svg" for one, _ in self.open):
            self.drawing = None

    def handle_data(self, data):
        if self.drawing is None:
            return
        inside = [one for one, _ in self.open]
        if inside[inside.index("svg") + 1 :] == ["title"]:
            self.drawing.title += data
        for _, name in self.open[inside.index("svg") :]:
            if name:
                self.drawing.texts[name] = self.drawing.texts.get(name, "") + data


@cache
def read(path: str) -> File:
    return File(PROGRAM.sub(lambda program: WORD.sub("", program[0]), (HTML / path).read_text("utf-8")))


@cache
def exists(path: str) -> bool:
    return (HTML / path).is_file()


def leads(path: str, target: str) -> str:
    """The path below HTML of what the page at `path` points to."""
    return str((HTML / path).parent.joinpath(target).resolve().relative_to(HTML.resolve()))


@each_part
def test_internal_links_resolve(paths):
    for path in paths:
        dead = []
        checked = 0
        for tag, target in dict.fromkeys(read(path).targets):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                assert url.scheme in ("https", "data"), (path, target)
                # test_pages.py proves that nothing is fetched; here, that nothing could be but on a click.
                assert tag in ("a", "canonical") or url.scheme == "data", (path, target)
                continue
            checked += 1
            file = leads(path, unquote(url.path)) if url.path else path
            anchored = url.fragment and file.endswith(".html")
            if not exists(file) or (anchored and unquote(url.fragment) not in ids(file)):
                dead.append(target)
        assert checked > 10, path
        assert dead == [], path


@cache
def ids(path: str) -> set[str]:
    return set(read(path).ids)


@each_part
def test_ids_are_unique(paths):
    for path in paths:
        assert [one for one, count in Counter(read(path).ids).items() if count > 1] == [], path
        assert read(path).ids, path


@each_part
def test_pictures_say_what_they_show(paths):
    for path, picture in [(one, picture) for one in paths for picture in read(one).pictures]:
        if picture.attributes.get("aria-hidden") == "true":
            continue
        if picture.tag == "svg":
            assert picture.attributes.get("role") == "img", f"{path}: a drawing without a role: {picture.attributes}"
        name = picture.name().strip()
        assert len(name) >= 10, f"{path}: no text for {picture.attributes}"
        assert not re.search(r"_images/|\.(png|svg|jpe?g|gif)$", name), f"{path}: {name}"


def test_the_book_has_pictures():
    assert sum(picture.in_article for path in PAGES for picture in read(path).pictures) >= 40


@pytest.mark.parametrize("name", sorted(PARTS.keys() - TOOLS))
def test_pages_describe_themselves(name):
    for path in PARTS[name]:
        page = read(path)
        assert page.headings == 1, path
        assert page.language == "en", path
        assert len(page.descriptions) == 1, path
        assert 40 <= len(page.descriptions[0]) <= 200, path
        assert page.previews, path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            '<img alt="A plan"><svg role="img"><title>A ring</title><g><title>inner</title></g></svg>',
            ["A plan", "A ring"],
        ),
        ('<svg aria-labelledby="a b"><g id="a">One</g><desc id="b">two</desc><svg></svg></svg><img>', ["One two", ""]),
        ('<svg aria-label="Said"><title>Other</title></svg><p>words<svg/>', ["Said", ""]),
    ],
)
def test_the_name_of_a_picture(text, names):
    assert [picture.name() for picture in File(text).pictures] == names

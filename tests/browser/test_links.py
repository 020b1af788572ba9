"""The files themselves: every internal link and anchor resolves, every id is unique, every picture has a text.

No browser is needed. All files are read in one process, once each, since a page's links lead to most others. A page of
an author has its own tests; those of the reference, hundreds that one template makes, have tests together.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise, takewhile
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

import pytest
from browser.book import HTML, pages
from browser.elements import Element, elements

PAGES = pages()
LISTINGS = [path for path in PAGES if path.startswith("reference/")]
# By a name without ".html": a name with it would say that the test wants the page open in the browser.
PARTS = {path.removesuffix(".html"): [path] for path in PAGES if path not in LISTINGS} | {"reference/": LISTINGS}
TOOLS = {"search", "genindex"}  # no author describes them
each_part = pytest.mark.parametrize("paths", PARTS.values(), ids=PARTS)
# In a program, every word has a color. Of hundreds of thousands of such elements, these tests ask nothing.
PROGRAM, WORD = re.compile(r"<pre>.*?</pre>", re.S), re.compile(r'<span class="[^"]*">|</span>')
# Attributes that name other elements of the page.
NAMING = {"aria-labelledby", "aria-describedby", "aria-controls", "for", "list"}
FIELDS = {"input", "select", "textarea"}


@dataclass(frozen=True)
class Picture:
    """An <img> or the outermost <svg>, and what it is called."""

    attributes: dict[str, str]
    is_drawing: bool
    in_article: bool
    name: str


def picture(one: Element, inside: list[Element]) -> Picture:
    said = one.attributes
    if one.tag == "img":
        name = said.get("alt", "")
    else:
        texts = {other.attributes["id"]: other.words for other in inside if "id" in other.attributes}
        label = " ".join(texts.get(part, "") for part in said.get("aria-labelledby", "").split())
        title = next((other.words for other in inside if other.tag == "title" and other.around is one), "")
        name = said.get("aria-label") or label.strip() or title
    return Picture(said, one.tag == "svg", one.within("article"), name)


class File:
    """What these tests want to know of a page, read once: every page asks for the ids of many others."""

    def __init__(self, text: str):
        found = elements(PROGRAM.sub(lambda program: WORD.sub("", program[0]), text))
        self.ids = [one.attributes["id"] for one in found if "id" in one.attributes]
        self.named = {
            part for one in found for name in NAMING & one.attributes.keys() for part in one.attributes[name].split()
        }
        # Of what kind (a, img, script, stylesheet, ...), where to.
        self.targets = [
            (one.tag, one.attributes["href"]) for one in found if one.tag == "a" and "href" in one.attributes
        ]
        self.targets += [
            (one.attributes["rel"].split()[0], one.attributes["href"]) for one in found if one.tag == "link"
        ]
        self.targets += [(one.tag, one.attributes["src"]) for one in found if "src" in one.attributes]
        self.pictures = []
        for at, one in enumerate(found):
            if one.tag == "img" or (one.tag == "svg" and not one.within("svg")):
                inside = takewhile(lambda other, end=one.end: other.begin < end, islice(found, at + 1, None))
                self.pictures.append(picture(one, list(inside)))
        self.headings = [int(one.tag[1]) for one in found if re.fullmatch("h[1-6]", one.tag) and one.within("article")]
        labels = {one.attributes.get("for") for one in found if one.tag == "label"}
        self.nameless = [
            one.own_tag
            for one in found
            if one.tag in FIELDS
            and one.attributes.get("type") != "hidden"
            and not one.within("label")
            and not {"aria-label", "aria-labelledby"} & one.attributes.keys()
            and one.attributes.get("id") not in labels
        ]
        self.language = next((one.attributes.get("lang") for one in found if one.tag == "html"), None)
        metas = [one.attributes for one in found if one.tag == "meta"]
        self.descriptions = [meta["content"] for meta in metas if meta.get("name") == "description"]
        self.previews = sum(meta.get("property") == "og:title" for meta in metas)


@cache
def read(path: str) -> File:
    return File((HTML / path).read_text("utf-8"))


@cache
def exists(path: str) -> bool:
    return not path.startswith("..") and (HTML / path).is_file()


def leads(path: str, target: str) -> str:
    """The path below HTML of what the page at `path` points to."""
    return normpath(join(dirname(path), target))


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
def test_what_is_named_by_another_is_there(paths):
    """What a label is for, what describes an element or is worked by it. And no field is without a name."""
    for path in paths:
        assert read(path).named - ids(path) == set(), path
        assert read(path).nameless == [], path


@each_part
def test_no_heading_skips_a_level(paths):
    for path in paths:
        assert [two for two in pairwise(read(path).headings) if two[1] > two[0] + 1] == [], path


def test_what_has_no_name_is_found():
    page = File("""<label for=a>A</label><input id=a><input id=b><label><input></label><select aria-label=c></select>
        <p aria-labelledby="b d">""")
    assert page.nameless == ["<input id=b>"]
    assert page.named - set(page.ids) == {"d"}


@each_part
def test_pictures_say_what_they_show(paths):
    for path, picture in [(one, picture) for one in paths for picture in read(one).pictures]:
        if picture.attributes.get("aria-hidden") == "true":
            continue
        if picture.is_drawing:
            assert picture.attributes.get("role") == "img", f"{path}: a drawing without a role: {picture.attributes}"
        name = picture.name.strip()
        assert len(name) >= 10, f"{path}: no text for {picture.attributes}"
        assert not re.search(r"_images/|\.(png|svg|jpe?g|gif)$", name), f"{path}: {name}"


def test_the_book_has_pictures():
    assert sum(picture.in_article for path in PAGES for picture in read(path).pictures) >= 40


@pytest.mark.parametrize("name", sorted(PARTS.keys() - TOOLS))
def test_pages_describe_themselves(name):
    for path in PARTS[name]:
        page = read(path)
        assert page.headings.count(1) == 1, path
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
    assert [picture.name for picture in File(text).pictures] == names

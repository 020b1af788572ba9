"""The built book as the browser tests see it: its pages, and everything that goes wrong on one of them."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page

HTML = Path(__file__).resolve().parents[2] / "_build" / "html"
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
# A page of each kind: the root, a chapter, one with a script of its own, one without a source, a module of the
# reference.
KINDS = [
    "intro.html",
    "chapters/tensor_parallelism.html",
    "folklore_checked.html",
    "search.html",
    "reference/lib.devices.group.html",
]


@cache
def pages() -> list[str]:
    """Every page, as a path below _build/html. Not in _static, whose .html files are templates of the theme."""
    if not (HTML / "index.html").exists():
        raise FileNotFoundError("the book is not built: run `make book`, or `make test`, which builds it first")
    found = (path.relative_to(HTML) for path in HTML.rglob("*.html"))
    return sorted(str(path) for path in found if path.parts[0] != "_static" and str(path) != "index.html")


def one_of_each() -> list[str]:
    """All pages but those of the reference's modules, of which the longest stands for all: one template makes them."""
    listings = [path for path in pages() if path.startswith("reference/")]
    longest = max(listings, key=lambda path: (HTML / path).stat().st_size)
    return [path for path in pages() if path not in listings or path == longest]


@dataclass
class Opened:
    page: Page
    foreign: list[str] = field(default_factory=list)  # requests to another host, none of which gets out
    problems: list[str] = field(default_factory=list)  # console errors and warnings, exceptions, failed requests
    responses: list = field(default_factory=list)
    listeners: dict = field(default_factory=dict, repr=False)

    def clean(self) -> None:
        assert self.foreign == [], self.foreign
        assert self.problems == [], self.problems


def open_page(browser: Browser, url: str, viewport=None, scheme="light", text=None, **context) -> Opened:
    """Open `url` in a fresh context, and record what happens. The browser itself finds no host but this machine.

    With `text`, the page is this one, as broken on purpose.
    """
    return go_to(Opened(new_page(browser, viewport, scheme, **context)), url, text)


def new_page(browser: Browser, viewport=None, scheme="light", **context) -> Page:
    return browser.new_context(viewport=viewport or DESK, color_scheme=scheme, **context).new_page()


def go_to(opened: Opened, url: str, text: str | None = None) -> Opened:
    """The page leaves where it was, and from now on what happens on it is recorded in `opened`."""
    home = urlsplit(url)
    if text is not None:
        opened.page.route(url, lambda route: route.fulfill(body=text, content_type="text/html; charset=utf-8"))

    def asked(request):
        target = urlsplit(request.url)
        if target.scheme not in ("data", "blob") and (target.scheme, target.netloc) != (home.scheme, home.netloc):
            opened.foreign.append(request.url)

    def console(message):
        if message.type in ("error", "warning", "assert"):
            opened.problems.append(f"console {message.type}: {message.text} ({message.location.get('url')})")

    opened.listeners = {
        "request": asked,
        "console": console,
        "pageerror": lambda error: opened.problems.append(f"exception: {error}"),
        "requestfailed": lambda request: opened.problems.append(f"failed: {request.url}"),
        "response": lambda response: opened.responses.append(response),
        "websocket": lambda socket: opened.foreign.append(socket.url),
    }
    for event, listener in opened.listeners.items():
        opened.page.on(event, listener)
    opened.page.goto(url, wait_until="load")
    return opened


def leave(opened: Opened) -> Page:
    """Nobody listens any more; the page is free for another visit."""
    for event, listener in opened.listeners.items():
        opened.page.remove_listener(event, listener)
    return opened.page


def close(opened: Opened) -> None:
    opened.page.context.close()

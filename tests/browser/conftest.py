import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser.book import DESK, HTML, PHONE, Opened, close, go_to, leave, new_page, open_page

FOLDER = "/book/"
# The window has its new width, the page has heard of it and is laid out anew, and what glides into its place is there.
SIZED = """async (width) => innerWidth === width
    && await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))
    && document.getAnimations().every((one) => one.playState !== "running")"""


@pytest.hookimpl(tryfirst=True)  # before tests are grouped by page, which keeps their order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what is asked of a page on the desk, then what on the phone: it takes up the phone's look once."""
    items.sort(key=lambda item: "phone" in getattr(item, "fixturenames", ()))


class Handler(SimpleHTTPRequestHandler):
    """A site in a folder of its host, as it is published: an address that begins at the host's root leads nowhere."""

    protocol_version = "HTTP/1.1"  # a page's files come through one connection

    def translate_path(self, path):
        inside = path.startswith(FOLDER)
        return super().translate_path(path.removeprefix(FOLDER.rstrip("/")) if inside else "/no-such-folder")

    def end_headers(self):
        if "/_static/" in self.path:  # kept for the next pages, as by any host
            self.send_header("Cache-Control", "max-age=600")
        super().end_headers()

    def log_message(self, *args):
        """Nothing: the test's own report says what failed."""


@pytest.fixture(scope="session")
def site():
    """The built book on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{FOLDER}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def guests(browser):
    """A tab for readers who come over http and ask for nothing special: a new context would start new processes."""
    page = new_page(browser)
    yield page
    page.context.close()


@pytest.fixture
def visit(browser, site, guests):
    """`visit(path)`: a page of the book, opened by a reader who was never here, and who goes after the test."""
    own, at_the_tab = [], []

    def go(path: str, base: str = site, text: str | None = None, viewport=DESK, **options):
        if options or base != site or at_the_tab:
            own.append(open_page(browser, base + path, text=text, viewport=viewport, **options))
            return own[-1]
        guests.set_viewport_size(viewport)
        at_the_tab.append(Opened(guests))
        return go_to(at_the_tab[0], base + path, text)

    yield go
    for one in own:
        close(one)
    for one in at_the_tab:
        leave(one)
        guests.unroute_all()
        guests.goto(f"{site}_static/favicon.svg")
        guests.evaluate("localStorage.clear(), sessionStorage.clear()")
        guests.emulate_media(color_scheme="light")
        guests.mouse.move(0, 0)


class Shared:
    """A page opened once, and open while the next tests ask about the same page, in the look that they ask for.

    Each test leaves it as a reader may: folded parts open, widgets in any state. It stays on the page. The next page
    is opened in the same tab, as a reader does it: a new context costs as much again as the page. Nothing glides into
    its place, as for a reader who asked for reduced motion: tests would wait for it.
    """

    def __init__(self, browser, base: str, **options):
        self.browser, self.base, self.options = browser, base, options
        self.path: str | None = None
        self.look: tuple | None = None
        self.opened: Opened | None = None

    def __call__(self, path: str, viewport=DESK, scheme: str = "light") -> Opened:
        if self.opened is None:
            self.opened = Opened(new_page(self.browser, reduced_motion="reduce", **self.options))
        page = self.opened.page
        if (path, viewport, scheme) != (self.path, *(self.look or ())):
            page.mouse.move(0, 0)  # else it is where the last test left it, over something of the page that comes
        if (viewport, scheme) != self.look:
            page.set_viewport_size(viewport)
            page.emulate_media(color_scheme=scheme)
            self.look = viewport, scheme
            if path == self.path:
                page.wait_for_function(SIZED, arg=viewport["width"])
        if path != self.path:
            self.opened, self.path = Opened(leave(self.opened)), None
            go_to(self.opened, self.base + path)
            self.path = path
        return self.opened

    def close(self) -> None:
        if self.opened is not None:
            close(self.opened)


@pytest.fixture(scope="session")
def tab(browser, site):
    shared = Shared(browser, site)
    yield shared
    shared.close()


@pytest.fixture
def desk(tab):
    """`desk(path)`: the page on a wide screen, light."""
    return tab


@pytest.fixture
def phone(tab):
    """`phone(path)`: the page in a window as narrow as a phone's, dark."""
    return partial(tab, viewport=PHONE, scheme="dark")


@pytest.fixture(scope="session")
def scriptless(browser, site):
    """`scriptless(path)`: the page in a browser that runs no JavaScript."""
    shared = Shared(browser, site, java_script_enabled=False)
    yield shared
    shared.close()

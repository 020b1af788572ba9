import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser.book import DESK, HTML, PHONE, Opened, close, go_to, leave, new_page, open_page


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Nothing: the test's own report says what failed."""


@pytest.fixture(scope="session")
def site():
    """The built book on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser, site):
    """`visit(path)` opens a page of the book over http in a context of its own, which is closed after the test."""
    opened = []

    def go(path: str, base: str = site, **options):
        opened.append(open_page(browser, base + path, **options))
        return opened[-1]

    yield go
    for one in opened:
        close(one)


class Shared:
    """A page in one look, opened once, and open while the next tests ask about the same page.

    Each test leaves it as a reader may: folded parts open, widgets in any state. It stays on the page. The next page
    is opened in the same tab, as a reader does it: a new context costs as much again as the page.
    """

    def __init__(self, browser, base: str, **look):
        self.browser, self.base, self.look = browser, base, look
        self.path: str | None = None
        self.opened: Opened | None = None

    def __call__(self, path: str) -> Opened:
        if path != self.path:
            page = leave(self.opened) if self.opened else new_page(self.browser, **self.look)
            page.mouse.move(0, 0)  # else the mouse is where the last page's test left it, over something of this one
            self.opened, self.path = Opened(page), None
            go_to(self.opened, self.base + path)
            self.path = path
        return self.opened

    def close(self) -> None:
        if self.opened is not None:
            close(self.opened)


@pytest.fixture(scope="session")
def desk(browser, site):
    """`desk(path)`: the page on a wide screen, light, over http."""
    shared = Shared(browser, site, viewport=DESK)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def phone(browser):
    """`phone(path)`: the page on a phone, dark, from the disk."""
    shared = Shared(browser, HTML.as_uri() + "/", viewport=PHONE, scheme="dark", has_touch=True)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def scriptless(browser, site):
    """`scriptless(path)`: the page in a browser that runs no JavaScript."""
    shared = Shared(browser, site, java_script_enabled=False)
    yield shared
    shared.close()

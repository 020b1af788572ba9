import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser.book import HTML, close, open_page


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
    """`visit(path)` opens a page of the book over http; what it opened is closed after the test."""
    opened = []

    def go(path: str, base: str = site, **options):
        opened.append(open_page(browser, base + path, **options))
        return opened[-1]

    yield go
    for one in opened:
        close(one)

import pytest
from browser.obtain import FLAGS, obtain
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests of a worker process: Playwright allows no second one beside it."""
    path = obtain()  # before Playwright starts here: obtain may ask it too
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()

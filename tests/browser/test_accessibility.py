"""axe-core on every page: light, dark, and at phone width. In a file of its own, because it takes longest."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.book import DESK, PHONE, pages

LIGHT, DARK, SMALL, SMALL_DARK = ("light", DESK), ("dark", DESK), ("light", PHONE), ("dark", PHONE)


def looks(path: str) -> list[tuple]:
    """The listings of lib's source are long and all alike: two looks see both schemes and both widths."""
    return [LIGHT, SMALL_DARK] if path.startswith("_modules/") else [LIGHT, DARK, SMALL]


@pytest.mark.parametrize("path", pages())
def test_axe_finds_nothing(visit, path):
    broken = []
    for scheme, viewport in looks(path):
        page = visit(path, scheme=scheme, viewport=viewport).page
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        # What is folded away must be accessible when it is opened.
        page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
        result = Axe().run(page).response
        assert result["passes"], "axe ran no rule"
        broken += [
            f"{scheme} {viewport['width']}: {rule['id']}: {node['html'][:200]} {node['failureSummary']}"
            for rule in result["violations"]
            for node in rule["nodes"]
        ]
    assert broken == []

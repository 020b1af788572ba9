"""What axe-core has to say about one page in several looks: (color scheme, viewport)."""

from axe_playwright_python.sync_playwright import Axe
from browser.book import DESK, PHONE

LIGHT, DARK, SMALL, SMALL_DARK = ("light", DESK), ("dark", DESK), ("light", PHONE), ("dark", PHONE)


def violations(visit, path: str, *looks, contrast: bool = True) -> list[str]:
    # Without resultTypes, axe hands over megabytes about what is well.
    options = {"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": contrast}}}
    found = []
    for scheme, viewport in looks:
        page = visit(path, scheme=scheme, viewport=viewport).page
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        # What is folded away must be accessible when it is opened.
        page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
        page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
        result = Axe().run(page, options=options).response
        assert result["passes"], "axe ran no rule"
        found += [
            f"{scheme} {viewport['width']}: {rule['id']}: {node['html'][:200]} {node['failureSummary']}"
            for rule in result["violations"]
            for node in rule["nodes"]
        ]
    return found

"""axe-core on every page that an author wrote: light, dark, and at phone width."""

import pytest
from browser.accessibility import DARK, LIGHT, SMALL, violations
from browser.book import pages


@pytest.mark.parametrize("path", [path for path in pages() if not path.startswith("reference/")])
def test_axe_finds_nothing(visit, path):
    assert violations(visit, path, LIGHT, DARK, SMALL) == []

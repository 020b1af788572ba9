"""axe-core on the listings of lib's source. A file of its own, so that it runs beside the other pages' tests."""

import pytest
from browser.accessibility import LIGHT, SMALL_DARK, violations
from browser.book import HTML, pages

LISTINGS = [path for path in pages() if path.startswith("_modules/")]
SHORTEST, *_, LONGEST = sorted(LISTINGS, key=lambda path: (HTML / path).stat().st_size)


@pytest.mark.parametrize("path", [LONGEST, SHORTEST])
def test_axe_finds_nothing(visit, path):
    # The listings are made alike by one tool from one kind of text: the longest and the shortest stand for all.
    assert violations(visit, path, LIGHT, SMALL_DARK) == []

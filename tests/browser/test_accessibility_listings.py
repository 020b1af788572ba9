"""axe-core on the listings of lib's source. A file of its own, so that it runs beside the other pages' tests."""

import pytest
from browser.accessibility import LIGHT, SMALL_DARK, violations
from browser.book import HTML, pages

LISTINGS = [path for path in pages() if path.startswith("_modules/")]
LONGEST = max(LISTINGS, key=lambda path: (HTML / path).stat().st_size)


@pytest.mark.parametrize("path", LISTINGS)
def test_axe_finds_nothing(visit, path):
    # The listings are all alike: two looks see both schemes and both widths, and the contrast of thousands of colored
    # words, which takes most of the time, is measured on the longest.
    assert violations(visit, path, LIGHT, SMALL_DARK, contrast=path == LONGEST) == []

"""axe-core on the pages of the reference's modules. A file of its own, so that it runs beside the others."""

import pytest
from browser.accessibility import LIGHT, SMALL_DARK, violations
from browser.book import HTML, pages

LISTINGS = [path for path in pages() if path.startswith("reference/")]
SHORTEST, *_, LONGEST = sorted(LISTINGS, key=lambda path: (HTML / path).stat().st_size)


@pytest.mark.parametrize("path", [LONGEST, SHORTEST])
def test_axe_finds_nothing(visit, path):
    # They are made alike by one tool from one kind of text: the longest and the shortest stand for all.
    assert violations(visit, path, LIGHT, SMALL_DARK) == []

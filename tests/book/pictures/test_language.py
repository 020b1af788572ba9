"""The palette: readable on paper and on every device's color, in light and in dark."""

from itertools import combinations

import pytest

from book.pictures.kit.language import (
    DARK_INK,
    DARK_PAPER,
    LIGHT_INK,
    LIGHT_PAPER,
    PALETTE,
    contrast,
    mix,
    paint,
)

JUPYTER_DARK = "#111111"


def test_contrast_is_wcag():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.01)
    assert contrast("#FF0000", "#FF0000") == 1


@pytest.mark.parametrize(("fill", "text", "light", "dark"), PALETTE)
def test_device_colors(fill, text, light, dark):
    assert contrast(text, fill) >= 4.5
    assert contrast(light, LIGHT_PAPER) >= 4.5
    assert min(contrast(dark, DARK_PAPER), contrast(dark, JUPYTER_DARK)) >= 4.5
    # A filled shard stands out from the paper by its fill, or else by its edge.
    assert max(contrast(fill, LIGHT_PAPER), contrast(light, LIGHT_PAPER)) >= 3
    assert max(contrast(fill, DARK_PAPER), contrast(dark, DARK_PAPER)) >= 3


def test_text_on_paper():
    assert contrast(LIGHT_INK, LIGHT_PAPER) >= 7
    assert contrast(DARK_INK, DARK_PAPER) >= 7


@pytest.mark.parametrize("rank", range(8, 64))
def test_shades_keep_text_readable_and_differ_from_their_hue(rank):
    p, base = paint(rank), PALETTE[rank % 8][0]
    assert contrast(p.text, p.fill) >= 4.5
    assert p.fill != base
    assert p.ink == paint(rank % 8).ink


def test_first_24_devices_have_their_own_color():
    assert len({paint(rank).fill for rank in range(24)}) == 24


# How a viewer without green (deuteranopia) or red cones (protanopia) sees linear RGB: Viénot, Brettel, Mollon 1999.
DICHROMATS = {
    "deuteranopia": ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
    "protanopia": ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
}


@pytest.mark.parametrize("kind", DICHROMATS)
def test_devices_differ_for_color_blind_readers(kind):
    def seen(color):
        rgb = [(int(color[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
        shown = [max(0, sum(w * c for w, c in zip(row, rgb, strict=True))) for row in DICHROMATS[kind]]
        return [255 * c ** (1 / 2.2) for c in shown]

    for (a, *_), (b, *_) in combinations(PALETTE, 2):
        assert sum((x - y) ** 2 for x, y in zip(seen(a), seen(b), strict=True)) ** 0.5 > 25, (a, b)


def test_mix():
    assert mix("#000000", "#FFFFFF", 0.5) == "#808080"
    assert mix("#123456", "#FFFFFF", 0) == "#123456"

"""The visual language: one color per device, one look per placement, the same in every figure of the book.

Sharded data is FILLED with its owner's color. Replicated data is OUTLINED in each holder's color. Partial
sums are HATCHED in their holder's color. Communication is an ARROW. Color is never the only signal: labels
carry the rank and the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

# fill, text on the fill, ink on light paper, ink on dark paper. The hues are Okabe and Ito's color-blind-safe
# set. Where the original is too pale for a line or a label on paper (yellow: 1.3 to 1), the ink is the same
# hue at a readable depth; green and vermillion are a little darker than the original so that white text
# stands on them. The order alternates dark and light, so neighboring ranks also differ in gray.
PALETTE = (
    ("#0072B2", "#FFFFFF", "#00659E", "#5BB2E8"),  # blue
    ("#E69F00", "#1A1A1A", "#8A5A00", "#F0B030"),  # orange
    ("#00825F", "#FFFFFF", "#007455", "#35C49B"),  # green
    ("#CC79A7", "#1A1A1A", "#A0447A", "#E3A0C4"),  # pink
    ("#56B4E9", "#1A1A1A", "#1A6C9C", "#86CDF3"),  # sky
    ("#B84E00", "#FFFFFF", "#A34500", "#F59256"),  # vermillion
    ("#F0E442", "#1A1A1A", "#6B6300", "#F0E442"),  # yellow
    ("#44484D", "#FFFFFF", "#50555B", "#B4BAC2"),  # gray: near Okabe and Ito's black
)
COLORS = len(PALETTE)
LIGHT_PAPER, DARK_PAPER = "#FFFFFF", "#14181E"
LIGHT_INK, DARK_INK = "#1B1F24", "#E6E9ED"

_DARK = "".join(f"--omd-ink-{i}:{dark};" for i, (_, _, _, dark) in enumerate(PALETTE)) + f"--omd-paper:{DARK_PAPER}"

# Every use in a drawing has the light value as its fallback, so only the dark page needs rules. They define
# variables and nothing else: harmless if a page carries them twice. (book; JupyterLab; VS Code)
THEME_CSS = f"html[data-theme=dark],[data-jp-theme-light=false],[data-vscode-theme-kind$=dark]{{{_DARK}}}"

# For files: `svg:root` is the outermost element of a file and never matches inside a page.
STANDALONE_CSS = (
    "svg:root{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;"
    f"color:{LIGHT_INK};background:{LIGHT_PAPER}}}"
    f"@media(prefers-color-scheme:dark){{svg:root{{color:{DARK_INK};background:{DARK_PAPER};{_DARK}}}"
    f"svg:root>.omd-paper{{fill:{DARK_PAPER}}}}}"
)
PAPER = f"var(--omd-paper,{LIGHT_PAPER})"


@dataclass(frozen=True)
class Paint:
    """What one device is drawn with, as CSS values with their fallback: `fill`, `text` on it, `ink` for
    lines."""

    fill: str
    text: str
    ink: str


def paint(rank: int) -> Paint:
    """The colors of device `rank`. From rank 8 on the hues return in a lighter, then a darker shade."""
    if rank < 0:
        raise ValueError(f"rank {rank} has no color: ranks start at 0")
    index, shade = rank % COLORS, rank // COLORS
    fill, text, ink, _ = PALETTE[index]
    ink = f"var(--omd-ink-{index},{ink})"
    if shade == 0:
        return Paint(f"var(--omd-device-{index},{fill})", f"var(--omd-on-device-{index},{text})", ink)
    toward, share = ("#FFFFFF", 0.55) if shade % 2 else ("#000000", 0.5)
    mixed = mix(fill, toward, share)
    return Paint(mixed, max("#FFFFFF", "#1A1A1A", key=lambda color: contrast(color, mixed)), ink)


def mix(color: str, other: str, share: float) -> str:
    """`color` moved toward `other` by `share` in [0, 1], both "#RRGGBB"."""
    channels = zip(_channels(color), _channels(other), strict=True)
    return "#" + "".join(f"{round(a * (1 - share) + b * share):02X}" for a, b in channels)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two "#RRGGBB" colors, from 1 to 21 (text needs 4.5, lines 3)."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(color))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)

"""How the reader sees it: pictures of tensors on devices, and pictures with controls."""

from lib.show.bars import draw_bars
from lib.show.draw import draw_tensor
from lib.show.explore import Exploration, explore
from lib.show.language import paint
from lib.show.matmul import draw_matmul
from lib.show.source import Source, show_source
from lib.show.svg import Picture, element, stack

__all__ = [
    "Exploration",
    "Picture",
    "Source",
    "draw_bars",
    "draw_matmul",
    "draw_tensor",
    "element",
    "explore",
    "paint",
    "show_source",
    "stack",
]

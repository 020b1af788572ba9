"""The legend: what filled, outlined and hatched mean, the same words under every picture."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from book.pictures.kit.blocks import arrow, label, stripes
from book.pictures.kit.svg import LOCAL_ID, element

MEANING = {
    "sharded": "shard: one device's part",
    "replicated": "replica: a whole copy",
    "partial": "partial sum: to be added",
    "arrow": "communication",
}


def legend(x: float, y: float, looks: Sequence[str], width: float = 464) -> tuple[list[Element], float]:
    """What the looks mean, two to a line, in the neutral text color. Returns the elements and their
    height."""
    drawn: list[Element] = []
    for i, look in enumerate(looks):
        left, middle = x + (i % 2) * width / 2, y + 11 + 22 * (i // 2)
        style = {"fill": "none", "stroke_width": 2}
        if look == "sharded":
            style = {"fill_opacity": ".55"}
        if look == "partial":
            style = {"fill": f"url(#{LOCAL_ID}legend)"}
            drawn.append(element("defs", stripes("legend", "currentColor")))
        if look == "arrow":
            drawn.append(arrow((left, middle), (left + 24, middle)))
        else:
            drawn.append(element("rect", x=left, y=middle - 7, width=24, height=14, stroke="currentColor", **style))
        drawn.append(label(left + 32, middle + 4.5, MEANING[look]))
    return drawn, 22 * ((len(looks) + 1) // 2)

"""SVG as data: a tiny element builder, and `Picture`, a drawing that can say what it shows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element, tostring

from book.pictures.kit.language import STANDALONE_CSS, THEME_CSS

# Ids inside a drawing are written with this prefix; `Picture` replaces it by a hash of its content, so that
# two different pictures on one page never share an id and the same picture always has the same bytes.
LOCAL_ID = "omd-local-"


def element(tag: str, *children: Element | str | None, **attributes: object) -> Element:
    """One SVG element. `stroke_width=2` becomes `stroke-width="2"`; an attribute or child that is None is
    left out.

    A string child is text, so `<` and `&` need no care: ElementTree escapes on the way out, nobody else does.
    """
    node = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            node.set(name.rstrip("_").replace("_", "-"), number(value) if isinstance(value, float) else str(value))
    for child in children:
        if isinstance(child, str):
            node.text = (node.text or "") + child
        elif child is not None:
            node.append(child)
    return node


def number(value: float) -> str:
    """The shortest text of a coordinate, to a tenth of a pixel: 12.0 -> "12", 0.25 -> "0.2"."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def to_text(node: Element) -> str:
    # " />" can only be the end of an empty tag: ElementTree writes ">" inside text and attributes as "&gt;".
    return tostring(node, encoding="unicode").replace(" />", "/>")


@dataclass(frozen=True)
class Picture:
    """A finished drawing, `width` x `height` in its own units (about CSS pixels; it scales to its container).

    `title` names it in a few words, `desc` says in full sentences what it shows: both are computed from the
    same data as the shapes, are read by screen readers, and are what a text-only reader gets.
    """

    width: float
    height: float
    title: str
    desc: str
    body: list[Element] = field(repr=False)

    def svg(self) -> str:
        """The `<svg>` element for inlining in a page: it follows the page's colors, dark or light."""
        return to_text(self._root())

    def standalone(self) -> str:
        """The same drawing as a file of its own: it brings its background and follows the system's dark
        mode."""
        root = self._root()
        # Drawn explicitly: a viewer that ignores CSS backgrounds must not show dark lines on a dark desktop.
        root.insert(2, element("rect", class_="omd-paper", width="100%", height="100%", fill="#fff"))
        root.insert(2, element("style", STANDALONE_CSS))
        return to_text(root) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the standalone file (UTF-8, the same bytes for the same picture)."""
        Path(path).write_text(self.standalone(), encoding="utf-8", newline="\n")

    def data_uri(self) -> str:
        """The standalone drawing as an address for `<img src>`, for places that strip inline SVG."""
        return "data:image/svg+xml," + quote(self.standalone().strip(), safe=" '()*!,;:=/-._~?@&+[]")

    def _root(self) -> Element:
        content = "".join(map(to_text, self.body))
        seed = f"{self.width}|{self.height}|{self.title}|{self.desc}|{content}"
        uid = f"omd-{hashlib.sha256(seed.encode()).hexdigest()[:8]}-"
        return element(
            "svg",
            element("title", self.title, id=f"{uid}t"),
            element("desc", self.desc, id=f"{uid}d"),
            *[_with_ids(node, uid) for node in self.body],
            xmlns="http://www.w3.org/2000/svg",
            class_="omd-picture",
            role="img",
            aria_labelledby=f"{uid}t {uid}d",
            viewBox=f"0 0 {number(self.width)} {number(self.height)}",
            # A little larger than drawn where there is room, never wider than the column.
            style=f"display:block;width:100%;max-width:{number(round(self.width * 1.2))}px;height:auto",
            font_size=13,
            fill="currentColor",
        )

    def _repr_html_(self) -> str:
        return f"<style>{THEME_CSS}</style>{self.svg()}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self._repr_html_(), "text/plain": f"{self.title}\n{self.desc}"}


def stack(title: str, *pictures: Picture) -> Picture:
    """One picture of several, one under the other: before and after, or the cases of one idea."""
    body, y, known = [], 0.0, set()
    for picture in pictures:
        parts = [node for node in picture.body if node.tag != "defs" or not _all_known(node, known)]
        body.append(element("g", *parts, transform=f"translate(0 {number(y)})"))
        y += picture.height + 12
    return Picture(max(p.width for p in pictures), y - 12, title, " ".join(p.desc for p in pictures), body)


def _all_known(defs: Element, known: set[str]) -> bool:
    """Whether everything that `defs` defines was defined before; takes note of it."""
    ids = {child.get("id") for child in defs}
    new = ids - known
    known |= ids
    return not new


def _with_ids(node: Element, uid: str) -> Element:
    """A copy of `node` whose local ids, and the references to them, carry the picture's hash."""
    copy = Element(node.tag, {k: v.replace(LOCAL_ID, uid) for k, v in node.attrib.items()})
    copy.text, copy.tail = node.text, node.tail
    copy.extend(_with_ids(child, uid) for child in node)
    return copy

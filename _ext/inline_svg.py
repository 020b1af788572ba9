"""Figures become part of the page.

``![alt](../figures/x.svg)`` stays ordinary Markdown, so GitHub and JupyterLab show it; in the built book the
file's text replaces the ``<img>``, because only then can ``currentColor`` and CSS variables follow dark mode.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)


def inline(text: str, prefix: str, alt: str) -> str:
    """The SVG as an accessible image whose ids cannot meet those of another figure on the page."""
    root = ElementTree.fromstring(text)
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{prefix}-{value}")
            elif value.startswith("#") and value[1:] in ids:
                element.set(name, f"#{prefix}-{value[1:]}")
            elif name in ("aria-labelledby", "aria-describedby"):
                element.set(name, " ".join(f"{prefix}-{one}" for one in value.split()))
            else:
                element.set(name, re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", value))
    if alt:
        root.attrib.pop("aria-labelledby", None)
        root.set("aria-label", alt)
    root.set("role", "img")
    root.set("class", (root.get("class", "") + " book-figure").strip())
    width = root.attrib.pop("width", None) or root.get("viewBox", "0 0 720 0").split()[2]
    root.attrib.pop("height", None)  # the viewBox keeps the proportions at every width
    root.set("style", f"--figure-width: {float(re.sub('[a-z]+$', '', width)):g}px")
    return ElementTree.tostring(root, encoding="unicode")


class InlineFigures(SphinxPostTransform):
    """Runs before Sphinx copies images, so that an inlined file is not copied as well."""

    default_priority = 5
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for count, image in enumerate(list(self.document.findall(nodes.image))):
            path = Path(image["uri"])
            if path.suffix != ".svg" or path.parts[0] != "figures":
                continue
            alt = image.get("alt", "").strip()
            if not alt:
                logger.warning("figure without alt text: %s", path, location=image)
            try:
                svg = inline((Path(self.app.srcdir) / path).read_text("utf-8"), f"fig{count}", alt)
            except ElementTree.ParseError as error:
                logger.warning("%s is not well-formed: %s", path, error, location=image)
                continue
            raw = nodes.raw("", f'<div class="book-figure-box">{svg}</div>', format="html")
            if isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1:
                image.parent.replace_self(raw)
            else:
                image.replace_self(raw)


def setup(app):
    app.add_post_transform(InlineFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

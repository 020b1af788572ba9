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

from book.pictures.kit.language import THEME_CSS

logger = logging.getLogger(__name__)
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)


def inline(text: str, prefix: str, alt: str) -> str:
    """The SVG as an accessible image whose ids cannot meet those of another figure on the page."""
    root = ElementTree.fromstring(text)
    # As a file the drawing brings its paper and its colors; in the page it takes those of the page.
    for element in list(root):
        if element.tag == f"{{{SVG}}}style" or element.get("class") == "omd-paper":
            root.remove(element)
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
    limit = re.search(r"max-width: *([\d.]+)px", root.get("style", ""))
    width = limit[1] if limit else root.get("viewBox").split()[2]
    for name in ("width", "height"):  # the viewBox keeps the proportions at every width
        root.attrib.pop(name, None)
    root.set("style", f"--figure-width: {float(width):g}px")
    return ElementTree.tostring(root, encoding="unicode")


class InlineFigures(SphinxPostTransform):
    """Runs before Sphinx copies images, so that an inlined file is not copied as well."""

    default_priority = 5
    formats = ("html",)

    def run(self, **kwargs) -> None:
        figures = [image for image in self.document.findall(nodes.image) if re.match(r"figures/.*\.svg$", image["uri"])]
        for count, image in enumerate(figures):
            path = Path(image["uri"])
            alt = image.get("alt", "").strip()
            if not alt:
                logger.warning("figure without alt text: %s", path, location=image)
            try:
                svg = inline((Path(self.app.srcdir) / path).read_text("utf-8"), f"fig{count}", alt)
            except ElementTree.ParseError as error:
                logger.warning("%s is not well-formed: %s", path, error, location=image)
                continue
            colors = "" if count else f"<style>{THEME_CSS}</style>"
            raw = nodes.raw("", f'{colors}<div class="book-figure-box">{svg}</div>', format="html")
            if isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1:
                image.parent.replace_self(raw)
            else:
                image.replace_self(raw)


def setup(app):
    app.add_post_transform(InlineFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

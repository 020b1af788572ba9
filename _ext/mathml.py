"""Math as MathML, converted when the book is built.

MathJax would cost 266 kB on every page with a formula and show nothing without JavaScript; every current
browser draws MathML by itself. The TeX source stays in ``alttext`` for screen readers and for copying.
"""

import html
import re
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert_to_element
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)

# latex2mathml knows `split`, which sets the same as these environments do inside one display.
ALIGNED = re.compile(r"\\(begin|end)\{(?:align|aligned|gather|gathered|eqnarray)\*?\}")
PLAIN = re.compile(r"\\(begin|end)\{(?:equation|displaymath)\*?\}")

ROWS = {"math", "mrow", "mtd", "mstyle"}  # what sets its children side by side
SCRIPTS = {"msub", "msup", "msubsup", "munder", "mover", "munderover"}


def ancestors(node: nodes.Node):
    while node := node.parent:
        yield node


def to_mathml(tex: str, display: bool, node: nodes.Node) -> str:
    source = PLAIN.sub("", ALIGNED.sub(r"\\\1{split}", tex)).strip()
    if display and r"\\" in source and r"\begin" not in source:
        source = r"\begin{split}" + source + r"\end{split}"
    try:
        math = convert_to_element(source, display="block" if display else "inline")
    except Exception as error:  # any failure of the converter is a mistake in the author's TeX
        logger.warning("cannot convert to MathML: %s (%r)", tex, error, location=node)
        return f"<code>{nodes.Text(tex)}</code>"
    for element in math.iter():
        # The converter writes characters as entities, which ElementTree would escape once more.
        element.text = text = html.unescape(element.text or "")
        if text.startswith("\\") and text[1:].isalpha():
            logger.warning("unknown TeX command %s in: %s", text, tex, location=node)
        # A function's name is an identifier; as an operator it would get a space before its bracket.
        if element.tag == "mo" and len(text) > 1 and text.isalpha():
            element.tag = "mi"
        # Browsers dropped columnalign from MathML; the style says the same.
        if align := element.attrib.pop("columnalign", None):
            element.set("style", f"text-align: {align}")
    space_functions(math)
    math.set("alttext", " ".join(tex.split()))
    if any(isinstance(parent, nodes.thead) for parent in ancestors(node)):
        # axe-core sees no text in MathML, so a heading cell with nothing else would count as empty.
        math.set("aria-label", math.get("alttext"))
    return ElementTree.tostring(math, encoding="unicode")


def space_functions(math: ElementTree.Element) -> None:
    """A thin space between a function's name and a letter, a number or another name beside it, as TeX has it."""
    for row in [element for element in math.iter() if element.tag in ROWS]:
        for left, right in list(zip(row, row[1:], strict=False)):
            if (is_function(left) or is_function(right)) and not is_sign(left, -1) and not is_sign(right, 0):
                row.insert(list(row).index(right), ElementTree.Element("mspace", width="0.167em"))


def is_function(element: ElementTree.Element) -> bool:
    """Whether this is a name such as log, or one with an index."""
    base = element[0] if element.tag in SCRIPTS else element
    return base.tag == "mi" and len(base.text or "") > 1


def is_sign(element: ElementTree.Element, end: int) -> bool:
    """Whether `element` begins (`end` 0) or ends (-1) with an operator, a bracket or a space."""
    while len(element) and element.tag in ROWS | SCRIPTS:
        element = element[0 if element.tag in SCRIPTS else end]
    return element.tag in ("mo", "mspace") or element.tag == "mi" and not (element.text or "").isalnum()


def visit_inline(self, node: nodes.math) -> None:
    self.body.append(to_mathml(node.astext(), display=False, node=node))
    raise nodes.SkipNode


def visit_display(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math-display"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(to_mathml(node.astext(), display=True, node=node))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

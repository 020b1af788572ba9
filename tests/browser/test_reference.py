"""The reference shows docstrings as their authors laid them out."""

import ast
import re
from html.parser import HTMLParser
from textwrap import dedent

from browser.book import HTML

ROOT = HTML.parent.parent
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


class Programs(HTMLParser):
    """Texts of all <pre>."""

    def __init__(self, html: str):
        super().__init__()
        self.inside, self.texts = False, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "pre":
            self.inside = True
            self.texts.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


def blocks() -> list[str]:
    nodes = (n for path in (ROOT / "lib").rglob("*.py") for n in ast.walk(ast.parse(path.read_text())))
    texts = [ast.get_docstring(n) or "" for n in nodes if isinstance(n, DOCUMENTED) and not is_private(n)]
    found = [b for text in texts for b in re.findall(r"\n\n((?:(?: {4}.*)?\n)*(?: {4}.*))", text)]
    return [dedent(block).strip() for block in found]


def is_private(node: ast.AST) -> bool:
    return getattr(node, "name", "").startswith("_")


def test_programs_and_tables_in_docstrings_keep_their_lines():
    shown = [dedent(text).strip() for text in Programs((HTML / "reference.html").read_text()).texts]
    assert len(blocks()) > 15
    assert [block for block in blocks() if block not in shown] == []

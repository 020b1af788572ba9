"""The reference shows docstrings as their authors laid them out."""

import ast
import re
from html import unescape
from pathlib import Path
from textwrap import dedent

from browser.book import HTML

ROOT = HTML.parent.parent
MODULES = [path for part in ("lib", "book") for path in (ROOT / part).rglob("*.py") if path.name != "__init__.py"]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def programs(html: str) -> list[str]:
    """Texts of all <pre>."""
    return [unescape(re.sub("<[^>]*>", "", text)) for text in re.findall("<pre[^>]*>(.*?)</pre>", html, re.S)]


def blocks(path: Path) -> list[str]:
    """Programs and tables in a file's docstrings: what is indented after an empty line."""
    nodes = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, DOCUMENTED) and not is_private(n))
    texts = [ast.get_docstring(n) or "" for n in nodes]
    found = [b for text in texts for b in re.findall(r"\n\n((?:(?: {4}.*)?\n)*(?: {4}.*))", text)]
    return [dedent(block).strip() for block in found]


def is_private(node: ast.AST) -> bool:
    return getattr(node, "name", "").startswith("_")


def page(path: Path) -> str:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return (HTML / "reference" / f"{module}.html").read_text()


def test_programs_and_tables_in_docstrings_keep_their_lines():
    assert sum(len(blocks(path)) for path in MODULES) > 15
    missing = []
    for path in filter(blocks, MODULES):
        shown = [dedent(text).strip() for text in programs(page(path))]
        missing += [block for block in blocks(path) if block not in shown]
    assert missing == []


def test_source_leads_to_the_line_where_the_name_begins():
    html = page(ROOT / "lib" / "devices" / "group.py")
    lines = (ROOT / "lib" / "devices" / "group.py").read_text().splitlines()
    begins = [lines[int(number) - 1].strip() for number in re.findall(r'href="#line-(\d+)"', html)]
    assert len(begins) > 10
    assert all(line.startswith(("class ", "def ", "@")) or re.match(r"\w+( *:|,| =)", line) for line in begins), begins
    assert re.findall(r'id="line-(\d+)"', html) == [str(count) for count in range(1, len(lines) + 1)]

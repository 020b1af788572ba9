"""What is stored of a page is the page alone: `_ext/own_nodes.py`."""

import pickle
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

ROOT = Path(__file__).parents[3]


def stored(place: Path, monkeypatch, *extensions: str) -> tuple[set[int], int]:
    """The documents that the nodes of a page belong to, and the size of what is stored of it."""
    monkeypatch.syspath_prepend(str(ROOT / "_ext"))
    place.mkdir()
    (place / "index.md").write_text("# Home\n\n```{eval-rst}\n.. py:function:: f(x)\n\n   Twice x.\n```\n")
    known = place / "known"
    settings = {"extensions": ["myst_parser", *extensions], "exclude_patterns": ["known", "html"]}
    with docutils_namespace():
        folders = [str(place), None, str(place / "html"), str(known), "html"]
        Sphinx(*folders, confoverrides=settings, status=None, warning=sys.stderr).build()
    page = (known / "index.doctree").read_bytes()
    doctree = pickle.loads(page)
    return {id(node.document) for node in doctree.findall()} - {id(doctree)}, len(page)


def test_a_page_does_not_keep_the_document_of_the_parser(tmp_path, monkeypatch):
    without, large = stored(tmp_path / "without", monkeypatch)
    assert without, "if the parser's document is not kept any more, the extension can go"
    others, small = stored(tmp_path / "with", monkeypatch, "own_nodes")
    assert not others
    assert small < large

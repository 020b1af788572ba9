"""Each page keeps its own nodes, and nothing else.

Where reStructuredText stands in a page of Markdown, as in the reference, its nodes belong to a document that the parser
made for them. That one holds Sphinx's whole environment, and would be stored and read again with every single page.
"""

from docutils import nodes


def take_in(app, doctree: nodes.document) -> None:
    for node in doctree.findall():
        node.document = doctree


def setup(app):
    app.connect("doctree-read", take_in, priority=950)  # after all who add nodes
    return {"parallel_read_safe": True, "parallel_write_safe": True}

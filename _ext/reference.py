"""The pages of the reference: the listing of a file, `[source]` beside each name, and links from the book's text.

A name's source stands on the same page as its documentation, so `[source]` leads to a line of the listing. Where a page
of the book names a file of `lib` or `book`, the name leads to the page of that file.
"""

import ast
from functools import cache

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from book.build.record import ROOT
from book.build.reference import modules


class Listing(SphinxDirective):
    """A file of the repository, every line with an anchor of its own: `line-12`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        file = ROOT / self.arguments[0]
        self.env.note_dependency(str(file))
        text = file.read_text("utf-8")
        return [nodes.literal_block(text, text, language="python", highlight_args={"linespans": "line"})]


@cache
def lines(module: str) -> dict[str, int]:
    """The line where each class, function, method and constant of a module begins."""
    found = {}

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[prefix + node.name] = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update({prefix + one.id: node.lineno for one in targets if isinstance(one, ast.Name)})

    look(ast.parse(modules()[module].read_text("utf-8")).body, "")
    return found


def source_line(domain: str, info: dict[str, str]) -> str | None:
    line = lines(info["module"]).get(info["fullname"]) if info["module"] in modules() else None
    return f"#line-{line}" if line else None


def link_files(app, doctree) -> None:
    if app.env.docname.startswith("reference/"):
        for link in doctree.findall(nodes.reference):  # `[source]` leads down the same page
            link["internal"] = link.get("internal") or link.get("refuri", "").startswith("#")
        return
    pages = {file.relative_to(ROOT).as_posix(): module for module, file in modules().items()}
    for literal in list(doctree.findall(nodes.literal)):
        if literal.astext() in pages and not isinstance(literal.parent, nodes.reference):
            target = app.builder.get_relative_uri(app.env.docname, f"reference/{pages[literal.astext()]}")
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), internal=True, refuri=target))


def setup(app):
    app.setup_extension("sphinx.ext.linkcode")
    app.config.linkcode_resolve = source_line
    app.add_directive("listing", Listing)
    app.connect("doctree-read", link_files, priority=900)  # after the panel of the front matter
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""What a chapter's notebook needs beyond MyST-NB.

* Nothing is executed here: `book.build.pages` has seen to it that every chapter has true outputs, stored or fresh ones.
* A long list of imports is folded away: it is for the machine, and the story begins below it.
* Its front matter is the notebook's metadata under `book`; it becomes the panel under the title, the page's
  meta description and its preview text.
"""

import ast
import json
from pathlib import Path

from docutils import nodes

from book.build.pages import shown
from book.build.record import code, digest, program

LONG = 6  # lines of imports
SETTINGS = "set_", "disable_"  # how their names begin


def only_imports(source: str) -> bool:
    """Imports, and settings like `torch.set_num_threads(1)` or `disable_progress_bar()`."""
    return all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and ast.unparse(node).partition("(")[0].split(".")[-1].startswith(SETTINGS))
        for node in ast.parse(source).body
    )


def fold_imports(notebook: dict) -> None:
    for cell in code(notebook):
        source = program(cell)
        if len(source.splitlines()) > LONG and only_imports(source):
            cell["metadata"].setdefault("tags", []).append("hide-input")
            prompts = {f"code_prompt_{does}": f"{does.capitalize()} the imports" for does in ("show", "hide")}
            cell["metadata"]["mystnb"] = prompts


def text_shown(env, docname: str) -> str:
    notebook = shown(Path(env.doc2path(docname)))
    fold_imports(notebook)
    return json.dumps(notebook)


def take_true_outputs(app, docname: str, source: list[str]) -> None:
    if app.env.doc2path(docname).endswith(".ipynb"):
        source[0] = text_shown(app.env, docname)


def outdated_notebooks(app, env, added, changed, removed) -> list[str]:
    """Those whose outputs are others than when the page was read; Sphinx looks at the notebook itself only."""
    names = [name for name in env.found_docs if env.doc2path(name).endswith(".ipynb")]
    before, env.book_shown = getattr(env, "book_shown", {}), {name: digest(text_shown(env, name)) for name in names}
    return [name for name in names if before.get(name) != env.book_shown[name]]


def bullet_list(items: list[str]) -> nodes.bullet_list:
    return nodes.bullet_list("", *(nodes.list_item("", nodes.paragraph("", item)) for item in items))


def panel(front: dict) -> nodes.container:
    facts = [f"{front['minutes']} minutes"]
    facts += ["You need: " + "; ".join(front["prerequisites"])] if front["prerequisites"] else []
    line = nodes.paragraph("", " · ".join(facts) + " · Code: ", classes=["chapter-facts"])
    for count, path in enumerate(front["lib"]):
        line += [nodes.Text(", ")] if count else []
        line += nodes.literal("", path)
    return nodes.container(
        "",
        nodes.paragraph("", front["description"], classes=["chapter-description"]),
        nodes.paragraph("", "After this chapter you can", classes=["chapter-label"]),
        bullet_list(front["objectives"]),
        line,
        classes=["chapter-panel"],
    )


def show_front_matter(app, doctree) -> None:
    docname = app.env.docname
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    front = json.loads(path.read_text("utf-8"))["metadata"].get("book")
    title = next(doctree.findall(nodes.title), None)
    if front is None or title is None:
        return  # tests/test_repo.py names a chapter whose front matter is missing or incomplete
    if "objectives" in front:  # the introduction has a description only
        title.parent.insert(title.parent.index(title) + 1, panel(front))
    app.env.metadata[docname]["og:description"] = front["description"]
    doctree.insert(0, nodes.meta(name="description", content=front["description"]))


def setup(app):
    app.connect("env-get-outdated", outdated_notebooks)
    app.connect("source-read", take_true_outputs)
    app.connect("doctree-read", show_front_matter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

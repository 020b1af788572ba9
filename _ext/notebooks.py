"""What a chapter's notebook needs beyond MyST-NB.

* Its stored execution is valid for one state of ``lib`` only. jupyter-cache looks at the cells alone, so the
  cache lives in a folder named after lib's hash, and a new hash makes Sphinx read every notebook again.
* Its front matter is the notebook's metadata under ``book``; it becomes the panel under the title, the page's
  meta description and its preview text.
"""

import hashlib
import json
import shutil
from pathlib import Path

from docutils import nodes

FRONT_MATTER = ("description", "objectives", "prerequisites", "minutes", "lib")


def lib_hash(root: Path) -> str:
    digest = hashlib.sha256()
    files = [root / "requirements.txt", *(path for path in (root / "lib").rglob("*") if path.is_file())]
    for path in sorted(files):
        if "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def choose_cache(app, config) -> None:
    root = Path(app.srcdir)
    caches = root / "_build" / "executed"
    current = caches / lib_hash(root)
    for old in caches.glob("*"):
        if old != current:
            shutil.rmtree(old)
    config.nb_execution_cache_path = str(current)


def outdated_notebooks(app, env, added, changed, removed) -> list[str]:
    """Every notebook, when lib changed since the environment was stored."""
    digest = lib_hash(Path(app.srcdir))
    before, env.book_lib_hash = getattr(env, "book_lib_hash", digest), digest
    if before == digest:
        return []
    return [name for name in env.found_docs if env.doc2path(name).endswith(".ipynb")]


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
    title.parent.insert(title.parent.index(title) + 1, panel(front))
    app.env.metadata[docname]["og:description"] = front["description"]
    doctree.insert(0, nodes.meta(name="description", content=front["description"]))


def setup(app):
    app.connect("config-inited", choose_cache)
    app.connect("env-get-outdated", outdated_notebooks)
    app.connect("doctree-read", show_front_matter)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

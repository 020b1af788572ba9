"""A build after a small edit writes few pages, and still leaves the book that a build from nothing would leave.

Sphinx writes the pages that it read again. Another page may show something of them: a title in its sidebar, a link to
an anchor. So when titles, order or link targets are others than in the build before, every page is written, and a link
that leads nowhere now is reported as in a build from nothing. Pages whose source is gone are removed.
"""

from pathlib import Path

from book.build.record import digest

MADE_BY_SPHINX = {"index", "genindex", "search"}


def pages_to_write(app, env) -> list[str]:
    targets = sorted(repr(entry) for domain in env.domains.values() for entry in domain.get_objects())
    titles = sorted((name, title.astext()) for name, title in env.titles.items())
    now = digest(repr((targets, titles, sorted(env.toctree_includes.items()))))
    before, env.book_targets = getattr(env, "book_targets", now), now
    return [] if before == now else sorted(env.found_docs)


def remove_old_pages(app, exception) -> None:
    pages = Path(app.outdir)
    for page in pages.rglob("*.html"):
        name = page.relative_to(pages).with_suffix("").as_posix()
        if not name.startswith("_") and name not in MADE_BY_SPHINX | set(app.env.found_docs):
            page.unlink()
            for source in (pages / "_sources").glob(f"{name}.*"):
                source.unlink()


# These forget to say that pages may be read side by side; one numbers chapters (here none), one is for LaTeX.
SILENT = ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex")


def allow_two_readers(app, config) -> None:
    for name in SILENT:
        app.extensions[name].parallel_read_safe = True


def setup(app):
    app.connect("config-inited", allow_two_readers)
    app.connect("env-updated", pages_to_write)
    app.connect("build-finished", remove_old_pages, priority=100)  # before others go through the pages
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Small repairs of what the theme and the other extensions write into each page."""

import re

# docutils marks every entry of a bibliography with a role that ARIA has withdrawn.
REPLACEMENTS = {'role="doc-biblioentry"': 'role="listitem"'}


def repair_body(app, pagename, templatename, context, doctree) -> None:
    for old, new in REPLACEMENTS.items():
        if "body" in context:
            context["body"] = context["body"].replace(old, new)


def plain_stars(app, what, name, obj, options, lines) -> None:
    """A docstring is plain text: in f(*args) the star is Python's and begins no emphasis."""
    for count, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"\*(?=\S)", r"\*", part) for part in parts[::2]]
        lines[count] = "`".join(parts)


def setup(app):
    # Jupyter Book sets this value for an extension that the book leaves out.
    app.add_config_value("comments_config", {}, "html")
    app.connect("html-page-context", repair_body)
    app.connect("autodoc-process-docstring", plain_stars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

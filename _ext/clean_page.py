"""Small repairs of what the theme and the other extensions write into each page."""

# docutils marks every entry of a bibliography with a role that ARIA has withdrawn.
REPLACEMENTS = {'role="doc-biblioentry"': 'role="listitem"'}


def repair_body(app, pagename, templatename, context, doctree) -> None:
    for old, new in REPLACEMENTS.items():
        if "body" in context:
            context["body"] = context["body"].replace(old, new)


def setup(app):
    # Jupyter Book sets this value for an extension that the book leaves out.
    app.add_config_value("comments_config", {}, "html")
    app.connect("html-page-context", repair_body)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Small repairs of what the theme and the other extensions write into each page."""

import ast
import re
from textwrap import dedent

# docutils marks every entry of a bibliography with a role that ARIA has withdrawn.
REPLACEMENTS = {'role="doc-biblioentry"': 'role="listitem"'}


def repair_body(app, pagename, templatename, context, doctree) -> None:
    for old, new in REPLACEMENTS.items():
        if "body" in context:
            context["body"] = context["body"].replace(old, new)


def is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def blocks_as_code(app, what, name, obj, options, lines) -> None:
    """An indented block after an empty line is a program or a table: its lines stay as they are written."""
    result = []
    count = 0
    while count < len(lines):
        begins = lines[count].startswith("    ") and count and not lines[count - 1].strip()
        if not begins:
            result.append(lines[count])
            count += 1
            continue
        end = count
        while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
            end += 1
        block = lines[count:end]
        if not "".join(result).endswith("::"):  # else the author has marked it
            language = "python" if is_python(dedent("\n".join(block))) else "text"
            result += [f".. code-block:: {language}", ""]
        result += block
        count = end
    lines[:] = result


def plain_stars(app, what, name, obj, options, lines) -> None:
    """A docstring is plain text: in f(*args) the star is Python's and begins no emphasis."""
    for count, line in enumerate(lines):
        if line.startswith("    "):  # a program or a table
            continue
        parts = line.split("`")
        parts[::2] = [re.sub(r"\*(?=\S)", r"\*", part) for part in parts[::2]]
        lines[count] = "`".join(parts)


def setup(app):
    # Jupyter Book sets this value for an extension that the book leaves out.
    app.add_config_value("comments_config", {}, "html")
    app.connect("html-page-context", repair_body)
    # Before napoleon, which turns "Raises:" into indented lists.
    app.connect("autodoc-process-docstring", blocks_as_code, priority=300)
    app.connect("autodoc-process-docstring", plain_stars, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Small repairs of what the theme and the other extensions write into each page."""

import ast
import re
from textwrap import dedent

# docutils marks every entry of a bibliography with a role that ARIA has withdrawn.
REPLACEMENTS = {'role="doc-biblioentry"': 'role="listitem"'}


# Between the words of a name: after "_", "(" and "=", before "." and a capital: all_|reduce, dist|.send, Row|Parallel.
WORDS = re.compile(r"(?<=[_(=])(?=\w)|(?<=\w)(?=\.\w)|(?<=[a-z])(?=[A-Z])")
CELL = re.compile(r"<td.*?</td>", re.DOTALL)
NAME = re.compile(r'(?<=<span class="pre">)[^<]+')
OPTION = re.compile(r'(?<=<span class="pre">)--?\w+')


def names_break_well(body: str) -> str:
    """In a narrow table a long name may go on in the next line, between two words. An option never loses its dashes."""
    body = CELL.sub(lambda cell: NAME.sub(lambda name: WORDS.sub("<wbr>", name[0]), cell[0]), body)
    return OPTION.sub(r'<span class="whole">\g<0></span>', body)


def repair_body(app, pagename, templatename, context, doctree) -> None:
    if "body" in context:
        for old, new in REPLACEMENTS.items():
            context["body"] = context["body"].replace(old, new)
        context["body"] = names_break_well(context["body"])


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

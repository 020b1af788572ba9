"""Folklore, checked: a box for a claim that is often heard, the page of all boxes, and a quiz that is made of them.

In a chapter, right behind the cell that shows it (the label stands alone in the line before that cell):

    :::{folklore} A reduce concatenates what the devices hold.
    :name: reduce-concatenates
    :asked: What a reduce returns has the shape of what one device brought.
    :topic: collectives
    :popular: in glossaries
    :number: [11, 22], not [1, 2, 10, 20]
    :cost: a buffer of the wrong shape, or a loss of another size
    :source: {cite}`thakur2005mpich`
    :cell: reduce-and-gather
    A reduce adds element by element, and the shape stays.

    (More to say, if there is: why it is so.)
    :::

The first paragraph is the fact, and stands alone. Half of the boxes, chosen by their names, the quiz asks by a sentence
that is true, `asked`: one that sounds like the claims, without the numbers that would give it away. Every number of a
box is one that its cell prints, and an amount in words in `cost` follows from these numbers
(tests/book/build/test_folklore.py). `{folklore-list} topic` shows all boxes of a topic, and `{folklore-quiz}` asks
about all. They are filled in when a page is written, and written again when a box changes.
"""

from hashlib import sha256
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PAGE, QUIZ = "folklore_checked", "test_yourself"
ABOUT = {  # the options that say something, with their words on the page
    "number": "The number",
    "popular": "How popular",
    "cost": "What it costs",
    "source": "Source",
}
log = logging.getLogger(__name__)


class Tag(nodes.Element):
    """An element of HTML that docutils has no node for: Tag("", *children, tag="details")."""


def open_tag(writer, node: Tag) -> None:
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in node.get("attributes", {}).items())
    start = writer.starttag(node, node["tag"], "")
    writer.body.append(start[:-1] + attributes + ">")


def close_tag(writer, node: Tag) -> None:
    if node["tag"] != "input":
        writer.body.append(f"</{node['tag']}>\n")


class Claims(nodes.General, nodes.Element):
    """Stands for the list of a topic, or for the quiz, until the page is written."""


class Folklore(SphinxDirective):
    """A claim, and the fact that a cell of this chapter shows."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = dict.fromkeys(("name", "asked", "topic", "cell", *ABOUT), directives.unchanged_required)  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        wanted = set(self.option_spec) - (set() if is_true(self.options) else {"asked"})
        if missing := sorted(wanted - set(self.options)):
            raise self.error(f"folklore: the box {self.arguments[0]!r} lacks {', '.join(missing)}")
        if set(self.options) - wanted:
            raise self.error(f"folklore: the quiz asks {self.arguments[0]!r} by its claim, so `asked` is never read")
        if not self.content:
            raise self.error(f"folklore: the box {self.arguments[0]!r} states no fact")
        box = {key: self.options[key] for key in ("name", "topic", "cell")}
        box["text"] = repr((self.arguments, sorted(self.options.items()), list(self.content)))
        box["claim"] = alone(self.parse_inline(self.arguments[0])[0])
        box |= {key: alone(self.parse_inline(self.options[key])[0]) for key in ("asked", *ABOUT) if key in wanted}
        box["fact"] = alone(self.parse_content_to_nodes())
        boxes(self.env).setdefault(self.env.docname, []).append(box)
        place = Claims(of="box", box=len(boxes(self.env)[self.env.docname]) - 1)
        self.set_source_info(place)
        place["ids"] = [f"folklore-{box['name']}"]
        return [place]


def alone(parts: list[nodes.Node]) -> list[nodes.Node]:
    """Cut loose from their page. Else all of it, with its pictures, would be kept with each box from build to build."""
    for part in parts:
        part.parent = None
        for node in part.findall():
            node.document = None
    return parts


class ListOf(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        return [Claims(of=self.arguments[0])]


class Quiz(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return [Claims(of="quiz")]


def boxes(env) -> dict[str, list[dict]]:
    if not hasattr(env, "folklore_boxes"):
        env.folklore_boxes = {}
    return env.folklore_boxes


def in_reading_order(env) -> list[tuple[str, dict]]:
    toc = yaml.safe_load(Path(env.srcdir, "_toc.yml").read_text("utf-8"))
    order = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [(name, box) for name in order for box in boxes(env).get(name, [])]


class Show(SphinxPostTransform):
    """Fill in boxes, lists and the quiz, before Sphinx resolves the citations and terms in them."""

    default_priority = 5

    def run(self, **options) -> None:
        for place in list(self.document.findall(Claims)):
            if place["of"] == "box":
                new = [self.box(place)]
            elif place["of"] == "quiz":
                everything = sorted(in_reading_order(self.env), key=lambda pair: shuffled(pair[1]))
                new = [self.question(count, *pair) for count, pair in enumerate(everything, 1)]
            else:
                found = [pair for pair in in_reading_order(self.env) if pair[1]["topic"] == place["of"]]
                new = [nodes.bullet_list("", *(self.entry(*pair) for pair in found), classes=["folklore-list"])]
            place.replace_self(new)

    def copy(self, parts: list[nodes.Node]) -> list[nodes.Node]:
        """For this page: a reference finds its way from here, and the ids of another page stay there."""
        copies = [part.deepcopy() for part in parts]
        for part in copies:
            for element in part.findall(nodes.Element):
                element["ids"] = []
                if "refdoc" in element:
                    element["refdoc"] = self.env.docname
        return copies

    def link(self, text: str, page: str, anchor: str = "") -> nodes.reference:
        target = self.app.builder.get_relative_uri(self.env.docname, page) if page != self.env.docname else ""
        return nodes.reference("", text, internal=True, refuri=f"{target}#{anchor}" if anchor else target)

    def facts(self, box: dict, links: list[nodes.reference]) -> nodes.field_list:
        rows = [(words, self.copy(box[key])) for key, words in ABOUT.items()]
        between = [part for link in links for part in (nodes.Text(" · "), link)][1:]
        rows.append(("See", between))
        fields = [
            nodes.field("", nodes.field_name("", words), nodes.field_body("", nodes.paragraph("", "", *content)))
            for words, content in rows
        ]
        return nodes.field_list("", *fields, classes=["folklore-facts"])

    def box(self, place: Claims) -> nodes.Element:
        box = boxes(self.env)[self.env.docname][place["box"]]
        links = [
            self.link("the cell", self.env.docname, cell_anchor(self.env, box)[1]),
            self.link("all claims", PAGE, f"claim-{box['name']}"),
        ]
        summary = Tag("", nodes.Text("Folklore, checked: "), quoted(self.copy(box["claim"])), tag="summary")
        summary["classes"] = ["admonition-title"]
        content = [summary, *self.copy(box["fact"]), self.facts(box, links)]
        return Tag("", *content, tag="details", classes=["admonition", "folklore"], ids=place["ids"])

    def entry(self, docname: str, box: dict) -> nodes.list_item:
        title = self.env.titles[docname].astext()
        links = [
            self.link(title, docname, f"folklore-{box['name']}"),
            self.link("the cell that shows it", docname, cell_anchor(self.env, box)[1]),
        ]
        claim = nodes.paragraph("", "", quoted(self.copy(box["claim"])), classes=["folklore-claim"])
        content = [claim, *self.copy(box["fact"]), self.facts(box, links)]
        return nodes.list_item("", *content, ids=[f"claim-{box['name']}"], classes=["folklore-entry"])

    def question(self, count: int, docname: str, box: dict) -> Tag:
        """A fieldset with two radio buttons. Styles alone show the answer when one of them is chosen."""
        true, name = is_true(box), f"quiz-{box['name']}"
        said = self.copy(box["asked"]) if true else self.copy(box["claim"])
        choices = []
        for word, right in (("True", true), ("False", not true)):
            one = f"{name}-{word.lower()}"
            attributes = {"type": "radio", "name": name, "autocomplete": "off"}
            choices.append(Tag(tag="input", ids=[one], classes=["right" if right else "wrong"], attributes=attributes))
            choices.append(Tag("", nodes.Text(word), tag="label", attributes={"for": one}))
        verdict = f"It is {str(true).lower()}."
        reason = [
            nodes.paragraph("", f"Right. {verdict}", classes=["quiz-right"]),
            nodes.paragraph("", f"No. {verdict}", classes=["quiz-wrong"]),
        ]
        if true:
            often = [nodes.Text("Often said instead: "), quoted(self.copy(box["claim"]))]
            reason.append(nodes.paragraph("", "", *often))
        reason += self.copy(box["fact"])
        cell = self.link("the cell that shows it", docname, cell_anchor(self.env, box)[1])
        more = [self.link("all about this claim", PAGE, f"claim-{box['name']}"), nodes.Text(" · "), cell]
        reason.append(nodes.paragraph("", "", *more, classes=["quiz-more"]))
        legend = Tag("", nodes.Text(f"{count}. "), *said, tag="legend")
        answer = nodes.container("", *reason, classes=["quiz-answer"])
        return Tag("", legend, *choices, answer, tag="fieldset", classes=["quiz"], ids=[name])


def quoted(parts: list[nodes.Node]) -> nodes.inline:
    return nodes.inline("", "", nodes.Text("\u201c"), *parts, nodes.Text("\u201d"), classes=["folklore-said"])


def shuffled(box: dict) -> str:
    """A place in the quiz that stays when other boxes come."""
    return sha256(box.get("name", "").encode()).hexdigest()


def is_true(box: dict) -> bool:
    """Whether the quiz asks by a true sentence, or by the claim: for about half of the boxes each."""
    return int(shuffled(box)[-1], 16) % 2 == 0


def cell_anchor(env, box: dict) -> tuple[str, str]:
    return env.domaindata["std"]["anonlabels"].get(box["cell"].lower(), ("", ""))[:2]


def look_for_cells(app, doctree) -> None:
    """The label of a box has to be that of a cell of the same page which has an output."""
    shown = {
        one
        for cell in doctree.findall(nodes.container)
        if cell.get("nb_element") == "cell_code"
        and any(isinstance(part, nodes.container) and part.get("nb_element") == "cell_code_output" for part in cell)
        for one in cell["ids"]
    }
    for box in boxes(app.env).get(app.env.docname, []):
        if doctree.nameids.get(box["cell"].lower()) not in shown:
            log.warning("folklore %s: no cell with outputs has the label %r", box["name"], box["cell"], type="folklore")


def pages_to_write(app, env) -> list[str]:
    """Lists and quiz show what stands in other pages."""
    said = [(name, box["text"]) for name, box in in_reading_order(env)]
    now = sha256(repr(said).encode()).hexdigest()
    before, env.folklore_digest = getattr(env, "folklore_digest", None), now
    return [] if before == now else [page for page in (PAGE, QUIZ) if page in env.found_docs]


def forget(app, env, docname: str) -> None:
    boxes(env).pop(docname, None)


def merge(app, env, docnames, other) -> None:
    boxes(env).update({name: boxes(other)[name] for name in docnames if name in boxes(other)})


def add_script(app, pagename, templatename, context, doctree) -> None:
    if pagename in (PAGE, QUIZ):
        app.add_js_file("folklore.js")


def setup(app):
    app.add_node(Tag, html=(open_tag, close_tag))
    app.add_node(Claims)
    app.add_directive("folklore", Folklore)
    app.add_directive("folklore-list", ListOf)
    app.add_directive("folklore-quiz", Quiz)
    app.add_post_transform(Show)
    app.connect("doctree-read", look_for_cells)
    app.connect("env-updated", pages_to_write)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

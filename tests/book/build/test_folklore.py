"""The boxes "Folklore, checked": each is shown by a cell that ran, its numbers are that cell's, and the page has it."""

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from book.build.execute import normal_form

ROOT = Path(__file__).parents[3]
BOX = re.compile(r"^:::\{folklore\} (?P<claim>.+)\n(?P<options>(?::\w+: .*\n)+)\n(?P<fact>(?:.*\n)+?):::$", re.M)


@dataclass
class Box:
    chapter: str
    claim: str
    options: dict[str, str]
    fact: str
    cell: dict | None  # the cell that its label stands before


def cells_by_label(cells: list[dict]) -> dict[str, dict]:
    """A label stands alone in the last line before a cell of code."""
    found = {}
    for before, cell in zip(cells, cells[1:], strict=False):
        last = "".join(before["source"]).rstrip().rpartition("\n")[2]
        if before["cell_type"] == "markdown" and cell["cell_type"] == "code" and re.fullmatch(r"\(\S+\)=", last):
            found[last[1:-2]] = cell
    return found


def boxes_of(path: Path) -> list[Box]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    result = []
    for found in BOX.finditer(text):
        options = dict(re.findall(r"^:(\w+): (.*)$", found["options"], re.M))
        cell = cells_by_label(cells).get(options.get("cell", ""))
        result.append(Box(path.stem, found["claim"], options, found["fact"], cell))
    assert len(result) == text.count("{folklore}"), f"{path.stem}: a box is not written like the others"
    return result


BOXES = [box for path in sorted((ROOT / "chapters").glob("*.ipynb")) for box in boxes_of(path)]
each_box = pytest.mark.parametrize("box", BOXES, ids=lambda box: box.options.get("name", box.claim))

A_NUMBER = r"\d[\d,_]*(?:\.\d+)?(?:e[+-]?\d+)?"
# "ZeRO 2", "Llama 3 8B" and "rank 1" are names; what stands between dollar signs is a formula.
NAMES = r"\$[^$]*\$|\{cite\}`[^`]*`|(?:Llama|ZeRO|GPT|Qwen|stages?|ranks?|devices?|tp|pp|dp)[ -]\d[\d.]*B?|\d+-bit"


def printed(cell: dict) -> str:
    parts = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        drawn = re.sub("<.*?>", " ", "".join(data.get("text/html", [])))
        parts += output.get("text", []), data.get("text/plain", []), drawn
    return "\n".join("".join(part) for part in parts)


def values(numbers: list[str]) -> set[float]:
    return {float(number.rstrip(",").replace(",", "").replace("_", "")) for number in numbers}


def said(text: str) -> set[float]:
    return values(re.findall(rf"(?<![\w.-]){A_NUMBER}(?!\w)", re.sub(NAMES, " ", text)))


def test_there_are_enough_and_each_has_a_name_of_its_own():
    assert len(BOXES) >= 60
    assert [name for name, count in Counter(box.options["name"] for box in BOXES).items() if count > 1] == []
    assert len({box.chapter for box in BOXES}) >= 15


@each_box
def test_its_cell_ran_and_printed_its_numbers(box):
    assert box.cell is not None, f"no cell has the label {box.options['cell']}"
    assert box.cell["execution_count"]
    output = printed(box.cell)
    assert output.strip()
    there = values(re.findall(A_NUMBER, output))
    numbers = said(box.options["number"])
    assert numbers <= there
    assert numbers or box.options["number"] in output
    # What went in stands in the cell itself: tokens, devices, sizes.
    given = values(re.findall(A_NUMBER, "".join(box.cell["source"])))
    assert said(box.fact) | said(box.options["cost"]) <= there | given


# "half" and "three quarters", "twice", "eight times", "two to three times", "a factor of four": no digit is in them.
MANY = {word: n for n, word in enumerate("two three four five six seven eight nine ten".split(), 2)}
PART = {word: 1 / n for n, word in enumerate("half third quarter fifth sixth seventh eighth".split(), 2)}
AMOUNT = re.compile(
    rf"\b(?:(?P<to>{'|'.join(MANY)}) to )?(?P<times>{'|'.join(MANY)}) times|\bfactor of (?P<factor>{'|'.join(MANY)})|"
    rf"\b(?P<twice>twice|double[sd]?)|\b(?:(?P<some>{'|'.join(MANY)}) )?(?P<part>{'|'.join(PART)}|halves)s?\b"
)


def amounts(text: str) -> list[float]:
    """What is said in words: 8 for "eight times", 0.75 for "three quarters"."""
    result = []
    for found in AMOUNT.finditer(text.lower()):
        many = MANY.get(found["times"] or found["factor"] or found["some"] or "", 2 if found["twice"] else 1)
        low = MANY.get(found["to"] or "", many)
        result.append((low + many) / 2 * PART.get(found["part"] or "", 0.5 if found["part"] else 1))
    return result


def shown_by(text: str) -> set[float]:
    """Percents as they are and what is missing to 100; of two other numbers, how many times, how much less, how much
    more the one is."""
    percents = {float(p) / 100 for p in re.findall(r"([\d.]+)(?= ?%| to [\d.]+ ?%)", text)}
    numbers = said(text) - {100 * p for p in percents} | {n for word, n in MANY.items() if word in text.lower()} | {1}
    pairs = [(a, b) for a in numbers for b in numbers if a != b and b]
    return percents | {1 - p for p in percents} | {x for a, b in pairs for x in (a / b, 1 - a / b, a / b - 1)}


@each_box
def test_what_it_costs_in_words_follows_from_its_numbers_or_is_what_it_claims(box):
    known = shown_by(" ".join([box.claim, box.options["number"], box.fact.split("\n\n")[0]])) | set(amounts(box.claim))
    for amount in amounts(box.options["cost"]):
        assert any(abs(x - amount) < 0.15 * amount for x in known), (
            f"{box.options['cost']}: {amount} of {sorted(known)}"
        )


def test_amounts_in_words():
    told = "Nearly a third, twice and more; two to three times, three quarters by a factor of four. One of two."
    assert amounts(told) == [1 / 3, 2, 2.5, 0.75, 4]
    assert amounts("halves, half") == [0.5, 0.5]
    assert {0.25, 0.75, 4 / 3, 0.12, 0.88} <= shown_by("three against 4, or 12 %")
    assert {0.37, 0.4} <= shown_by("37.0 to 40%")


@each_box
def test_its_topic_is_on_the_page(box):
    assert f"{{folklore-list}} {box.options['topic']}\n" in (ROOT / "folklore_checked.md").read_text("utf-8")
    assert box.fact.strip().split("\n\n")[0].endswith(".")


def test_the_numbers_of_a_sentence_do_not_give_its_answer_away():
    """A quiz is answered by who knows, not by who sees that true sentences have decimals."""
    told = [box.options["asked"] for box in BOXES if "asked" in box.options]
    assert len(BOXES) / 3 < len(told) < 2 * len(BOXES) / 3
    assert [sentence for sentence in told if not sentence.endswith(".") or re.search(r"\d\.\d|\d%", sentence)] == []


# ---- a book of two pages and a quiz ----

BOX_TEXT = """:::{{folklore}} {claim}
:name: a-box
:topic: toys
:popular: nowhere
:number: 4
:cost: nothing
:source: this run
:cell: {cell}

Two and two make 4.
:::"""


def chapter(claim: str, cell: str = "the-sum", output: bool = True) -> str:
    outputs = [{"name": "stdout", "output_type": "stream", "text": "4\n"}] if output else []
    texts = ["# Sums\n\n## The sum\n\n(the-sum)=", BOX_TEXT.format(claim=claim, cell=cell)]
    before, after = ({"cell_type": "markdown", "id": f"text-{n}", "metadata": {}, "source": texts[n]} for n in (0, 1))
    code = {"cell_type": "code", "id": "c", "metadata": {}, "source": "print(2 + 2)", "outputs": outputs}
    cells = [before, code | {"execution_count": 1}, after]
    return normal_form({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """`book(chapter)` builds a small book anew, as far as it is needed, and returns its pages and the warnings."""
    place = tmp_path_factory.mktemp("book")
    toc = "root: index\nparts:\n- chapters: [{file: sums}, {file: folklore_checked}, {file: test_yourself}]\n"
    (place / "_toc.yml").write_text(toc)
    names = ["sums", "folklore_checked", "test_yourself"]
    (place / "index.md").write_text("# Home\n\n```{toctree}\n" + "\n".join(names) + "\n```\n")
    (place / "folklore_checked.md").write_text("# All\n\n## Toys\n\n```{folklore-list} toys\n```\n")
    (place / "test_yourself.md").write_text("# Quiz\n\n```{folklore-quiz}\n```\n")
    sys.path.insert(0, str(ROOT / "_ext"))
    settings = {
        "extensions": ["myst_nb", "folklore"],
        "nb_execution_mode": "off",
        "myst_enable_extensions": ["colon_fence"],
        "exclude_patterns": ["html", "known", "jupyter_execute"],
    }

    def build(text: str) -> tuple[dict[str, str], str]:
        (place / "sums.ipynb").write_text(text)
        warnings = StringIO()
        folders = [str(place), None, str(place / "html"), str(place / "known"), "html"]
        with docutils_namespace():  # what one build registers is gone before the next
            Sphinx(*folders, confoverrides=settings, status=None, warning=warnings).build()
        return {name: (place / "html" / f"{name}.html").read_text("utf-8") for name in names}, warnings.getvalue()

    build.known = place / "known" / "environment.pickle"
    yield build
    sys.path.remove(str(ROOT / "_ext"))


def test_a_changed_box_changes_the_list_and_the_quiz(book):
    before, warnings = book(chapter("Two and two make five"))
    assert warnings == ""
    assert 'id="folklore-a-box"' in before["sums"]
    anchor = re.search(r'href="#([\w-]+)">the cell<', before["sums"])[1]
    assert f'class="cell docutils container" id="{anchor}"' in before["sums"], "though a heading has the same name"
    assert f'href="sums.html#{anchor}"' in before["folklore_checked"]
    after, warnings = book(chapter("Two and two make six"))
    assert warnings == ""
    for page in "sums", "folklore_checked":
        assert "Two and two make five" in before[page]
        assert "Two and two make six" in after[page]
        assert "make five" not in after[page]
    assert before["test_yourself"] != after["test_yourself"]
    assert after["test_yourself"].count('type="radio"') == 2


def test_a_box_is_asked_by_a_true_sentence_or_by_its_claim(book):
    by_its_claim, warnings = book(chapter("Two and two make five"))
    assert warnings == ""
    true = chapter("Two and two make six").replace(":name: a-box", ":name: one-box\\n:asked: They make an even number.")
    by_a_true_one, warnings = book(true)
    assert warnings == ""
    question = r"<legend>1\. (.*?)</legend>.*quiz-right\">(.*?)</p>.*Two and two make 4\."
    claim = re.search(question, by_its_claim["test_yourself"], re.S).groups()
    assert claim == ("Two and two make five", "Right. It is false.")
    sentence = re.search(question, by_a_true_one["test_yourself"], re.S).groups()
    assert sentence == ("They make an even number.", "Right. It is true.")
    assert "Often said instead: " in by_a_true_one["test_yourself"]


def test_a_box_does_not_keep_its_page(book):
    output = 3_000_000 * "x"
    assert output in book(chapter("F").replace('"4\\n', f'"4{output}\\n'))[0]["sums"]
    assert book.known.stat().st_size < len(output)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (chapter("A", cell="no-such-label"), "no cell with outputs has the label 'no-such-label'"),
        (chapter("B", output=False), "no cell with outputs has the label 'the-sum'"),
        (chapter("C").replace(":cost: nothing\\n", ":cots: nothing\\n"), "cots"),
        (chapter("D").replace('    ":cost: nothing\\n",\n', ""), "lacks cost"),
        (chapter("E").replace(":name: a-box", ":name: one-box"), "lacks asked"),
        (chapter("F").replace(":name: a-box", ":name: a-box\\n:asked: It is so."), "`asked` is never read"),
    ],
    ids=["no label", "no output", "a misspelled option", "a missing option", "nothing to ask", "asked by its claim"],
)
def test_a_box_that_cannot_be_checked_is_reported(book, text, told):
    _, warnings = book(text)
    assert told in warnings

"""The page "Folklore, checked" and its quiz: complete, linked to cells that ran, by keyboard, and without scripts."""

import json
import re

from browser.book import HTML

LIST, QUIZ = "folklore_checked.html", "test_yourself.html"
ROOT = HTML.parents[1]


def names() -> set[str]:
    """Of all boxes, from the chapters themselves."""
    found = []
    for path in (ROOT / "chapters").glob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        found += re.findall(r"^:::\{folklore\} .*\n:name: (.+)$", text, re.M)
    return set(found)


def test_every_box_is_listed_and_asked():
    listed = re.findall(r'id="claim-([\w-]+)"', (HTML / LIST).read_text("utf-8"))
    asked = re.findall(r'<fieldset class="quiz" id="quiz-([\w-]+)"', (HTML / QUIZ).read_text("utf-8"))
    assert len(listed) == len(set(listed)) == len(asked) >= 60
    assert set(listed) == set(asked) == names()


def test_every_entry_leads_to_its_box_and_to_a_cell_with_an_output():
    text = (HTML / LIST).read_text("utf-8")
    links = r'href="([^"#]+)#folklore-([\w-]+)".*?href="([^"#]+)#([\w-]+)">the cell'
    entries = re.findall(rf'id="claim-([\w-]+)".*?{links}', text, re.S)
    assert {name for name, *_ in entries} == names()
    for name, page, box, cell_page, cell in entries:
        assert (name, page) == (box, cell_page)
        chapter = (HTML / page).read_text("utf-8")
        begin = re.search(rf'<div class="cell [^"]*docutils container" id="{cell}"', chapter).end()
        assert f'<details class="admonition folklore" id="folklore-{name}"' in chapter
        assert begin < chapter.index("cell_output", begin) < chapter.index(f'id="folklore-{name}"', begin)


def test_a_link_to_a_box_opens_it(visit):
    opened = visit(LIST)
    page = opened.page
    page.locator(".folklore-entry a", has_text="Pipeline parallelism").first.click()
    page.wait_for_url("**/pipeline_parallelism.html#folklore-*")
    page.locator("details.folklore:target").wait_for()
    assert page.evaluate("document.querySelector('details.folklore:target').open")
    opened.clean()


def test_search_and_topic_by_keyboard(desk):
    opened = desk(LIST)
    page = opened.page
    entries, hits = page.locator(".folklore-entry"), page.locator(".folklore-hits")
    whole = hits.text_content()
    assert re.fullmatch(rf"{entries.count()} of {entries.count()} claims", whole)
    assert hits.get_attribute("role") == "status", "a screen reader is told the number of hits"
    page.get_by_label("Search the claims").focus()
    page.keyboard.type("Bubble  1f1b")
    shown = entries.filter(visible=True).all_text_contents()
    assert 0 < len(shown) < 20
    assert all("bubble" in text.lower() and "1f1b" in text.lower() for text in shown)
    assert hits.text_content().startswith(f"{len(shown)} of ")
    assert page.locator("article section h2:visible").count() <= len(shown)
    page.keyboard.press("Enter")  # does not leave the page
    page.keyboard.type(" zzqqxx")
    assert hits.text_content() == "No claim has all these words."
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    page.keyboard.type("Pipe")  # the topics are a list: its letters choose
    assert page.get_by_label("Topic").evaluate("one => one.selectedOptions[0].textContent") == "Pipelines"
    assert page.locator("article section h2:visible").count() == 1
    page.evaluate("location.hash = 'claim-adam-12-bytes'")  # a link to a claim that is filtered away
    page.locator("#claim-adam-12-bytes").wait_for(state="visible")
    assert hits.text_content() == whole
    opened.clean()


def test_the_quiz_by_keyboard(desk):
    opened = desk(QUIZ)
    page = opened.page
    first, score = page.locator("fieldset.quiz").first, page.locator(".quiz-score")
    first.locator("input").first.focus()
    page.keyboard.press("Space")
    answer = first.locator(".quiz-answer")
    assert answer.is_visible()
    said = [first.locator(f".quiz-{verdict}").is_visible() for verdict in ("right", "wrong")]
    page.keyboard.press("ArrowRight")
    assert [first.locator(f".quiz-{verdict}").is_visible() for verdict in ("right", "wrong")] == said[::-1]
    assert score.get_attribute("role") == "status"
    assert re.search(r"\b[01] of 1 right", score.text_content())
    page.get_by_role("button", name="Start again").click()
    assert not answer.is_visible()
    true = page.locator("fieldset.quiz", has=page.locator("input.right[id$=-true]")).count()
    whole = page.locator("fieldset.quiz").count()
    assert 0.35 * whole < true < 0.65 * whole, "whoever says false to everything has half of it"
    opened.clean()


def test_without_scripts_the_list_is_there_and_the_quiz_answers(scriptless):
    entries = scriptless(LIST).page.locator(".folklore-entry")
    assert entries.filter(visible=True).count() == entries.count() >= 60
    first = scriptless(QUIZ).page.locator("fieldset.quiz").first
    assert not first.locator(".quiz-answer").is_visible()
    for choice in "right", "wrong":
        first.locator(f"input.{choice}").check()
        assert first.locator(f".quiz-{choice}").is_visible()
        assert first.locator(".quiz-right, .quiz-wrong").filter(visible=True).count() == 1
